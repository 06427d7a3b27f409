"""The GPU's own view of itself: slow-downs, clocks, temperature, power, and who else is at work on it. Reads only; changes nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class GpuReading:
    """NVML's view at one moment; None for what this GPU or driver does not tell. Slow-downs and energy are counters, in ns and mJ."""

    slowdown_ns: dict[str, int] = field(default_factory=dict)
    power_cap_ns: int | None = None
    clock_mhz: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    memory_clock_mhz: float | None = None
    energy_mj: int | None = None
    clock_reasons: str | None = None  # why the clock is not higher, comma-separated; "" where nothing holds it down


class Gpu(Protocol):
    """What is asked of NVML."""

    def read(self) -> GpuReading:
        """The state now."""

    def sees_processes(self) -> bool:
        """Whether it tells processes by the numbers that they have here: this one, which uses the GPU, is among them."""

    def others_busy(self, since_us: int) -> tuple[int, ...]:
        """Other processes that have used the GPU's multiprocessors since then (microseconds since the epoch)."""


class Nvml:
    """NVML on the GPU with ``uuid``."""

    _SLOWDOWNS = (
        ("hardware thermal", "NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_THERM_SLOWDOWN"),
        ("power brake", "NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_POWER_BRAKE_SLOWDOWN"),
        ("software thermal", "NVML_FI_DEV_CLOCKS_EVENT_REASON_SW_THERM_SLOWDOWN"),
    )

    _POWER_CAP = ("power cap", "NVML_FI_DEV_PERF_POLICY_POWER")

    _REASONS = (
        (0x1, "gpu_idle"),
        (0x2, "applications_clocks"),
        (0x4, "sw_power_cap"),
        (0x8, "hw_slowdown"),
        (0x10, "sync_boost"),
        (0x20, "sw_thermal"),
        (0x40, "hw_thermal"),
        (0x80, "hw_power_brake"),
        (0x100, "display_clocks"),
    )  # the bits of nvmlDeviceGetCurrentClocksEventReasons, from nvml.h

    def __init__(self, nvml: Any, uuid: str, own_pid: int) -> None:
        self._nvml = nvml
        self._own_pid = own_pid
        self._handle = nvml.nvmlDeviceGetHandleByUUID(uuid)

    @classmethod
    def open(cls, uuid: str, own_pid: int) -> Nvml | None:
        """None where NVML is not installed, there is no driver, or it does not know the GPU."""
        try:
            import pynvml
        except ModuleNotFoundError:
            return None
        try:
            pynvml.nvmlInit()
            return cls(pynvml, uuid, own_pid)
        except pynvml.NVMLError:
            return None

    def read(self) -> GpuReading:
        nvml, counters = self._nvml, self._counters()
        power_mw = self._ask(nvml.nvmlDeviceGetPowerUsage)
        return GpuReading(
            slowdown_ns={name: counters[name] for name, _ in self._SLOWDOWNS if name in counters},
            power_cap_ns=counters.get(self._POWER_CAP[0]),
            clock_mhz=self._ask(nvml.nvmlDeviceGetClockInfo, nvml.NVML_CLOCK_SM),
            temperature_c=self._ask(nvml.nvmlDeviceGetTemperature, nvml.NVML_TEMPERATURE_GPU),
            power_w=None if power_mw is None else power_mw / 1000,
            memory_clock_mhz=self._ask(nvml.nvmlDeviceGetClockInfo, nvml.NVML_CLOCK_MEM),
            energy_mj=self._ask(nvml.nvmlDeviceGetTotalEnergyConsumption),
            clock_reasons=self._clock_reasons(),
        )

    def sees_processes(self) -> bool:
        """Not so in a container with process numbers of its own, where others cannot be told from this one."""
        entries = self._ask(self._nvml.nvmlDeviceGetComputeRunningProcesses) or ()
        return self._own_pid in {int(entry.pid) for entry in entries}

    def others_busy(self, since_us: int) -> tuple[int, ...]:
        """Empty also where NVML does not see this process by its number: those of others mean nothing then."""
        entries = self._ask(self._nvml.nvmlDeviceGetProcessUtilization, since_us) or ()
        busy = {int(entry.pid) for entry in entries if entry.smUtil > 0 and entry.timeStamp > since_us}
        others = tuple(sorted(busy - {self._own_pid}))
        return others if others and (self._own_pid in busy or self.sees_processes()) else ()

    def _clock_reasons(self) -> str | None:
        newer = getattr(self._nvml, "nvmlDeviceGetCurrentClocksEventReasons", None)
        bits = self._ask(newer or self._nvml.nvmlDeviceGetCurrentClocksThrottleReasons)
        return None if bits is None else ",".join(name for bit, name in self._REASONS if bits & bit)

    def _counters(self) -> dict[str, int]:
        """All at once, for each call takes its time."""
        fields = {name: getattr(self._nvml, field_name, None) for name, field_name in (*self._SLOWDOWNS, self._POWER_CAP)}
        known = {name: number for name, number in fields.items() if number is not None}
        values = self._ask(self._nvml.nvmlDeviceGetFieldValues, list(known.values())) or ()
        return {name: int(value.value.ullVal) for name, value in zip(known, values, strict=False) if value.nvmlReturn == 0}

    def _ask(self, function: Callable[..., Any], *arguments: Any) -> Any:
        with contextlib.suppress(self._nvml.NVMLError):
            return function(self._handle, *arguments)
        return None

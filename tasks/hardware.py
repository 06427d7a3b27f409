"""The machine while it is measured: its clocks, its counters at the borders of pairs, and what they say about a pair.

``HostMachine`` and ``CudaMachine`` are what ``tasks.measure`` runs on. NVML is read through one small class and may be missing, as it is in
many containers; the clock of the GPU is then still known from how long a number of its cycles takes.
"""

from __future__ import annotations

import os
import resource
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch

from tasks import host_speed
from tasks.cuda_queue import event, spin
from tasks.nvml import Gpu, GpuReading, Nvml
from tasks.spec import Scalar
from tasks.stepper import Border

Number = TypeVar("Number", int, float)

MAX_STEAL = 0.05  # share of all processors' time that the hypervisor gave to others
MAX_WAIT = 0.10  # share of the time in which the main thread was ready to run and did not
SHORT_SPIN_CYCLES, LONG_SPIN_CYCLES, CLOCK_SPINS = 500_000, 1_500_000, 3
QUEUE_FILL_FACTOR, QUEUE_FILL_S = 2.0, 5e-4  # it is kept busy for so many times what launching a step takes, and so long besides
MAX_QUEUE_FILL_S = 2.0
_ASSUMED_MHZ = 2000.0


@dataclass(frozen=True, slots=True)
class HostReading:
    """Counters of the operating system, most in seconds, at ``at_s`` on the monotonic clock; None for what this system does not have."""

    at_s: float
    pressure_s: float | None  # some task waited for a processor
    steal_s: float | None  # per processor
    wait_s: float | None  # the main thread waited for a processor
    page_faults: int = 0  # of this process, without reading from a disk


class HostMachine:
    """The CPU as the device: nothing to wait for, no clock to read, no pair to discard."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._probes_ns: list[int] = []
        self._first = self._last = self._border = read_host(proc)

    def begin(self) -> None:
        self._probes_ns.clear()
        self._first = self._last = self._border = read_host(self._proc)

    def now_ns(self) -> int:
        return time.perf_counter_ns()

    def synchronize(self) -> None:
        """On the CPU a step is done when it returns."""

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def clock_mhz(self) -> float | None:
        return None

    def mark(self) -> None:
        self._probes_ns.append(host_speed.probe_ns())
        self._last = self._border = read_host(self._proc)

    def border(self) -> Border:
        before, self._border = self._border, read_host(self._proc)
        return Border(
            cpu_pressure_s=rise(before.pressure_s, self._border.pressure_s),
            cpu_steal_s=rise(before.steal_s, self._border.steal_s),
            cpu_wait_s=rise(before.wait_s, self._border.wait_s),
        )

    def fault(self) -> str | None:
        self._last = read_host(self._proc)
        return None

    def contaminated(self) -> str | None:
        """Whether others took the processors, from the first reading to the last."""
        steal, wait = (share(self._first, self._last, name) for name in ("steal_s", "wait_s"))
        if steal is not None and steal > MAX_STEAL:
            return f"the hypervisor gave {steal:.0%} of the processors' time to others"
        if wait is not None and wait > MAX_WAIT:
            return f"the main thread waited for a processor for {wait:.0%} of the time"
        return None

    def event_ms(self, step: Callable[[], object]) -> float | None:  # noqa: ARG002 - the CPU has no clock of its own
        return None

    def device_ms(self, step: Callable[[], object]) -> float | None:  # noqa: ARG002 - the CPU has no queue of its own
        return None

    def summary(self) -> dict[str, Scalar]:
        """Shares of the measurement's time, and what happens in a second of it: for the row."""
        names = {"cpu_pressure_share": "pressure_s", "cpu_steal_share": "steal_s", "cpu_wait_share": "wait_s"}
        faults = share(self._first, self._last, "page_faults")
        shares: dict[str, Scalar] = {key: share(self._first, self._last, name) for key, name in names.items()}
        return shares | {"page_faults_per_s": None if faults is None else round(faults)} | self._speeds()

    def _speeds(self) -> dict[str, Scalar]:
        """What ``host_speed``'s work took as visits began."""
        if not self._probes_ns:
            return {}
        middle, most = statistics.median(self._probes_ns), max(self._probes_ns)
        return {"host_probe_us": round(middle / 1e3, 1), "host_probe_us_max": round(most / 1e3, 1)}


class CudaMachine(HostMachine):
    """A CUDA device. ``gpu`` is None where there is no NVML; ``busy`` tells why somebody else was at work on it when pairs began, if so."""

    def __init__(
        self, device: torch.device, gpu: Gpu | None, proc: Path = Path("/proc"), busy: Callable[[], str | None] = lambda: None
    ) -> None:
        super().__init__(proc)
        self._device = device
        self._busy = busy
        self._gpu = gpu
        self._readings = [gpu.read()] if gpu else []
        self._at_mark = self._at_border = self._readings[-1] if self._readings else GpuReading()
        self._others: tuple[int, ...] = ()
        self._just_read = False  # nothing has run since the last border: a reading takes milliseconds, for which the device would idle
        self._marked_us = time.time_ns() // 1000

    def synchronize(self) -> None:
        torch.cuda.synchronize(self._device)

    def begin(self) -> None:
        super().begin()
        self._readings.clear()
        self._just_read = False
        if self._gpu:
            self._at_border = self._read(self._gpu)

    def clock_mhz(self) -> float | None:
        """From the difference of two spins, so that what it takes to launch them cancels; the shortest of some, for delays only add."""
        short_ms, long_ms = (min(self._spin_ms(cycles) for _ in range(CLOCK_SPINS)) for cycles in (SHORT_SPIN_CYCLES, LONG_SPIN_CYCLES))
        return (LONG_SPIN_CYCLES - SHORT_SPIN_CYCLES) / (long_ms - short_ms) / 1000 if long_ms > short_ms else None

    def mark(self) -> None:
        super().mark()
        self._marked_us = time.time_ns() // 1000
        if self._gpu:
            self._at_mark = self._at_border = self._at_border if self._just_read else self._read(self._gpu)
            self._just_read = False

    def sleep(self, seconds: float) -> None:
        super().sleep(seconds)
        self._just_read = False

    def border(self) -> Border:
        host = super().border()
        if self._gpu is None:
            return replace(host, sm_clock_mhz=self.clock_mhz())
        before, now = self._at_border, self._read(self._gpu)
        self._at_border, self._others, self._just_read = now, self._gpu.others_busy(self._marked_us), True
        return replace(
            host,
            sm_clock_mhz=now.clock_mhz,
            memory_clock_mhz=now.memory_clock_mhz,
            temperature_c=now.temperature_c,
            power_w=now.power_w,
            energy_mj=rise(before.energy_mj, now.energy_mj),
            power_cap_ns=rise(before.power_cap_ns, now.power_cap_ns),
            slowdown_ns=sum(now.slowdown_ns[name] - then for name, then in before.slowdown_ns.items() if name in now.slowdown_ns)
            if now.slowdown_ns
            else None,
            clock_reasons=now.clock_reasons,
            other_processes=",".join(map(str, self._others)) or None,
        )

    def fault(self) -> str | None:
        """A slow-down of the hardware since ``mark``, or another process at work on the GPU."""
        super().fault()
        if self._gpu is None:
            return None
        before, after = self._at_mark, self._at_border if self._just_read else self._read(self._gpu)
        slowed = [name for name, then in before.slowdown_ns.items() if after.slowdown_ns.get(name, then) > then]
        if slowed:
            return f"the GPU throttled: {', '.join(slowed)}"
        others = self._others if self._just_read else self._gpu.others_busy(self._marked_us)
        return f"other processes used the GPU: {', '.join(map(str, others))}" if others else None

    def contaminated(self) -> str | None:
        return self._busy() or super().contaminated()

    def event_ms(self, step: Callable[[], object]) -> float | None:
        start, end = event(), event()
        self.synchronize()
        start.record()
        step()
        end.record()
        self.synchronize()
        return float(start.elapsed_time(end))

    def device_ms(self, step: Callable[[], object]) -> float | None:
        """Events around a step that was queued whole behind a long spin, so that the device never waits for the host.

        None if the device reached the step before the host had queued it all: the step waits for the device itself, or has more kernels
        than the queue holds. A longer spin would be waited for as well, and takes seconds of everybody's time.
        """
        self.synchronize()
        began = time.perf_counter()
        step()
        spin_s = QUEUE_FILL_FACTOR * (time.perf_counter() - began) + QUEUE_FILL_S
        self.synchronize()
        return self._queued_span_ms(step, spin_s) if spin_s <= MAX_QUEUE_FILL_S else None

    def summary(self) -> dict[str, Scalar]:
        seen: dict[str, Scalar] = {"gpu_others_visible": self._gpu.sees_processes() if self._gpu else False}
        return super().summary() | seen | _summary(self._readings, self._last.at_s - self._first.at_s)

    def _read(self, gpu: Gpu) -> GpuReading:
        self._readings.append(gpu.read())
        return self._readings[-1]

    def _queued_span_ms(self, step: Callable[[], object], spin_s: float) -> float | None:
        start, end = event(), event()
        spin(int(spin_s * _ASSUMED_MHZ * 1e6))
        start.record()
        step()
        end.record()
        ran_dry = start.query()  # type: ignore[no-untyped-call]
        self.synchronize()
        return None if ran_dry else float(start.elapsed_time(end))

    def _spin_ms(self, cycles: int) -> float:
        start, end = event(), event()
        start.record()
        spin(cycles)
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end))


def _summary(readings: list[GpuReading], elapsed_s: float) -> dict[str, Scalar]:
    clocks, temperatures, powers = (
        [value for reading in readings if (value := getattr(reading, name)) is not None]
        for name in ("clock_mhz", "temperature_c", "power_w")
    )
    found: dict[str, Scalar] = {}
    if clocks:
        found |= {"sm_clock_mhz_min": min(clocks), "sm_clock_mhz_max": max(clocks)}
    if temperatures:
        found["gpu_temperature_c_max"] = max(temperatures)
    if powers:
        found["gpu_power_w_max"] = max(powers)
    caps = [reading.power_cap_ns for reading in readings if reading.power_cap_ns is not None]
    if caps and elapsed_s > 0:
        found["power_cap_share"] = min(1.0, (caps[-1] - caps[0]) / 1e9 / elapsed_s)
    return found


def machine_for(device: torch.device, gpu_uuid: str | None, busy: Callable[[], str | None]) -> HostMachine:
    """The machine that steps on ``device`` run on; ``busy`` tells why somebody else was at work on it when pairs began, if so."""
    if device.type != "cuda":
        return HostMachine()
    return CudaMachine(device, Nvml.open(gpu_uuid, os.getpid()) if gpu_uuid else None, busy=busy)


def read_host(proc: Path) -> HostReading:
    """Counters under ``proc``, a directory like /proc."""
    thread = threading.get_native_id()
    return HostReading(
        at_s=time.monotonic(),
        pressure_s=_first(_pressure(proc / "pressure" / "cpu")),
        steal_s=_first(_steal(proc / "stat")),
        wait_s=_first(_wait(proc / "self" / "task" / str(thread) / "schedstat")),
        page_faults=resource.getrusage(resource.RUSAGE_SELF).ru_minflt,
    )


def rise(before: Number | None, after: Number | None) -> Number | None:
    """By how much a counter rose; None where it is not known."""
    return None if before is None or after is None else after - before


def share(before: HostReading, after: HostReading, name: str) -> float | None:
    """By how much the counter ``name`` rose, as a share of the time between the readings."""
    then, now, elapsed_s = getattr(before, name), getattr(after, name), after.at_s - before.at_s
    return None if then is None or now is None or elapsed_s <= 0 else (now - then) / elapsed_s


def _pressure(path: Path) -> Iterator[float]:
    for line in _lines(path):
        if line.startswith("some "):
            yield int(line.rpartition("total=")[2]) / 1e6


def _steal(path: Path) -> Iterator[float]:
    lines = _lines(path)
    processors = sum(line.startswith("cpu") for line in lines) - 1
    if processors > 0 and len(lines[0].split()) > 8:
        yield int(lines[0].split()[8]) / 100 / processors


def _wait(path: Path) -> Iterator[float]:
    for line in _lines(path):
        yield int(line.split()[1]) / 1e9


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").splitlines()
    except OSError:
        return []


def _first(values: Iterator[float]) -> float | None:
    return next(values, None)

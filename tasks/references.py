"""What a compiled step is compared with, best first, and what each kind costs: the fall-backs of ``tasks.accuracy``.

A model that fills its device has no room for a float64 copy beside it. The order is fixed: what is tried next gives memory free, then time,
and only the last two give up digits. Every reference that was passed over is named in the row, with the reason.

1. float64 on the device;
2. the same, with the results of all arms held on the host;
3. the same, with the saved state on the host as well;
4. the same, in chunks of the batch, where eager in chunks gives what eager gives;
5. the same, on the host's processors, if the time and the host's memory allow, and neighbours give no memory back for another try of 3;
6. float32 without TF32, where the task runs under autocast;
7. none: eager is the reference; first with everything on the device, then on the host.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from tasks import step
from tasks.step import Workload

FIRST_CHUNKS = 4
_PROBE = 1024  # rows and columns of the product that tells how fast the host computes in float64
_BEYOND_PRODUCTS = 2.0  # time of a step over that of its matrix products and convolutions
_FLOAT64_GROWTH = 4  # bytes of a float64 step on the host over those of the eager step, which may be in half precision


@dataclass(frozen=True, slots=True)
class Reference:
    """How a reference is made: its dtype (None: there is none), in how many chunks, where, and what is held on the host meanwhile."""

    dtype: torch.dtype | None
    results_on_host: bool = False
    state_on_host: bool = False
    chunks: int = 1
    on_cpu: bool = False

    def __str__(self) -> str:
        name = "none" if self.dtype is None else str(self.dtype).removeprefix("torch.")
        name += f" in {self.chunks} chunks" if self.chunks > 1 else " on the CPU" if self.on_cpu else ""
        held = [what for what, is_held in (("results", self.results_on_host), ("saved state", self.state_on_host)) if is_held]
        return f"{name}, {' and '.join(held)} on the host" if held else name

    @property
    def all_on_host(self) -> bool:
        """The device holds nothing but the model and what a step needs."""
        return self.results_on_host and self.state_on_host


def candidates(workload: Workload, *, has_own_memory: bool, state_on_host: bool) -> list[Reference]:
    """The references to try, in order. On a device without memory of its own, holding things on the host gains nothing."""
    full = Reference(torch.float64)
    found = [full]
    if has_own_memory:
        found += [replace(full, results_on_host=True), replace(full, results_on_host=True, state_on_host=True)]
    least = found[-1]
    found += [replace(least, chunks=count) for count in chunk_counts(step.batch_of(workload))]
    if has_own_memory:
        found.append(replace(least, on_cpu=True))
    if workload.autocast_dtype is not None:
        found.append(replace(least, dtype=torch.float32))
    found += [replace(full, dtype=None), replace(least, dtype=None)]
    return list(dict.fromkeys(replace(one, state_on_host=one.state_on_host or state_on_host) for one in found))


def fails_alike(failed: Reference, other: Reference) -> bool:
    """``failed`` did not run, and not for lack of memory: ``other`` would not run either."""
    if failed.chunks > 1:
        return other.chunks > 1
    return (failed.dtype, failed.on_cpu) == (other.dtype, other.on_cpu)


def chunk_counts(batch: int | None) -> list[int]:
    """A few chunks of equal size, then one sample each; none where there is nothing to divide."""
    if batch is None or batch < 2:
        return []
    few = next((count for count in range(FIRST_CHUNKS, batch) if batch % count == 0), batch)
    return list(dict.fromkeys((few, batch)))


def too_much_for_the_host(workload: Workload, device: torch.device, iterations: int, time_s: float) -> str | None:
    """Why the reference should not be computed on the host; None if it should. Takes one eager step and a moment of the processors."""
    peak_bytes = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    free_bytes = _free_host_bytes()
    if free_bytes is not None and _FLOAT64_GROWTH * peak_bytes > free_bytes:
        return f"needs up to {_FLOAT64_GROWTH * peak_bytes / 2**30:.0f} GiB on the host, which has {free_bytes / 2**30:.0f} free"
    with FlopCounterMode(display=False) as counter:
        workload.step()
    needed_s = _BEYOND_PRODUCTS * counter.get_total_flops() * iterations / _host_flops()
    return f"would take {needed_s:.0f} s, and {time_s:.0f} are left for it" if needed_s > time_s else None


def _host_flops() -> float:
    """Floating-point operations per second of a float64 matrix product on the host."""
    matrix = torch.rand(_PROBE, _PROBE, dtype=torch.float64, device="cpu")
    times = []
    for _ in range(2):
        began = time.perf_counter()
        torch.mm(matrix, matrix)
        times.append(time.perf_counter() - began)
    return 2.0 * _PROBE**3 / max(min(times), 1e-9)


def _free_host_bytes() -> int | None:
    """Memory that this process could still take; None where the kernel does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    free = [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    try:
        group = Path("/sys/fs/cgroup")
        free.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    except (OSError, ValueError):  # no limit, or another layout
        pass
    return min(free, default=None)

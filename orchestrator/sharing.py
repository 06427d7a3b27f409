"""How many tasks share a device, and what each asks of the cluster for it. Pure.

Compiling is Python on about one core, and timing pauses the neighbours, so cores decide how many tasks a device can feed. Its memory
decides for each task by itself: the more one needs, the more it asks for, and the fewer neighbours are placed beside it. What counts is
what a task holds all the time; its peaks, which are short, take turns in the part of the memory that is kept for them (``tasks.room``).
Ray places tasks by these shares; nothing enforces them. A task that runs out of memory all the same runs again with ``ROOMIER`` times its
share, or with ``ROOMIER_LEAST``, and then alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

MAX_SHARING = 24
"""Beyond it the device is busy with timing alone most of the time."""

MAX_SHARING_BLIND = 4
"""Where nobody can say how much memory the GPUs have."""

SPARE_CORES = 0.25
"""Share of a CPU node's cores that is left to Ray and to helper threads, in whole cores: none of two or three. None is left beside a GPU:
whoever times has all of them, because the others stand still meanwhile."""

USABLE_MEMORY = 0.95

HELD_SHARE = 0.5
"""Of a device's memory: what its tasks may hold between their peaks. Given out by whole peaks, the memory of an 80 GB H100 was used by a
third, and half of its cores; given out by 0.6 of them, large models held all of it and waited for each other's."""

NEAR_PEAK = 0.3
"""Of a task's time: how long it is near its peak, in its first steps, in the check and while it is timed or waits for that."""

HELD_OF_PEAK = 0.4
"""Where nobody knows what a model holds."""

HOST_MIB = 3072.0
"""Host memory that a task's worker takes with its libraries loaded and kernels compiled, roughly."""

LIGHTEST = 0.25
"""Of an even share: the least that a task asks for where cores see to it that no more than ``tasks`` are placed on a device."""

ROOMIER, ROOMIER_LEAST = 3.0, 0.19
"""For a device to become empty takes as long as its longest task; for a few places, as long as the next few."""

_RAY_STEPS = 10_000
"""Ray counts resources in ten thousandths."""


@dataclass(frozen=True, slots=True)
class Machine:
    """A node, as far as sharing goes. ``gpu_mib`` is the memory of its smallest GPU; None: not known."""

    cores: float
    gpus: int = 0
    memory_mib: float | None = None
    gpu_mib: int | None = None


@dataclass(frozen=True, slots=True)
class Sharing:
    """At most ``tasks`` at once on each device; ``cores`` are there for each device, and ``gpu_mib`` of memory. None: not known.

    ``cores_decide``: a node has one device, and no cores for more tasks than these. Shares of the device are then of its memory alone:
    small tasks leave theirs to large ones, and all ``tasks`` places are taken beside these too.
    """

    tasks: int = 1
    cores: float | None = None
    gpu_mib: int | None = None
    why: str = ""
    cores_decide: bool = False

    def gpu_share(self, peak_mib: float | None, held_mib: float | None = None) -> float:
        """What part of a GPU a task asks for, at most the whole of it.

        Neither may all tasks together hold more than ``HELD_SHARE`` of the memory, nor take more than all of it in the mean over time, nor
        may those beside this one hold so much that its own peak does not fit. ``held_mib`` None: not known.
        """
        even = _floor(1.0 / self.tasks)
        if self.tasks == 1 or peak_mib is None or self.gpu_mib is None:
            return even
        usable_mib = USABLE_MEMORY * self.gpu_mib
        held_mib = HELD_OF_PEAK * peak_mib if held_mib is None else held_mib
        by_held = held_mib / (HELD_SHARE * usable_mib)
        by_mean = (held_mib + NEAR_PEAK * max(0.0, peak_mib - held_mib)) / usable_mib
        by_peak = 1.0 - (1.0 - peak_mib / usable_mib) / HELD_SHARE
        least = _ceil(LIGHTEST * even) if self.cores_decide else even
        return min(1.0, max(least, _ceil(max(by_held, by_mean, by_peak))))

    def cpus(self, usual: float) -> float:
        """Cores that a task asks for: ``usual``, or fewer, so that they are not what keeps ``tasks`` from running at once."""
        if self.tasks == 1 or self.cores is None:
            return usual
        return min(usual, max(1 / _RAY_STEPS, _floor(self.cores / self.tasks)))


def work_out(
    wanted: int | Literal["auto"], device: str, machines: Sequence[Machine], num_cpus: float | None, to_run: int | None = None
) -> Sharing:
    """The sharing of a cluster's devices; the same on all its nodes, and so that of the poorest.

    Args:
        wanted: the manifest's ``execution.sharing``.
        device: "cuda" or "cpu". All cores of a node are one device of the kind "cpu".
        machines: the nodes; on CUDA those with GPUs count.
        num_cpus: cores per task, where the manifest names a number.
        to_run: how many tasks there are. Ray fills a node's first GPU before it takes the second: with more places than tasks the last
            GPUs would have none.
    """
    if device == "cuda":
        machines = [machine for machine in machines if machine.gpus > 0]
    if not machines:
        return Sharing(1 if wanted == "auto" else wanted)
    cores = min(machine.cores / (machine.gpus if device == "cuda" else 1) for machine in machines)
    gpu_mib = _smallest_gpu(machines) if device == "cuda" else None
    if wanted != "auto":
        return Sharing(wanted, cores, gpu_mib, "the manifest's number")
    by_cores = f"{cores:g} cores per device"
    bounds = {
        by_cores: _by_cores(device, cores, num_cpus),
        "host memory": min(_by_host_memory(machine, device) for machine in machines),
        "the most that pays": MAX_SHARING,
    }
    if device == "cuda" and gpu_mib is None:
        bounds["GPUs of unknown memory"] = MAX_SHARING_BLIND
    if device == "cuda" and to_run and any(machine.gpus > 1 for machine in machines):
        bounds["tasks per GPU"] = math.ceil(to_run / sum(machine.gpus for machine in machines))
    why = min(bounds, key=lambda name: bounds[name])
    return Sharing(bounds[why], cores, gpu_mib, why, why == by_cores and all(machine.gpus == 1 for machine in machines))


def roomier(share: float) -> float:
    """What a task asks for that ran out of memory with ``share``."""
    return min(1.0, max(ROOMIER_LEAST, ROOMIER * share))


def _by_cores(device: str, cores: float, num_cpus: float | None) -> int:
    spare = math.floor(cores * SPARE_CORES) if device == "cpu" else 0
    return max(1, int((cores - spare) / (num_cpus or 1.0)))


def _by_host_memory(machine: Machine, device: str) -> int:
    if machine.memory_mib is None:
        return MAX_SHARING
    return max(1, int(machine.memory_mib / (machine.gpus if device == "cuda" else 1) / HOST_MIB))


def _smallest_gpu(machines: Sequence[Machine]) -> int | None:
    sizes = [machine.gpu_mib for machine in machines]
    return None if None in sizes else min(size for size in sizes if size is not None)


def _floor(share: float) -> float:
    return math.floor(share * _RAY_STEPS + 1e-9) / _RAY_STEPS


def _ceil(share: float) -> float:
    return math.ceil(share * _RAY_STEPS - 1e-9) / _RAY_STEPS

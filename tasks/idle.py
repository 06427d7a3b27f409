"""Whether a GPU has nothing else to do. A neighbour whose processes are stopped computes on until its queue is empty. Pure.

NVML's utilisation is an average over longer than an autotuner's benchmark takes. A short kernel that does nothing tells at once: it is
late if the device is with somebody else, because a GPU gives each process a slice of a millisecond or more before it turns to the next,
and longer than its equals if the device turned away from it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

PROBES = 5
"""So many in a row must find the device idle. The gaps between them are where it would turn to another process."""

STEADY = 1.25
"""How much longer the longest of them may take than the shortest; the clock may rise meanwhile."""

SLACK_MS = 0.5
"""What the host may see beyond the device's own count: the launch and the way back. Less than a slice."""

LIMIT_S = 3.0
"""A neighbour's queue is empty long before, or somebody else is at work who will not stop."""

BUDGET_S = 6.0
"""Of one process in all: an autotuner asks many times, and a device that is never idle must not cost it the limit each time."""


@dataclass(frozen=True, slots=True)
class Probe:
    """How long a short kernel took by the device's count, and from its launch to its end by the host's."""

    device_ms: float
    host_ms: float


@dataclass(frozen=True, slots=True)
class Quiet:
    """What came of waiting: whether the device fell idle, and after how long."""

    idle: bool
    waited_s: float


def is_idle(probes: Sequence[Probe]) -> bool:
    """Whether the last ``PROBES`` found nobody else on the device."""
    last = probes[-PROBES:]
    spans_ms = [probe.device_ms for probe in last]
    punctual = all(probe.host_ms - probe.device_ms <= SLACK_MS for probe in last)
    return len(last) == PROBES and punctual and max(spans_ms) <= STEADY * min(spans_ms)


def wait_until_idle(probe: Callable[[], Probe], clock: Callable[[], float], limit_s: float = LIMIT_S) -> Quiet:
    """Probe until the device is idle, for about ``limit_s`` at most."""
    began_s = clock()
    probes: list[Probe] = []
    while True:
        probes.append(probe())
        waited_s = clock() - began_s
        if is_idle(probes):
            return Quiet(True, waited_s)
        if waited_s >= limit_s:
            return Quiet(False, waited_s)

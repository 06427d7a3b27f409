"""Steps on a CUDA device whose length is known beforehand, because the device spins for so many of its cycles.

The spin is one thread of one multiprocessor: it draws little power, so that the clock stays where it is. What a step costs besides, to
launch it and to wait for its end, is measured apart (``fixed_ms``): the truth for the clock of the host is the spin and that.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from tasks.environment import gpu_uuid
from tasks.hardware import HostMachine, machine_for

WARM_S = 0.5
ASSUMED_CYCLES_PER_MS = 2_000_000

Step = Callable[[], object]


def cuda_device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device())


def fresh_machine(device: torch.device) -> HostMachine:
    """A machine to measure on, as a task makes it; its counters begin now."""
    return machine_for(device, gpu_uuid(device))


def spin(cycles: float) -> Step:
    """A step that keeps the device busy for so many cycles of its clock."""
    whole = int(cycles)
    return lambda: torch.cuda._sleep(whole)  # type: ignore[no-untyped-call]


def before(step: Step, delay: Step) -> Step:
    """``step`` after the host has done ``delay``."""

    def delayed() -> None:
        delay()
        step()

    return delayed


def after(step: Step, delay: Step) -> Step:
    """``step``, and then the host does ``delay`` while the device is at work."""
    return before(delay, step)


def busy_wait(seconds: float) -> Step:
    """The host does nothing of use for so long, to a few hundred nanoseconds; a sleep would take tens of microseconds longer."""

    def wait() -> None:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            pass

    return wait


def keep_busy(machine: HostMachine, step: Step, seconds: float = WARM_S) -> None:
    """Repeat ``step`` until the device's clock has had the time to rise."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        step()
        machine.synchronize()


def cycles_per_ms(machine: HostMachine) -> float:
    """What to give to ``spin`` for a millisecond, at the clock of a busy device."""
    keep_busy(machine, spin(10 * ASSUMED_CYCLES_PER_MS))
    return 1000 * statistics.median(_clock_mhz(machine) for _ in range(5))


def host_ms(machine: HostMachine, step: Step, steps: int = 20) -> float:
    """Median time of ``step`` on the clock of the host, each between two synchronisations."""
    return statistics.median(one_host_ms(machine, step) for _ in range(steps))


def one_host_ms(machine: HostMachine, step: Step) -> float:
    machine.synchronize()
    began_ns = machine.now_ns()
    step()
    machine.synchronize()
    return (machine.now_ns() - began_ns) / 1e6


def fixed_ms(machine: HostMachine, per_ms: float, rounds: int = 15) -> float:
    """What a spin of any length costs besides itself, in ms: the intercept of the line through spins of 1 ms and 10 ms."""
    short, long = spin(per_ms), spin(10 * per_ms)
    times = [(one_host_ms(machine, short), one_host_ms(machine, long)) for _ in range(rounds)]
    short_ms, long_ms = (float(statistics.median(column)) for column in zip(*times, strict=True))
    return short_ms - (long_ms - short_ms) / 9


def _clock_mhz(machine: HostMachine) -> float:
    found = machine.clock_mhz()
    if found is None:
        raise RuntimeError("the clock of the device cannot be read: a longer spin took no longer")
    return found

"""Warming both sides up until nothing changes any more, or until the time for it is over."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from tasks.stepper import Machine, Side, Stepper, Window

TIME_TOLERANCE = 0.02  # of ln(median): two windows this close are quiet
TIME_ERRORS = 2.0  # or this close in standard errors of the difference: steps that scatter never come closer
CLOCK_TOLERANCE = 0.03  # a GPU at its power limit hunts by a few steps of 0.8 %
CLOCK_READINGS, CLOCK_SPACING_S = 3, 0.2
QUIET_CALLS = 3  # compiled calls since the compiler last did anything
WINDOW_CALLS = 5
LONG_WINDOW_CALLS, LONG_STEPS_NS = 3, 50_000_000  # where a step of both arms takes longer than that: windows of five outlast the pairs
WINDOW_NS, MAX_WINDOW_CALLS = 25_000_000, 200  # windows of short steps are lengthened


@dataclass(frozen=True, slots=True)
class Warmth:
    """Median times in ns of each side's last window, and what was still moving when the time was over (None: nothing)."""

    times_ns: tuple[float, float]
    unconverged: str | None


def warm_up(stepper: Stepper, *, least_s: float, most_s: float, left_s: Callable[[], float]) -> Warmth:
    """Step both sides in turn, at least for ``least_s`` and at most for ``most_s`` seconds.

    Quiet is: the medians of two successive windows agree, as far as their scatter lets them, the compiler has been idle, and the device's
    clock is steady. ``left_s`` tells the seconds until the deadline; no window begins that would use up more than half of them.
    """
    machine = stepper.machine
    began_ns = machine.now_ns()
    compiler, clock = _Compiler(stepper.sides[1]), _Clock(machine)
    windows = stepper.window(1)
    compiler.quiet(1)
    times_ns = _medians(windows)
    calls = _window_calls(times_ns, most_s)
    before = windows if calls == 1 else None
    moving = "times"
    while True:
        elapsed_s = (machine.now_ns() - began_ns) / 1e9
        ahead_s = calls * sum(times_ns) / 1e9
        if elapsed_s + ahead_s > max(most_s, least_s) or 2 * ahead_s > left_s():
            return Warmth(times_ns, f"{moving} not steady after {elapsed_s:.1f} s")
        windows = stepper.window(calls)
        times_ns = _medians(windows)
        states = {"compiler": compiler.quiet(calls), "clock": clock.quiet(), "times": _close(windows, before)}
        moving = ", ".join(name for name, quiet in states.items() if not quiet) or "nothing"
        if all(states.values()) and machine.now_ns() - began_ns >= least_s * 1e9:
            return Warmth(times_ns, None)
        before = windows


def _window_calls(times_ns: tuple[float, float], most_s: float) -> int:
    """Five, more of short steps, three of long ones, fewer where two windows would take over half of the time allowed."""
    affordable = int(most_s * 1e9 / (4 * sum(times_ns)))
    least = WINDOW_CALLS if sum(times_ns) < LONG_STEPS_NS else LONG_WINDOW_CALLS
    wanted = max(least, min(MAX_WINDOW_CALLS, math.ceil(WINDOW_NS / min(times_ns))))
    return max(1, min(affordable, wanted))


def _medians(windows: tuple[Window, Window]) -> tuple[float, float]:
    return windows[0].median_ns, windows[1].median_ns


def _close(now: tuple[Window, Window], before: tuple[Window, Window] | None) -> bool:
    return before is not None and all(_agree(one, other) for one, other in zip(now, before, strict=True))


def _agree(one: Window, other: Window) -> bool:
    tolerance = max(TIME_TOLERANCE, TIME_ERRORS * math.hypot(one.error, other.error))
    return abs(math.log(one.median_ns / other.median_ns)) <= tolerance


@dataclass(slots=True)
class _Compiler:
    """Whether the compiled side's compiler has been idle for ``QUIET_CALLS``."""

    side: Side
    state: object = None
    calls: int = 0

    def __post_init__(self) -> None:
        self.state = self.side.activity()

    def quiet(self, calls: int) -> bool:
        state = self.side.activity()
        self.calls = self.calls + calls if state == self.state else 0
        self.state = state
        return self.calls >= QUIET_CALLS


@dataclass(slots=True)
class _Clock:
    """Whether the last readings of the device's clock agree; a clock that cannot be read counts as steady."""

    machine: Machine
    readings: list[float] = field(default_factory=list)
    read_ns: int | None = None

    def quiet(self) -> bool:
        now_ns = self.machine.now_ns()
        if self.read_ns is None or now_ns - self.read_ns >= CLOCK_SPACING_S * 1e9:
            reading = self.machine.clock_mhz()
            if reading is None:
                return True
            self.readings = [*self.readings, reading][-CLOCK_READINGS:]
            self.read_ns = now_ns
        return len(self.readings) == CLOCK_READINGS and max(self.readings) <= min(self.readings) * (1 + CLOCK_TOLERANCE)

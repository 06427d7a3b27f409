"""Stepping the two sides of a measurement, and writing down every step.

The pieces of ``tasks.measure`` that know nothing of rules: what a side and a machine are, and how one step, one window and the blocks of
one visit are timed. A step is timed on the host's clock, between two synchronisations of the device.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np

from tasks.estimator import MAD_TO_SD
from tasks.spec import Arm, Blocks, Samples, beside

_ARMS = (Arm.EAGER.value, Arm.COMPILED.value)


class RecompiledError(RuntimeError):
    """A compiled step compiled again while it was timed; the message holds the compiler's reason."""


class Machine(Protocol):
    """What a measurement needs of the machine that it runs on."""

    def now_ns(self) -> int:
        """The monotonic clock of the host."""

    def synchronize(self) -> None:
        """Wait until the device has done all its work."""

    def sleep(self, seconds: float) -> None:
        """Do nothing, so that the device may cool down."""

    def clock_mhz(self) -> float | None:
        """The device's clock now; None where it cannot be read."""

    def begin(self) -> None:
        """What has happened so far counts no more: both sides are warm, and nobody else is at work."""

    def mark(self) -> None:
        """A visit begins: remember the counters."""

    def border(self) -> Border:
        """A visit has ended: how the machine is, and what it counted since ``mark`` or the border before."""

    def fault(self) -> str | None:
        """What spoilt the blocks since ``mark``, a throttled clock for example; None: nothing did."""

    def contaminated(self) -> str | None:
        """Who else used the device or its processors over the measurement as a whole; None: nobody."""

    def event_ms(self, step: Callable[[], object]) -> float | None:
        """From the first to the last of one step on an idle device, waits for the host included; None where there is no such clock."""

    def device_ms(self, step: Callable[[], object]) -> float | None:
        """Time the device is busy with one step; None where that cannot be told."""


@dataclass(frozen=True, slots=True)
class Border:
    """The machine between two visits: the columns of ``tasks.spec.Blocks`` that it fills. None is "not known here"."""

    sm_clock_mhz: float | None = None
    memory_clock_mhz: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    energy_mj: int | None = None
    power_cap_ns: int | None = None
    slowdown_ns: int | None = None
    clock_reasons: str | None = None
    other_processes: str | None = None
    cpu_pressure_s: float | None = None
    cpu_steal_s: float | None = None
    cpu_wait_s: float | None = None


@dataclass(frozen=True, slots=True)
class Window:
    """Some successive steps: their median in ns, at least 1, and the standard error of its logarithm (0 for a single step)."""

    median_ns: float
    error: float


def window_of(times_ns: Sequence[int]) -> Window:
    """The error is that of the median of normal values, pi / 2 times that of their mean; their spread is told by the median deviation."""
    logarithms = np.log(np.maximum(np.asarray(times_ns, dtype=np.float64), 1.0))
    spread = MAD_TO_SD * float(np.median(np.abs(logarithms - np.median(logarithms))))
    return Window(max(float(np.median(times_ns)), 1.0), math.sqrt(math.pi / 2 / len(times_ns)) * spread)


@dataclass(frozen=True, slots=True)
class Side:
    """One arm: its step, and the contexts to run it in while warming up and while timing.

    ``strict`` may turn an error of the step into ``RecompiledError``. ``activity`` changes whenever the compiler has done something.
    ``settle`` is called when the side is warm: what the compiler left running would disturb what is timed.
    """

    step: Callable[[], object]
    warm: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext
    strict: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext
    activity: Callable[[], object] = lambda: None
    settle: Callable[[], None] = lambda: None


_NOTHING = Side(lambda: None)
EMPTY_STEPS = 25


@dataclass(slots=True)
class Stepper:
    """Both sides on one machine, and the samples so far: ``sides[0]`` is recorded as the eager arm, ``sides[1]`` as the compiled one."""

    sides: tuple[Side, Side]
    machine: Machine
    phase: str = "timed"
    process: int = 0
    columns: dict[str, list[Any]] = field(default_factory=lambda: {name: [] for name in Samples.__dataclass_fields__})
    borders: dict[str, list[Any]] = field(default_factory=lambda: {name: [] for name in Blocks.__dataclass_fields__})
    blocks: int = 0

    def window(self, calls: int) -> tuple[Window, Window]:
        """Step each side ``calls`` times to warm it up."""
        first, second = (self._warm(which, calls) for which in (0, 1))
        return first, second

    @contextlib.contextmanager
    def visit(self, which: int, washout: int) -> Iterator[Callable[[int, int, int], list[int]]]:
        """The device to side ``which`` for blocks in a row. Yields what takes one: (pair, order, iterations) -> its times in ns.

        ``washout`` steps that do not count come before the first block only: nothing lies between it and the next one. The state of the
        machine is read when the last has ended, and stands with that one.
        """
        side = self.sides[which]
        taken: list[dict[str, Any]] = []

        def block(pair: int, order: int, iterations: int) -> list[int]:
            ahead = 0 if taken else washout
            where = {"pair": pair, "block": self.blocks, "order": order}
            self.blocks += 1  # not to be used again, if the side compiles and the block is broken off
            times = []
            for iteration in range(ahead + iterations):
                started_ns, host_ns = self._step(side)
                self._write(which, self.phase, started_ns, host_ns, **where, iteration=iteration, washout=iteration < ahead)
                times.append(host_ns)
            taken.append(where | {"ended": self.machine.now_ns()})
            return times[ahead:]

        with side.strict():  # entered outside of what is timed; the washout absorbs what the switch costs
            self.machine.synchronize()
            yield block
        for where in taken:
            self._write_border(which, where, self.machine.border() if where is taken[-1] else Border())

    def empty_ns(self) -> float:
        """What a step that does nothing takes on the clock: the reading of it and a synchronisation."""
        return float(np.median([self._step(_NOTHING)[1] for _ in range(EMPTY_STEPS)]))

    def on_device(self, which: int) -> float | None:
        """Time the device is busy with one more step of side ``which``, in ms. The span of another one is taken as well."""
        self._by(which, "event", self.machine.event_ms)
        return self._by(which, "device", self.machine.device_ms)

    def _by(self, which: int, clock: str, measure: Callable[[Callable[[], object]], float | None]) -> float | None:
        with self.sides[which].strict():
            started_ns = self.machine.now_ns()
            found_ms = measure(self.sides[which].step)
        if found_ms is not None:
            self._write(which, beside(self.phase, clock), started_ns, self.machine.now_ns() - started_ns, device_ms=found_ms)
        return found_ms

    def invalidate(self, pair: int, reason: str) -> None:
        """Keep the samples and blocks of ``pair`` but let them count no more, unless they count no more already."""
        for columns in (self.columns, self.borders):
            for row, its_pair in enumerate(columns["pair"]):
                if its_pair == pair and columns["valid"][row]:
                    columns["valid"][row], columns["reason"][row] = False, reason

    def samples(self) -> Samples:
        return Samples(**{name: tuple(column) for name, column in self.columns.items()})

    def states(self) -> Blocks:
        return Blocks(**{name: tuple(column) for name, column in self.borders.items()})

    def _warm(self, which: int, calls: int) -> Window:
        side = self.sides[which]
        with side.warm():
            self.machine.synchronize()
            steps = [self._step(side) for _ in range(calls)]
        for started_ns, host_ns in steps:
            self._write(which, "warmup", started_ns, host_ns)
        return window_of([host_ns for _, host_ns in steps])

    def _step(self, side: Side) -> tuple[int, int]:
        started_ns = self.machine.now_ns()
        side.step()
        self.machine.synchronize()
        return started_ns, self.machine.now_ns() - started_ns

    def _write(self, which: int, phase: str, started_ns: int, host_ns: int, **more: Any) -> None:
        row = {"phase": phase, "arm": _ARMS[which], "process": self.process, "started_ns": started_ns, "host_ns": host_ns, "valid": True}
        row |= {"pair": -1, "block": -1, "order": -1, "iteration": -1, "washout": False} | more
        for name, column in self.columns.items():
            column.append(row.get(name))

    def _write_border(self, which: int, where: dict[str, Any], border: Border) -> None:
        row = {"phase": self.phase, "process": self.process, "arm": _ARMS[which], "valid": True} | where | asdict(border)
        for name, column in self.borders.items():
            column.append(row.get(name))

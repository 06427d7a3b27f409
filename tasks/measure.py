"""The measurement protocol: warm up, take pairs of blocks, stop when the interval is narrow. docs/method.md gives the reasons.

The engine knows no torch. It is given two sides to step, a machine (clock, synchronisation, what went on meanwhile) and the rules; tests
drive this same code with simulated clocks. It keeps every iteration, and it discards pairs for what the machine reports, never for how
long they took.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import math
import operator
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from tasks import estimator
from tasks.spec import Arm, Blocks, MeasureSpec, Quality, Samples
from tasks.stepper import Machine, RecompiledError, Side, Stepper
from tasks.warmup import warm_up

LONG_ITERATION_NS = 300_000_000  # blocks of longer iterations are shortened to LONG_BLOCK
LONG_BLOCK = 3
SHORT_BLOCK_NS = 20_000_000  # blocks of short iterations are lengthened to this, or to MAX_BLOCK iterations
MAX_BLOCK = 200
DEADLINE_SHARE = 0.8  # of the phase's deadline; the rest is for the unforeseen
MAX_FAULTS_IN_A_ROW = 3
MAX_DISCARDED = 0.25  # of all pairs; with more the row is noisy
DEVICE_ITERATIONS, DEVICE_S = 3, 0.12  # or as many as fit, and one at least: the GPU tells what its work takes to two thousandths
DEVICE_STEPS = 6  # as long as so many steps: three of them, one of which waits behind a queue that is filled for twice as long
BACKOFF_S, BACKOFF_FACTOR, BACKOFF_MAX_S = 0.05, 1.5, 0.5
UNPAIRED = "unpaired"  # why the block of a pair that was not finished does not count


@dataclass(frozen=True, slots=True)
class Timing:
    """What a measurement found. ``flags`` says in words what ``quality`` says in one."""

    samples: Samples
    summary: estimator.Summary
    quality: Quality
    flags: tuple[str, ...]
    blocks: Blocks
    empty_us: float  # what a step that does nothing takes


WORST_FIRST = (
    Quality.CONTAMINATED,
    Quality.RECOMPILED,
    Quality.DRIFT,
    Quality.NOISY,
    Quality.WARMUP_UNCONVERGED,
    Quality.WIDE,
    Quality.OK,
)


def worst_quality(qualities: Iterable[str]) -> Quality:
    """The most serious of ``qualities``, of which there is at least one."""
    return min(map(Quality, qualities), key=WORST_FIRST.index)


def against_itself(timings: Mapping[Arm, Timing]) -> Timing:
    """The measurements of either arm against itself as one: all samples, and the worst quality."""
    samples = estimator.joined([timing.samples for timing in timings.values()])
    return Timing(
        samples=samples,
        summary=estimator.summarise(samples),
        quality=worst_quality(timing.quality for timing in timings.values()),
        flags=tuple(f"{arm} against itself: {flag}" for arm, timing in timings.items() for flag in timing.flags),
        blocks=estimator.joined([timing.blocks for timing in timings.values()]),
        empty_us=max(timing.empty_us for timing in timings.values()),
    )


@dataclass(frozen=True, slots=True)
class Plan:
    """How pairs are taken: washout iterations per visit and timed ones per block, the floor of pairs, and what one pair takes."""

    washout: int
    iterations: int
    min_pairs: int
    pair_s: float


def measure(
    sides: tuple[Side, Side],
    machine: Machine,
    spec: MeasureSpec,
    *,
    seed: int,
    deadline_s: float,
    warm_s: float = 0.0,
    phase: str = "timed",
    process: int = 0,
    alone: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext,
) -> Timing:
    """Warm both sides up and take pairs until the interval is narrow enough or a limit is reached.

    The first side is written down as the eager arm and the second as the compiled one, whatever they run: equal sides make an A/A test.
    ``deadline_s`` is when the phase would be killed; ``warm_s`` the least time to warm up for. What counts is taken within ``alone``.

    Raises:
        RecompiledError: the compiled side compiled again even after a second warm-up.
    """
    end_ns = machine.now_ns() + int(DEADLINE_SHARE * deadline_s * 1e9)
    run = _Run(Stepper(sides, machine, phase, process), spec, random.Random(seed), end_ns, warm_s)
    with quiet_collector():
        run.warm()
        with alone():
            machine.begin()
            run.take_pairs()
            for which in (0, 1):
                run.on_device(which)
    samples = run.stepper.samples()
    summary = estimator.summarise(samples, phase)
    quality, flags = run.judge(summary, estimator.lopsided(samples, phase))
    return Timing(samples, summary, quality, flags, run.stepper.states(), run.empty_ns / 1e3)


def plan_pairs(times_ns: tuple[float, float], spec: MeasureSpec, left_s: float) -> Plan:
    """Blocks and floor of pairs for iterations of ``times_ns``, with ``left_s`` seconds until the deadline.

    Blocks shrink, to a single iteration, until ``spec.min_pairs`` fit into ``spec.max_time_s``; what does not fit then takes longer. Only
    when not even those fit before the deadline are visits without washout, and the floor of pairs shrinks.
    """
    washout, iterations = 1, spec.block_iterations
    if max(times_ns) > LONG_ITERATION_NS:
        iterations = min(iterations, LONG_BLOCK)
    iterations = max(iterations, min(MAX_BLOCK, math.ceil(SHORT_BLOCK_NS / min(times_ns))))
    iteration_s = sum(times_ns) / 1e9  # of both arms
    within_cap, within_deadline = (seconds / (spec.min_pairs * iteration_s) for seconds in (spec.max_time_s, left_s))
    ahead = (spec.min_pairs + 1) / (2 * spec.min_pairs)  # washouts per block: so many pairs are made of one visit more
    if within_deadline < 1 + ahead:
        washout, ahead = 0, 0.0
    iterations = min(iterations, max(1, int(min(within_cap, within_deadline) - ahead)))  # per block and arm
    pair_s = (ahead + iterations) * iteration_s
    return Plan(washout, iterations, max(1, min(spec.min_pairs, int(left_s / pair_s))), pair_s)


def alternating_orders(chance: random.Random) -> Iterator[tuple[int, int]]:
    """Which side comes first and second in each pair: ABBA, from a random start."""
    first = chance.randrange(2)
    while True:
        yield first, 1 - first
        first = 1 - first


FIRST, SECOND = 0, 1


def visits(orders: Iterable[tuple[int, int]]) -> Iterator[tuple[int, Iterator[int]]]:
    """Which side has the device next, and what its blocks are there, ``FIRST`` or ``SECOND`` of a pair.

    The second block of a pair and the first of the next are one visit where both are of the same side.
    """
    turns = ((which, position) for order in orders for position, which in enumerate(order))
    for which, group in itertools.groupby(turns, key=operator.itemgetter(0)):
        yield which, (position for _, position in group)


@dataclass(frozen=True, slots=True)
class _Half:
    """A pair of which one block has been taken."""

    number: int
    which: int
    times_ns: list[int]


@dataclass(slots=True)
class _Run:
    """One measurement in progress."""

    stepper: Stepper
    spec: MeasureSpec
    chance: random.Random
    end_ns: int
    warm_s: float
    times_ns: tuple[float, float] = (1.0, 1.0)
    empty_ns: float = 0.0
    washout: int = 1
    ratios: list[float] = field(default_factory=list)
    pairs: int = 0
    half: _Half | None = None
    faults: list[str] = field(default_factory=list)
    in_a_row: int = 0
    gave_up: bool = False
    unconverged: str | None = None
    recompiled: str | None = None

    @property
    def machine(self) -> Machine:
        return self.stepper.machine

    def left_s(self) -> float:
        return (self.end_ns - self.machine.now_ns()) / 1e9

    def warm(self) -> None:
        warmth = warm_up(self.stepper, least_s=self.warm_s, most_s=self.spec.warmup_max_s, left_s=self.left_s)
        self.times_ns, self.unconverged = warmth.times_ns, warmth.unconverged
        for side in self.stepper.sides:
            side.settle()

    def take_pairs(self) -> None:
        """Enough pairs; if the compiled side compiles meanwhile, warm it up and start over, once: its old code is timed no more."""
        try:
            self._take_pairs()
        except RecompiledError as error:
            self._start_over(error)
            self._take_pairs()

    def _take_pairs(self) -> None:
        """Pairs until the interval is narrow, a cap is reached, the deadline is near or the machine is unfit."""
        self.empty_ns = self.stepper.empty_ns()
        plan = plan_pairs(self.times_ns, self.spec, self.left_s())
        self.washout, self.half, self.in_a_row = plan.washout, None, 0
        over = partial(self._over, plan, self.machine.now_ns(), self.pairs)
        for which, positions in visits(alternating_orders(self.chance)):
            fault = self._visit(plan, which, positions, over)
            self.gave_up = self.in_a_row > MAX_FAULTS_IN_A_ROW
            if self.gave_up or (self.half is None and over(0)) or self._narrow(plan):
                self._leave_half()
                return
            if fault:
                self.machine.sleep(min(BACKOFF_S * BACKOFF_FACTOR ** (self.in_a_row - 1), BACKOFF_MAX_S))

    def on_device(self, which: int) -> None:
        """Take the device's own time of a few more iterations, as long as it can be told and there is time for it."""
        began_ns = self.machine.now_ns()
        for iteration in range(DEVICE_ITERATIONS):
            if iteration and self.machine.now_ns() - began_ns > DEVICE_S * 1e9:
                return
            if self.left_s() < DEVICE_STEPS * self.times_ns[which] / 1e9:
                return
            try:
                found = self.stepper.on_device(which)
            except RecompiledError as error:
                self.recompiled = str(error)
                return
            if found is None:
                return

    def judge(self, summary: estimator.Summary, excess: float | None) -> tuple[Quality, tuple[str, ...]]:
        """The quality of the row, most serious first, and all there is to say about it. ``excess`` is that of ``estimator.lopsided``."""
        wanted, half_width = self.spec.half_width, summary.half_width
        drift = estimator.trend(self.ratios) or 0.0
        apart = math.log(summary.speedup_of_medians / summary.speedup) if summary.speedup and summary.speedup_of_medians else 0.0
        bias, overhead = self._bias(summary), f"of {self.empty_ns / 1e3:.1f} us around each iteration"
        width = "no interval" if half_width is None else f"half width {half_width:.4f}"
        found = [
            (Quality.CONTAMINATED, self.gave_up, f"{MAX_FAULTS_IN_A_ROW + 1} bad pairs in a row, the last: {', '.join(self.faults[-1:])}"),
            (Quality.CONTAMINATED, *_reason(self.machine.contaminated())),
            (Quality.RECOMPILED, *_reason(self.recompiled)),
            (Quality.DRIFT, abs(drift) > wanted, f"ln(speedup) moved by {drift:+.3f}"),
            (Quality.NOISY, half_width is None or half_width > 2 * wanted, f"{width} after {summary.pairs} pairs"),
            (Quality.NOISY, len(self.faults) > MAX_DISCARDED * self.pairs, f"{len(self.faults)} of {self.pairs} pairs discarded"),
            (
                Quality.NOISY,
                abs(excess or 0.0) > wanted,
                f"outliers of one arm alone: they move the ratio of means by {excess or 0.0:+.3f}",
            ),
            (Quality.NOISY, abs(apart) > 2 * wanted, f"the ratio of the arms' medians is {apart:+.3f} away"),
            (Quality.NOISY, bias > 2 * wanted, f"clock and synchronisation {overhead} move ln(speedup) by {bias:.3f}"),
            (Quality.WARMUP_UNCONVERGED, *_reason(self.unconverged)),
            (Quality.WARMUP_UNCONVERGED, self.washout == 0, "no time for iterations that do not count"),
            (Quality.WIDE, wanted / 2 < bias <= 2 * wanted, f"clock and synchronisation {overhead} move ln(speedup) by {bias:.3f}"),
            (Quality.WIDE, half_width is not None and wanted < half_width <= 2 * wanted, width),
        ]
        flags = [(quality, f"{quality}: {reason}") for quality, holds, reason in found if holds]
        return (flags[0][0] if flags else Quality.OK), tuple(flag for _, flag in flags)

    def _bias(self, summary: estimator.Summary) -> float:
        """By how much the clock and the synchronisation around each iteration may pull ln(speedup) towards 0."""
        if summary.eager_ms is None or summary.compiled_ms is None:
            return 0.0
        eager_ns, compiled_ns = 1e6 * summary.eager_ms, 1e6 * summary.compiled_ms
        alone = [max(time_ns - self.empty_ns, 1.0) for time_ns in (eager_ns, compiled_ns)]
        return abs(math.log(alone[0] / alone[1]) - math.log(eager_ns / compiled_ns))

    def _visit(self, plan: Plan, which: int, positions: Iterable[int], over: Callable[[int], bool]) -> str | None:
        """The blocks of a visit: the second of a pair, and the first of the next unless it is ``over``; what spoilt them, if anything did.

        What the machine says of a visit is known when it ends, so that a fault takes back what has just become a pair.
        """
        touched: list[int] = []
        known, ended, begun = len(self.ratios), None, None
        self.machine.mark()
        # Nothing is worked out within the visit: a step after a pause is not like one that follows another.
        with self.stepper.visit(which, plan.washout) as block:
            for position in positions:
                if position == SECOND and self.half:
                    touched.append(self.half.number)
                    ended = {self.half.which: self.half.times_ns, which: block(self.half.number, SECOND, plan.iterations)}
                elif position == FIRST:
                    if over(int(ended is not None)):
                        break
                    number, self.pairs = self.pairs, self.pairs + 1
                    touched.append(number)
                    begun = _Half(number, which, block(number, FIRST, plan.iterations))
        self.half = begun
        if ended:
            self.ratios.append(estimator.log_ratio(ended[0], ended[1]))
        fault = self.machine.fault()
        if fault:
            self.half = None
            del self.ratios[known:]
            self._discard(touched, fault)
        elif len(self.ratios) > known:
            self.in_a_row = 0
        return fault

    def _start_over(self, error: RecompiledError) -> None:
        self.recompiled = str(error)
        for pair in range(self.pairs):
            self.stepper.invalidate(pair, "recompiled")
        self.ratios.clear()
        self.warm()

    def _discard(self, pairs: Iterable[int], reason: str) -> None:
        self.in_a_row += 1
        for pair in pairs:
            self.faults.append(reason)
            self.stepper.invalidate(pair, reason)

    def _leave_half(self) -> None:
        """A pair that lacks its second block is none."""
        if self.half:
            self.stepper.invalidate(self.half.number, UNPAIRED)
            self.pairs -= 1
            self.half = None

    def _over(self, plan: Plan, began_ns: int, before: int, ended: int) -> bool:
        """Whether no pair is to follow, whatever the last ones say; at least one is tried.

        ``before``: the pairs that there were; ``ended``: those that have ended and are not among the ratios yet.
        """
        taken, times_up = self.pairs - before, self.machine.now_ns() - began_ns >= self.spec.max_time_s * 1e9
        enough = times_up and len(self.ratios) + ended >= plan.min_pairs
        return taken > 0 and (taken >= self.spec.max_pairs or self.left_s() < plan.pair_s or enough)

    def _narrow(self, plan: Plan) -> bool:
        if len(self.ratios) < plan.min_pairs:
            return False
        pairs = estimator.Pairs(np.asarray(self.ratios), np.zeros(len(self.ratios), dtype=np.int64))
        half_width = estimator.estimate_pairs(pairs).half_width
        return half_width is not None and half_width <= self.spec.half_width


def _reason(reason: str | None) -> tuple[bool, str]:
    return reason is not None, reason or ""


@contextlib.contextmanager
def quiet_collector() -> Iterator[None]:
    """Collect garbage once, then keep the collector out of both arms; within another such block nothing more happens."""
    was_enabled = gc.isenabled()
    if not was_enabled:
        yield
        return
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        gc.enable()

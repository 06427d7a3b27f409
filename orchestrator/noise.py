"""What a run says of the method's own noise: how often intervals of an A/A run hold the truth, and how much fresh processes differ. Pure.

In an A/A run each arm was measured against itself, so the truth is 1.0. Both answers are given by class of model: launch-bound and
device-bound models differ by an order of magnitude in what disturbs them.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from orchestrator.errors import ExitCode, UsageError
from orchestrator.report.answers import ProcessSpread
from orchestrator.report.rows import Row, Run
from orchestrator.statistics.intervals import Interval, wilson
from tasks.spec import Arm, Status

CLASSES = ("launch-bound", "device-bound", "unknown on CUDA", "CPU")
ALL = "all"
FLOOR_SHARE = 0.95


@dataclass(frozen=True, slots=True)
class Ratio:
    """One arm of one task against itself: its ratio and interval, the truth being 1.0."""

    task_id: str
    kind: str  # of CLASSES
    arm: str
    ratio: float
    low: float
    high: float
    quality: str | None

    @property
    def holds(self) -> bool:
        """The interval holds the truth."""
        return self.low <= 1.0 <= self.high


@dataclass(frozen=True, slots=True)
class Floor:
    """The intervals of one class and arm: how many hold 1.0, and how far ratios are from it. Distances are those of the logarithm."""

    kind: str
    arm: str
    intervals: int
    holding: int
    rate: Interval | None  # Wilson's, of holding against intervals
    sd: float  # root mean square distance
    floor: float  # within which FLOOR_SHARE of the distances lie
    half_width: float  # median of the intervals' own


@dataclass(frozen=True, slots=True)
class Noise:
    """A whole A/A run. ``missed``: the ratios whose interval does not hold 1.0. ``without``: tasks that gave none."""

    run_id: str
    planned: int
    floors: tuple[Floor, ...]
    missed: tuple[Ratio, ...]
    without: tuple[tuple[str, str], ...]  # task_id, status
    exit_code: ExitCode


def noise(run: Run) -> Noise:
    """What an A/A run shows.

    Raises:
        UsageError: it is none.
    """
    if not run.aa:
        raise UsageError(f"run {run.run_id} measured eager against compiled; an A/A run is started with `sweep run --aa`")
    devices = {task.task_id: task.device for task in run.planned}
    ratios = [ratio for row in run.rows for ratio in _ratios(row, devices.get(row.task_id, "cuda"))]
    groups: dict[tuple[str, str], list[Ratio]] = defaultdict(list)
    for ratio in ratios:
        for kind in (ratio.kind, ALL):
            for arm in (ratio.arm, ALL):
                groups[kind, arm].append(ratio)
    order = [(kind, arm) for kind in (*CLASSES, ALL) for arm in (*(arm.value for arm in Arm), ALL)]
    measured = {ratio.task_id for ratio in ratios}
    return Noise(
        run_id=run.run_id,
        planned=len(run.planned),
        floors=tuple(_floor(kind, arm, groups[kind, arm]) for kind, arm in order if groups.get((kind, arm))),
        missed=tuple(sorted((ratio for ratio in ratios if not ratio.holds), key=lambda ratio: -abs(math.log(ratio.ratio)))),
        without=tuple((row.task_id, row.status) for row in run.rows if row.task_id not in measured)
        + tuple((task.task_id, "missing") for task in run.missing),
        exit_code=_exit_code(run, measured),
    )


def process_spread(run: Run) -> tuple[ProcessSpread, ...]:
    """How much ``ln(speedup)`` varies between the processes of the tasks that were measured in several, by class, pooled over tasks."""
    devices = {task.task_id: task.device for task in run.planned}
    groups: dict[str, list[np.ndarray[Any, np.dtype[np.float64]]]] = defaultdict(list)
    for row in run.rows:
        if row.passed and len(row.process_speedups) > 1:
            groups[class_of(devices.get(row.task_id, "cuda"), row.launch_bound)].append(np.log(row.process_speedups))
    return tuple(_spread(kind, groups[kind]) for kind in CLASSES if groups.get(kind))


def class_of(device: str, launch_bound: bool | None) -> str:
    """The class of a task on ``device`` ("cpu" or "cuda")."""
    if device == "cpu":
        return "CPU"
    return "unknown on CUDA" if launch_bound is None else "launch-bound" if launch_bound else "device-bound"


def _spread(kind: str, tasks: Sequence[np.ndarray[Any, np.dtype[np.float64]]]) -> ProcessSpread:
    freedom = sum(logs.size - 1 for logs in tasks)
    squares = sum(float(np.sum((logs - logs.mean()) ** 2)) for logs in tasks)
    return ProcessSpread(kind, math.sqrt(squares / freedom), len(tasks), freedom)


def _ratios(row: Row, device: str) -> Iterable[Ratio]:
    kind = class_of(device, row.launch_bound)
    for arm, ratio, low, high in (
        (Arm.EAGER, row.aa_eager, row.aa_eager_low, row.aa_eager_high),
        (Arm.COMPILED, row.aa_compiled, row.aa_compiled_low, row.aa_compiled_high),
    ):
        if ratio is not None and low is not None and high is not None:
            yield Ratio(row.task_id, kind, arm.value, ratio, low, high, row.quality)


def _floor(kind: str, arm: str, ratios: Sequence[Ratio]) -> Floor:
    distances = np.abs(np.log([ratio.ratio for ratio in ratios]))
    holding = sum(ratio.holds for ratio in ratios)
    return Floor(
        kind=kind,
        arm=arm,
        intervals=len(ratios),
        holding=holding,
        rate=wilson(holding, len(ratios)),
        sd=float(np.sqrt(np.mean(distances**2))),
        floor=float(np.quantile(distances, FLOOR_SHARE)),
        half_width=float(np.median([math.log(ratio.high / ratio.low) / 2 for ratio in ratios])),
    )


def _exit_code(run: Run, measured: set[str]) -> ExitCode:
    statuses = [row.status for row in run.rows]
    if run.missing or Status.INFRA_ERROR in statuses or not run.planned:
        return ExitCode.INFRASTRUCTURE
    return ExitCode.PASSED if measured and set(statuses) <= {Status.PASS, Status.SKIPPED} else ExitCode.SOME_FAILED

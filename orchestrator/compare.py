"""Two runs, matched task by task: what changed, how sure that is, and whether the compiled step or the eager baseline moved. Pure.

Only tasks of one batch size that passed in both runs are compared; every other task is listed under what kept it out. A row that the new
run has taken over from the base is the base's own measurement and is not compared either.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from orchestrator.errors import UsageError
from orchestrator.report.environment import differences, mixed
from orchestrator.report.rows import Row, Run
from orchestrator.statistics.differences import (
    FALSE_DISCOVERY_RATE,
    MIN_EFFECT,
    Judgement,
    Scale,
    Verdict,
    judge,
    margin,
    mean_half_width,
    process_scale,
    sign_flip_p,
)
from orchestrator.statistics.intervals import standard_errors
from orchestrator.statistics.means import FloatArray, geomean, weighted_score

COLUMNS = (
    *("task_id", "suite", "model", "dtype", "mode", "backend", "status", "phase", "error", "skip_reason", "carried_from", "batch_size"),
    *("speedup", "speedup_low", "speedup_high", "quality", "eager_ms", "compiled_ms", "compile_s", "eager_peak_mib", "compiled_peak_mib"),
    *("graph_breaks", "fell_back", "node", "device", "gpu_uuid", "machine", "other_versions"),
    *("python", "torch", "triton", "transformers", "timm", "torchvision", "driver", "cuda"),
)
"""What a comparison reads of each row."""


class Moved(StrEnum):
    """Which side of the ratio moved more. Only told where both runs had the same device."""

    COMPILED = "compiled step"
    EAGER = "eager baseline"


@dataclass(frozen=True, slots=True)
class Change:
    """One matched task. ``eager`` and ``compiled`` are ratios of milliseconds, new to base; above 1 that side became slower."""

    task_id: str
    base: Row
    new: Row
    judgement: Judgement
    eager: float | None
    compiled: float | None
    moved: Moved | None

    @property
    def ratio(self) -> float:
        """New speedup over the old."""
        return math.exp(self.judgement.change)

    @property
    def verdict(self) -> Verdict:
        """What can be said of the change."""
        return self.judgement.verdict


@dataclass(frozen=True, slots=True)
class Group:
    """The matched tasks of one dtype, mode and backend, of one suite or (``suite`` None) of all. ``low`` and ``high``: of the ratio."""

    suite: str | None
    dtype: str
    mode: str
    backend: str
    tasks: int
    base: float
    new: float
    low: float
    high: float
    p: float | None  # of a sign-flip permutation test; None for a single task

    @property
    def ratio(self) -> float:
        """New geometric mean over the old."""
        return self.new / self.base


@dataclass(frozen=True, slots=True)
class Score:
    """The weighted scores of both runs over the same tasks, with the interval of their ratio."""

    mode: str
    backend: str
    tasks: int
    base: float
    new: float
    low: float
    high: float

    @property
    def ratio(self) -> float:
        """New score over the old."""
        return self.new / self.base


@dataclass(frozen=True, slots=True)
class Comparison:
    """Everything that ``sweep compare`` says."""

    base_id: str
    new_id: str
    environment: tuple[tuple[str, str, str], ...]  # fact, in base, in new
    scores: tuple[Score, ...]
    groups: tuple[Group, ...]
    changes: tuple[Change, ...]  # by size of the change, the worst first
    newly_failing: tuple[Row, ...]  # rows of the new run
    newly_passing: tuple[Row, ...]
    failing_in_both: tuple[str, ...]
    only_in_base: tuple[str, ...]
    only_in_new: tuple[str, ...]
    unlike: tuple[str, ...]  # passed in both, with other batch sizes
    carried: tuple[str, ...]  # the new run took the base's own row
    scale: Scale
    effect: float  # of ln(speedup)
    margin: float  # within which two are called the same
    rate: float
    remarks: tuple[str, ...] = ()

    def of(self, verdict: Verdict) -> tuple[Change, ...]:
        """The changes with that verdict."""
        return tuple(change for change in self.changes if change.verdict is verdict)


def compare(
    base: Run,
    new: Run,
    *,
    min_effect: float = MIN_EFFECT,
    process_sd: float | None = None,
    rate: float = FALSE_DISCOVERY_RATE,
    allow_mixed: bool = False,
) -> Comparison:
    """Compare ``new`` with ``base``.

    Args:
        base: the run to compare with.
        new: the run in question.
        min_effect: relative change of a speedup below which nothing is called faster or slower.
        process_sd: standard deviation of ln(speedup) between fresh processes; None: estimated from the changes themselves.
        rate: the share of false ones allowed among the tasks called faster or slower.
        allow_mixed: compare runs that mix GPU models or library versions in themselves.

    Raises:
        UsageError: a run is mixed and ``allow_mixed`` is off, or an A/A run, or no task is in both runs.
    """
    for run in (base, new):
        run.refuse_aa("a comparison")
        _refuse_mixed(run, allow_mixed)
    before, after = ({row.task_id: row for row in run.rows} for run in (base, new))
    both = [task_id for task_id in before if task_id in after]
    if not both:
        raise UsageError(f"runs {base.run_id} and {new.run_id} have no task in common")
    passed = [name for name in both if before[name].passed and after[name].passed]
    carried = {name for name in passed if after[name].carried_from and after[name].carried_from in (base.run_id, before[name].carried_from)}
    unlike = {name for name in passed if before[name].batch_size != after[name].batch_size}
    environment = differences([before[name] for name in both], [after[name] for name in both])
    pairs = [(before[name], after[name]) for name in passed if name not in carried | unlike]
    own = _own_errors(pairs)
    measured = [pair for pair, error in zip(pairs, own, strict=True) if math.isfinite(error)]
    singles = _singles(base, new)
    effect = math.log1p(min_effect)
    changes, scale = _changes(measured, own[np.isfinite(own)], singles, effect, process_sd, rate, environment)
    return Comparison(
        base_id=base.run_id,
        new_id=new.run_id,
        environment=environment,
        scores=_scores(changes, new.weights),
        groups=_groups(changes),
        changes=changes,
        newly_failing=tuple(after[name] for name in both if before[name].passed and not after[name].passed),
        newly_passing=tuple(after[name] for name in both if after[name].passed and not before[name].passed),
        failing_in_both=tuple(name for name in both if not before[name].passed and not after[name].passed),
        only_in_base=tuple(name for name in before if name not in after),
        only_in_new=tuple(name for name in after if name not in before),
        unlike=tuple(sorted(unlike - carried)),
        carried=tuple(sorted(carried)),
        scale=scale,
        effect=effect,
        margin=margin(np.array([change.judgement.error for change in changes]), effect),
        rate=rate,
        remarks=_remarks(base, new, len(pairs) - len(measured)),
    )


def _refuse_mixed(run: Run, allow_mixed: bool) -> None:
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in run.rows:
        if row.passed:
            groups[row.mode, row.backend].append(row)
    for rows in groups.values():
        if (found := mixed(rows)) and not allow_mixed:
            raise UsageError(
                f"run {run.run_id} mixes what should not enter one comparison: {found}. Use --allow-mixed to compare it anyway"
            )


def _singles(base: Run, new: Run) -> Callable[[str], int]:
    """How many sides of a task's change come from a single process each, so that their intervals miss what varies between processes."""
    repeated = (base.repeated, new.repeated)
    return lambda task_id: sum(task_id not in names for names in repeated)


def _own_errors(pairs: Sequence[tuple[Row, Row]]) -> FloatArray:
    """Standard errors of the changes from the rows' own intervals; NaN where a row has none."""
    sides = ([pair[side] for pair in pairs] for side in (0, 1))
    base, new = (standard_errors([row.speedup_low for row in rows], [row.speedup_high for row in rows]) for rows in sides)
    return np.asarray(np.hypot(base, new))


def _changes(
    pairs: Sequence[tuple[Row, Row]],
    own: FloatArray,
    singles: Callable[[str], int],
    effect: float,
    process_sd: float | None,
    rate: float,
    environment: Sequence[tuple[str, str, str]],
) -> tuple[tuple[Change, ...], Scale]:
    deltas = np.array([math.log((new.speedup or math.nan) / (base.speedup or math.nan)) for base, new in pairs])
    single = np.array([singles(base.task_id) for base, _ in pairs], dtype=np.int64)
    scale = process_scale(deltas, own, single) if process_sd is None else Scale(process_sd, "given")
    errors = np.sqrt(own**2 + single * scale.process_sd**2)
    errors = np.maximum(errors, np.finfo(np.float64).tiny)  # equal rows of a toy have no error at all
    judgements = judge(deltas, errors, effect=effect, freedom=scale.freedom, rate=rate)
    same_device = not any(name == "device" for name, _, _ in environment)
    made = [_change(base, new, judgement, same_device) for (base, new), judgement in zip(pairs, judgements, strict=True)]
    return tuple(sorted(made, key=lambda change: (change.judgement.change, change.task_id))), scale


def _change(base: Row, new: Row, judgement: Judgement, same_device: bool) -> Change:
    eager, compiled = ratio(new.eager_ms, base.eager_ms), ratio(new.compiled_ms, base.compiled_ms)
    moved = None
    if same_device and eager and compiled:
        moved = Moved.EAGER if abs(math.log(eager)) > abs(math.log(compiled)) else Moved.COMPILED
    return Change(base.task_id, base, new, judgement, eager, compiled, moved)


def ratio(new: float | None, base: float | None) -> float | None:
    """``new / base`` where both are known and above zero."""
    return new / base if new and base and new > 0 and base > 0 else None


def _groups(changes: Sequence[Change]) -> tuple[Group, ...]:
    members: dict[tuple[str, str, str, str | None], list[Change]] = defaultdict(list)
    for change in changes:
        for suite in (None, change.new.suite):
            members[change.new.mode, change.new.backend, change.new.dtype, suite].append(change)
    ordered = sorted(members.items(), key=lambda item: tuple(part or "" for part in item[0]))
    return tuple(_group(suite, dtype, mode, backend, found) for (mode, backend, dtype, suite), found in ordered)


def _group(suite: str | None, dtype: str, mode: str, backend: str, changes: Sequence[Change]) -> Group:
    base, new = _means(changes)
    half = mean_half_width([change.judgement.error for change in changes])
    low, high = new / base * math.exp(-half), new / base * math.exp(half)
    return Group(
        suite, dtype, mode, backend, len(changes), base, new, low, high, sign_flip_p([change.judgement.change for change in changes])
    )


def _means(changes: Sequence[Change]) -> tuple[float, float]:
    """Geometric means of the matched speedups in base and new."""
    base, new = (
        [side.speedup or math.nan for side in sides] for sides in zip(*((change.base, change.new) for change in changes), strict=True)
    )
    return geomean(base), geomean(new)


def _scores(changes: Sequence[Change], weights: Mapping[str, float]) -> tuple[Score, ...]:
    """The scores on matched tasks; a configuration without a matched task in some weighted dtype has none."""
    groups: dict[tuple[str, str], dict[str, list[Change]]] = defaultdict(lambda: defaultdict(list))
    for change in changes:
        groups[change.new.mode, change.new.backend][change.new.dtype].append(change)
    found = []
    for (mode, backend), by_dtype in groups.items():
        if weights and all(dtype in by_dtype for dtype, weight in weights.items() if weight):
            found.append(_score(mode, backend, {dtype: by_dtype[dtype] for dtype, weight in weights.items() if weight}, weights))
    return tuple(found)


def _score(mode: str, backend: str, by_dtype: Mapping[str, Sequence[Change]], weights: Mapping[str, float]) -> Score:
    """The interval of the ratio by the delta method: each dtype's mean change counts with its share of the new score."""
    means = {dtype: _means(changes) for dtype, changes in by_dtype.items()}
    used = {dtype: weights[dtype] for dtype in by_dtype}
    base, new = (weighted_score({dtype: mean[side] for dtype, mean in means.items()}, used) for side in (0, 1))
    total = math.fsum(used.values())
    shares = {dtype: used[dtype] / total * mean[1] / new for dtype, mean in means.items()}
    half = math.hypot(
        *(shares[dtype] * mean_half_width([change.judgement.error for change in changes]) for dtype, changes in by_dtype.items())
    )
    tasks = sum(len(changes) for changes in by_dtype.values())
    return Score(mode, backend, tasks, base, new, new / base * math.exp(-half), new / base * math.exp(half))


def _remarks(base: Run, new: Run, without_interval: int) -> tuple[str, ...]:
    remarks = [*base.remarks, *new.remarks]
    remarks += [
        f"run {run.run_id} is not complete: {len(run.missing)} of {len(run.planned)} planned tasks have no row"
        for run in (base, new)
        if run.missing
    ]
    if without_interval:
        remarks.append(f"{without_interval} tasks passed in both runs but have no interval in one of them, so no verdict")
    if dict(base.weights) != dict(new.weights):
        remarks.append(f"the runs weigh dtypes differently; the weights of {new.run_id} are used for both")
    return tuple(remarks)

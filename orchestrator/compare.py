"""Two runs, matched task by task: what changed, how sure that is, and whether the compiled step or the eager baseline moved. Pure.

``matching`` says which tasks are compared; every other task is listed under what kept it out. How much a fresh process changes is found
for each class of model by itself: launch-bound models vary by more than device-bound ones.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from orchestrator.errors import UsageError
from orchestrator.judging import Noise, judged
from orchestrator.matching import Matched, match
from orchestrator.report.environment import differences, mixed
from orchestrator.report.rows import Row, Run
from orchestrator.statistics.differences import (
    FALSE_DISCOVERY_RATE,
    MIN_EFFECT,
    Judgement,
    Verdict,
    mean_half_width,
    sign_flip_p,
)
from orchestrator.statistics.means import geomean, weighted_score
from orchestrator.statistics.processes import MOST_PROCESS_SD

COLUMNS = (
    *("task_id", "suite", "model", "dtype", "mode", "backend", "status", "phase", "error", "skip_reason", "carried_from", "batch_size"),
    *("speedup", "speedup_low", "speedup_high", "quality", "eager_ms", "compiled_ms", "compile_s", "compile_threads"),
    *("eager_peak_mib", "compiled_peak_mib"),
    *("graph_breaks", "fell_back", "launch_bound", "node", "device", "gpu_uuid", "machine", "other_versions"),
    *("python", "torch", "triton", "transformers", "timm", "torchvision", "driver", "cuda"),
)
"""What a comparison reads of each row."""


class Moved(StrEnum):
    """Which side of the ratio moved more. Only told where both runs had the same device."""

    COMPILED = "compiled step"
    EAGER = "eager baseline"


@dataclass(frozen=True, slots=True)
class Change:
    """One matched task. ``eager`` and ``compiled`` are ratios of milliseconds, new to base; above 1 that side became slower.

    ``host`` is that of a fixed piece of work on the processor that the host's side of the steps ran on, while they were timed.
    """

    task_id: str
    base: Row
    new: Row
    judgement: Judgement
    eager: float | None
    compiled: float | None
    moved: Moved | None
    host: float | None

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
    environment: tuple[tuple[str, str, str], ...]  # what, in base, in new; what defines the tasks comes first
    scores: tuple[Score, ...]
    groups: tuple[Group, ...]
    changes: tuple[Change, ...]  # by size of the change, the worst first
    matched: Matched
    noise: tuple[Noise, ...]  # of each class of model
    effect: float  # of ln(speedup)
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
    names = {row.task_id for row in base.rows} & {row.task_id for row in new.rows}
    if not names:
        raise UsageError(f"runs {base.run_id} and {new.run_id} have no task in common")
    matched = match(base, new)
    environment = differences(*([row for row in run.rows if row.task_id in names] for run in (base, new)))
    effect = math.log1p(min_effect)
    judgements, noise = judged(base, new, matched.pairs, effect, process_sd, rate)
    same_device = not any(name == "device" for name, _, _ in environment)
    made = [_change(*pair, judgement, same_device) for pair, judgement in zip(matched.pairs, judgements, strict=True)]
    changes = tuple(sorted(made, key=lambda change: (change.judgement.change, change.task_id)))
    return Comparison(
        base_id=base.run_id,
        new_id=new.run_id,
        environment=matched.definitions + environment,
        scores=_scores(changes, new.weights),
        groups=_groups(changes),
        changes=changes,
        matched=matched,
        noise=noise,
        effect=effect,
        rate=rate,
        remarks=_remarks(base, new, matched, noise),
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


def _change(base: Row, new: Row, judgement: Judgement, same_device: bool) -> Change:
    eager, compiled = ratio(new.eager_ms, base.eager_ms), ratio(new.compiled_ms, base.compiled_ms)
    moved = None
    if same_device and eager and compiled:
        moved = Moved.EAGER if abs(math.log(eager)) > abs(math.log(compiled)) else Moved.COMPILED
    host = ratio(*(row.machine.get("host_probe_us") for row in (new, base)))
    return Change(base.task_id, base, new, judgement, eager, compiled, moved, host)


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


def _remarks(base: Run, new: Run, matched: Matched, noise: Sequence[Noise]) -> tuple[str, ...]:
    remarks = [*base.remarks, *new.remarks]
    remarks += [
        f"run {run.run_id} is not complete: {len(run.missing)} of {len(run.planned)} planned tasks have no row"
        for run in (base, new)
        if run.missing
    ]
    if matched.unlike:
        remarks.append(f"{len(matched.unlike)} tasks passed in both runs but are not the same task in both, so they are not compared")
    if matched.without_interval:
        remarks.append(f"{len(matched.without_interval)} tasks passed in both runs but have no interval in one of them, so no verdict")
    remarks += [
        f"more {each.kind} tasks changed than noise explains: the spread is that of processes varying by {100 * each.scale.spread:.1f} %. "
        f"They are judged as if it were {100 * MOST_PROCESS_SD:g} %, so that only the larger changes are called"
        for each in noise
        if each.scale.spread is not None
    ]
    if dict(base.weights) != dict(new.weights):
        remarks.append(f"the runs weigh dtypes differently; the weights of {new.run_id} are used for both")
    return tuple(remarks)

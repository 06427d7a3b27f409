"""A run's rows to its ``Answers``: groups, means, intervals, counts and what to say about rows that cannot enter a mean. Pure."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from orchestrator.errors import UsageError
from orchestrator.noise import process_spread
from orchestrator.report.answers import Answers, BreakReason, Configuration, DtypeAnswer, Estimate, Rate, Spread, SuiteAnswer, Variant
from orchestrator.report.environment import environment_of, mixed
from orchestrator.report.failures import failure_groups
from orchestrator.report.partition import Part, parts_of
from orchestrator.report.plain import one_line
from orchestrator.report.process_errors import process_errors
from orchestrator.report.rows import Planned, Row, Run
from orchestrator.statistics.intervals import generalisation_interval, measurement_interval, standard_errors, wilson
from orchestrator.statistics.means import (
    FloatArray,
    clipped,
    geomean,
    quantiles,
    suite_balanced,
    weighted_score,
    weighted_score_in_logs,
    with_failures_as_one,
)
from tasks.spec import Accuracy, Phase, Quality, Status

UNUSABLE = "pass without a usable speedup"
Combine = Callable[[Mapping[str, float], Mapping[str, float]], float]


@dataclass(frozen=True, slots=True)
class Errors:
    """How sure each task's speedup is, beyond its own interval."""

    beyond: Callable[[str], float]  # task_id -> the standard deviation between processes that its interval does not cover
    freedom: Mapping[str, float]  # task_id -> degrees of freedom of its interval


def build(run: Run, *, allow_mixed: bool = False, process_sd: float | None = None) -> Answers:
    """Answer every question of the report.

    ``process_sd`` is the standard deviation of ``ln(speedup)`` between fresh processes, added to the error of every task that was measured
    in one. If it is not given, it is what the run's own calibration set says, or assumed.

    Raises:
        UsageError: rows of one mean come from different GPU models or library versions, and ``allow_mixed`` is off; or an A/A run.
    """
    run.refuse_aa("a score")
    remarks = [*run.remarks, *_set_aside(run.rows), *_unplanned(run)]
    for part in parts_of(run):
        found = mixed([row for row in part.rows if row.passed])
        if found and not allow_mixed:
            raise UsageError(f"run {run.run_id} mixes what should not enter one mean: {found}. Use --allow-mixed to report it anyway")
        if found:
            remarks.append(f"Mixed environments in one mean, as allowed: {found}.")
    spread = process_spread(run)
    errors, beyond = process_errors(run, spread, process_sd)
    return Answers(
        run_id=run.run_id,
        rate=_rate(run.planned, run.rows),
        configurations=tuple(_configuration(run, part, Errors(beyond, run.freedom)) for part in parts_of(run)),
        rows=tuple(sorted(run.rows, key=lambda row: row.task_id)),
        missing=tuple(task.task_id for task in run.missing),
        failures=failure_groups(run.rows),
        breaks=_break_reasons(run.rows),
        quality=_quality(run.rows),
        environment=environment_of(run.rows),
        remarks=tuple(dict.fromkeys(remarks)),
        statuses=dict(sorted(Counter(map(_status, run.rows)).items())),
        started=run.started,
        ended=run.ended,
        manifest=run.manifest,
        manifest_digest=run.manifest_digest,
        took_s=_took_s(run.rows),
        process_errors=errors,
        process_spread=spread,
        facts=run.facts,
    )


def _configuration(run: Run, part: Part, errors: Errors) -> Configuration:
    planned, rows = part.planned, part.rows
    tasks: list[Planned | Row] = [*planned, *rows]
    groups = {(task.suite, task.dtype) for task in tasks}
    dtypes = [name for name in run.weights if any(dtype == name for _, dtype in groups)]
    dtypes += sorted({dtype for _, dtype in groups} - set(dtypes))
    suites = sorted({suite for suite, _ in groups})
    return Configuration(
        mode=part.mode,
        backend=part.backend,
        device=part.device,
        weights=dict(run.weights),
        score=_score(planned, rows, run.weights, errors),
        rate=_rate(planned, rows),
        dtypes=tuple(_dtype(dtype, run.weights.get(dtype, 0.0), planned, rows, errors) for dtype in dtypes),
        suites=tuple(_suite(suite, dtype, planned, rows, errors) for dtype in dtypes for suite in suites if (suite, dtype) in groups),
        variants=_variants(planned, rows, dtypes, run.weights),
    )


def _dtype(dtype: str, weight: float, planned: Sequence[Planned], rows: Sequence[Row], errors: Errors) -> DtypeAnswer:
    planned, rows = [task for task in planned if task.dtype == dtype], [row for row in rows if row.dtype == dtype]
    return DtypeAnswer(dtype, weight, _score(planned, rows, {dtype: 1.0}, errors), _rate(planned, rows), _spread(rows))


def _suite(suite: str, dtype: str, planned: Sequence[Planned], rows: Sequence[Row], errors: Errors) -> SuiteAnswer:
    planned = [task for task in planned if (task.suite, task.dtype) == (suite, dtype)]
    rows = [row for row in rows if (row.suite, row.dtype) == (suite, dtype)]
    passed = [row for row in rows if row.passed]
    compile_s = [row.compile_s for row in passed if row.compile_s is not None]
    ratios = [row.memory_ratio for row in passed if row.memory_ratio]
    breaks = [row.graph_breaks for row in passed if row.graph_breaks is not None]
    return SuiteAnswer(
        suite=suite,
        dtype=dtype,
        geomean=_score(planned, rows, {dtype: 1.0}, errors),
        rate=_rate(planned, rows),
        spread=_spread(rows),
        median_compile_s=median(compile_s) if compile_s else None,
        memory_ratio=geomean(ratios) if ratios else None,
        graph_breaks=sum(breaks) if breaks else None,
    )


def _score(planned: Sequence[Planned], rows: Sequence[Row], weights: Mapping[str, float], errors: Errors) -> Estimate:
    """The weighted score of the rows that passed, or why there is none."""
    speedups = _speedups([row for row in rows if row.passed])
    lacking = [dtype for dtype, weight in weights.items() if weight and not speedups.get(dtype)]
    if lacking or not weights:
        return Estimate(why_not=_lacking(lacking, {task.dtype for task in planned}) if lacking else "the run has no weights")
    value = weighted_score({dtype: geomean(speedups[dtype]) for dtype in weights if weights[dtype]}, weights)
    logs, own, freedom = _aligned(rows, weights, errors)
    measurement = measurement_interval(logs, own, weights, freedom=freedom)
    without = sum(not math.isfinite(error) for dtype in logs for error in own[dtype][np.isfinite(logs[dtype])])
    why_not = f"{without} of the tasks that passed have no interval, so the mean has no measurement interval" if without else None
    return Estimate(value, measurement, generalisation_interval(logs, weights), why_not)


def _lacking(dtypes: Sequence[str], planned: Collection[str]) -> str:
    """Why there is nothing in ``dtypes``."""
    unplanned = [dtype for dtype in dtypes if dtype not in planned]
    failed = [dtype for dtype in dtypes if dtype in planned]
    reasons = [f"no task was planned in {' or '.join(unplanned)}"] if unplanned else []
    return "; ".join([*reasons, f"no task passed in {' or '.join(failed)}"] if failed else reasons)


def _aligned(
    rows: Sequence[Row], weights: Mapping[str, float], errors: Errors
) -> tuple[dict[str, FloatArray], dict[str, FloatArray], dict[str, FloatArray]]:
    """Log speedups, their standard errors and degrees of freedom per weighted dtype, aligned over the models; NaN where nothing passed."""
    models = {name: place for place, name in enumerate(dict.fromkeys((row.suite, row.model) for row in rows if row.passed))}
    logs, own, freedom = ({dtype: np.full(len(models), math.nan) for dtype in weights} for _ in range(3))
    passed = [row for row in rows if row.passed and row.dtype in weights]
    known = np.array([errors.freedom.get(row.task_id, math.inf) for row in passed], dtype=np.float64)
    row_errors = standard_errors([row.speedup_low for row in passed], [row.speedup_high for row in passed], known)
    for row, error, degrees in zip(passed, row_errors, known, strict=True):
        place = models[row.suite, row.model]
        logs[row.dtype][place] = math.log(row.speedup or math.nan)
        own[row.dtype][place] = math.hypot(error, errors.beyond(row.task_id))
        freedom[row.dtype][place] = degrees
    return logs, own, freedom


def _variants(planned: Sequence[Planned], rows: Sequence[Row], dtypes: Sequence[str], weights: Mapping[str, float]) -> tuple[Variant, ...]:
    """The definitions in use, from the same rows, side by side."""
    passed = [row for row in rows if row.passed]
    counts = Counter(task.dtype for task in planned)
    speedups = _speedups(passed)
    by_suite = {dtype: _speedups([row for row in passed if row.dtype == dtype], by="suite") for dtype in speedups}
    padded = {dtype: with_failures_as_one(speedups.get(dtype, []), max(counts[dtype], len(speedups.get(dtype, [])))) for dtype in dtypes}
    passing = {dtype: geomean(values) for dtype, values in speedups.items()}
    failing_as_one = {dtype: geomean(values) for dtype, values in padded.items()}
    no_slowdown = {dtype: geomean(clipped(values)) for dtype, values in speedups.items()}
    balanced = {dtype: suite_balanced(groups) for dtype, groups in by_suite.items()}

    def of(name: str, meaning: str, means: Mapping[str, float], combine: Combine = weighted_score) -> Variant:
        complete = bool(weights) and all(dtype in means for dtype, weight in weights.items() if weight)
        tasks = padded if means is failing_as_one else speedups
        return Variant(
            *(name, meaning, combine(means, weights) if complete else None, {dtype: means.get(dtype) for dtype in dtypes}),
            tasks={dtype: len(tasks.get(dtype, [])) for dtype in dtypes},
            planned={dtype: len(padded[dtype]) for dtype in dtypes},
        )

    return (
        of("passing only", "tasks that were timed, slowdowns as they are; the score of this report", passing),
        of("failures as 1.0", "every planned task; one that did not pass counts as 1.0, since its user stays with eager", failing_as_one),
        of("clipped at 1.0", "tasks that were timed; a slowdown counts as 1.0, as in upstream's summary of 2022", no_slowdown),
        of(
            "weights in logs",
            "tasks that were timed; the dtypes' means to the power of their weights, multiplied",
            passing,
            weighted_score_in_logs,
        ),
        of("suite-balanced", "tasks that were timed; each suite counts the same, however many models it has", balanced),
    )


def _speedups(rows: Iterable[Row], by: str = "dtype") -> dict[str, list[float]]:
    groups: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        if row.speedup is not None:
            groups[getattr(row, by)].append(row.speedup)
    return groups


def _spread(rows: Sequence[Row]) -> Spread | None:
    speedups = [row.speedup for row in rows if row.passed and row.speedup is not None]
    return Spread(*quantiles(speedups)) if speedups else None


def _rate(planned: Sequence[Planned], rows: Sequence[Row]) -> Rate:
    ended = {row.task_id for row in rows}
    missing = sum(task.task_id not in ended for task in planned)
    total = len(rows) + missing
    passed, timed = sum(row.verified for row in rows), sum(row.passed for row in rows)
    skipped = sum(row.status == Status.SKIPPED for row in rows)
    infra = sum(row.status == Status.INFRA_ERROR for row in rows)
    return Rate(
        *(passed, total, len(rows) - timed - skipped - infra, skipped, infra, missing, wilson(passed, total)),
        unjudged=timed - passed,
        upstream_passed=sum(row.accuracy in (Accuracy.PASS, Accuracy.SKIPPED) for row in rows),
        upstream_counted=sum(_got_through_eager(row) for row in rows),
    )


def _status(row: Row) -> str:
    return UNUSABLE if row.status == Status.PASS and not row.passed else row.status


def _took_s(rows: Sequence[Row]) -> float | None:
    """How long the tasks of this run took, those of an earlier one left out. The record's own end may be that of somebody tidying up."""
    own = [(row.started, row.ended) for row in rows if not row.carried_from and row.started and row.ended]
    return max(ended for _, ended in own) - min(started for started, _ in own) if own else None


def _got_through_eager(row: Row) -> bool:
    """Whether upstream's harness would have left a row: an infrastructure failure or an exclusion says nothing of the model."""
    if row.status in (Status.SKIPPED, Status.INFRA_ERROR, Status.UNSUPPORTED):
        return row.accuracy is not None
    return row.phase not in (Phase.START, Phase.BUILD, Phase.EAGER)


def _break_reasons(rows: Sequence[Row]) -> tuple[BreakReason, ...]:
    tasks: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        for reason in dict.fromkeys(one_line(reason) for reason in row.graph_break_reasons):
            tasks[reason].append(row.task_id)
    return tuple(
        BreakReason(reason, tuple(sorted(names))) for reason, names in sorted(tasks.items(), key=lambda item: (-len(item[1]), item[0]))
    )


def _quality(rows: Sequence[Row]) -> dict[str, int]:
    """How many passing tasks are in each quality state; states nobody is in are left out."""
    states = Counter(row.quality or "unknown" for row in rows if row.passed)
    known = [quality.value for quality in Quality]
    return {state: states[state] for state in [*known, *sorted(set(states) - set(known))] if states[state]}


def _set_aside(rows: Sequence[Row]) -> list[str]:
    """Remarks on rows that say pass and cannot enter a mean, and on compiled runs that were not."""
    unusable = [row for row in rows if row.status == Status.PASS and not row.passed]
    fell_back = [row.task_id for row in rows if row.passed and row.fell_back]
    remarks = [f"{row.task_id} says pass with a speedup of {row.speedup}: counted as failed and in no mean." for row in unusable]
    if fell_back:
        remarks.append(f"Part of the compiled step fell back to eager in {len(fell_back)} tasks that passed: {', '.join(fell_back)}.")
    return remarks


def _unplanned(run: Run) -> list[str]:
    planned = {task.task_id for task in run.planned}
    extra = [row.task_id for row in run.rows if row.task_id not in planned]
    return [f"{len(extra)} rows are of tasks that the plan does not name: {', '.join(extra[:5])}."] if extra else []

"""A run's rows to its ``Answers``: groups, means, intervals, counts and what to say about rows that cannot enter a mean. Pure."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median

import numpy as np

from orchestrator.errors import UsageError
from orchestrator.noise import process_spread
from orchestrator.report.answers import Answers, BreakReason, Configuration, DtypeAnswer, Estimate, Rate, Spread, SuiteAnswer, Variant
from orchestrator.report.environment import environment_of, mixed
from orchestrator.report.failures import failure_groups
from orchestrator.report.partition import Part, parts_of
from orchestrator.report.plain import one_line
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

ProcessError = Callable[[str], float]
"""task_id -> the standard deviation between processes that the task's own interval does not cover."""
Combine = Callable[[Mapping[str, float], Mapping[str, float]], float]


def build(run: Run, *, allow_mixed: bool = False, process_sd: float = 0.0) -> Answers:
    """Answer every question of the report.

    ``process_sd`` is the standard deviation of ``ln(speedup)`` between fresh processes, added to every task's own error.

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
    repeated = run.repeated
    return Answers(
        run_id=run.run_id,
        rate=_rate(run.planned, run.rows),
        configurations=tuple(
            _configuration(run, part, lambda task_id: 0.0 if task_id in repeated else process_sd) for part in parts_of(run)
        ),
        rows=tuple(sorted(run.rows, key=lambda row: row.task_id)),
        missing=tuple(task.task_id for task in run.missing),
        failures=failure_groups(run.rows),
        breaks=_break_reasons(run.rows),
        quality=_quality(run.rows),
        environment=environment_of(run.rows),
        remarks=tuple(dict.fromkeys(remarks)),
        statuses=dict(sorted(Counter(row.status for row in run.rows).items())),
        started=run.started,
        ended=run.ended,
        manifest=run.manifest,
        manifest_digest=run.manifest_digest,
        process_sd=process_sd,
        processes_covered=bool(process_sd) or all(row.task_id in repeated for row in run.rows if row.passed),
        process_spread=process_spread(run),
        facts=run.facts,
    )


def _configuration(run: Run, part: Part, beyond: ProcessError) -> Configuration:
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
        score=_score(rows, run.weights, beyond),
        rate=_rate(planned, rows),
        dtypes=tuple(_dtype(dtype, run.weights.get(dtype, 0.0), planned, rows, beyond) for dtype in dtypes),
        suites=tuple(_suite(suite, dtype, planned, rows, beyond) for dtype in dtypes for suite in suites if (suite, dtype) in groups),
        variants=_variants(planned, rows, dtypes, run.weights),
    )


def _dtype(dtype: str, weight: float, planned: Sequence[Planned], rows: Sequence[Row], beyond: ProcessError) -> DtypeAnswer:
    planned, rows = [task for task in planned if task.dtype == dtype], [row for row in rows if row.dtype == dtype]
    return DtypeAnswer(dtype, weight, _score(rows, {dtype: 1.0}, beyond), _rate(planned, rows), _spread(rows))


def _suite(suite: str, dtype: str, planned: Sequence[Planned], rows: Sequence[Row], beyond: ProcessError) -> SuiteAnswer:
    planned = [task for task in planned if (task.suite, task.dtype) == (suite, dtype)]
    rows = [row for row in rows if (row.suite, row.dtype) == (suite, dtype)]
    passed = [row for row in rows if row.passed]
    compile_s = [row.compile_s for row in passed if row.compile_s is not None]
    ratios = [row.memory_ratio for row in passed if row.memory_ratio]
    breaks = [row.graph_breaks for row in passed if row.graph_breaks is not None]
    return SuiteAnswer(
        suite=suite,
        dtype=dtype,
        geomean=_score(rows, {dtype: 1.0}, beyond),
        rate=_rate(planned, rows),
        spread=_spread(rows),
        median_compile_s=median(compile_s) if compile_s else None,
        memory_ratio=geomean(ratios) if ratios else None,
        graph_breaks=sum(breaks) if breaks else None,
    )


def _score(rows: Sequence[Row], weights: Mapping[str, float], beyond: ProcessError) -> Estimate:
    """The weighted score of the rows that passed, or why there is none."""
    speedups = _speedups([row for row in rows if row.passed])
    lacking = [dtype for dtype, weight in weights.items() if weight and not speedups.get(dtype)]
    if lacking or not weights:
        return Estimate(why_not=f"no task passed in {' or '.join(lacking)}" if lacking else "the run has no weights")
    value = weighted_score({dtype: geomean(speedups[dtype]) for dtype in weights if weights[dtype]}, weights)
    logs, errors = _aligned(rows, weights, beyond)
    measurement = measurement_interval(logs, errors, weights)
    without = sum(not math.isfinite(error) for dtype in logs for error in errors[dtype][np.isfinite(logs[dtype])])
    why_not = f"{without} of the tasks that passed have no interval, so the mean has no measurement interval" if without else None
    return Estimate(value, measurement, generalisation_interval(logs, weights), why_not)


def _aligned(
    rows: Sequence[Row], weights: Mapping[str, float], beyond: ProcessError
) -> tuple[dict[str, FloatArray], dict[str, FloatArray]]:
    """Log speedups and their standard errors per weighted dtype, aligned over the models; NaN where a task did not pass."""
    models = {name: place for place, name in enumerate(dict.fromkeys((row.suite, row.model) for row in rows if row.passed))}
    logs, errors = ({dtype: np.full(len(models), math.nan) for dtype in weights} for _ in range(2))
    passed = [row for row in rows if row.passed and row.dtype in weights]
    row_errors = standard_errors([row.speedup_low for row in passed], [row.speedup_high for row in passed])
    for row, error in zip(passed, row_errors, strict=True):
        logs[row.dtype][models[row.suite, row.model]] = math.log(row.speedup or math.nan)
        errors[row.dtype][models[row.suite, row.model]] = math.hypot(error, beyond(row.task_id))
    return logs, errors


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
        return Variant(name, meaning, combine(means, weights) if complete else None, {dtype: means.get(dtype) for dtype in dtypes})

    return (
        of("passing only", "tasks that passed, slowdowns as they are; the score of this report", passing),
        of("failures as 1.0", "every planned task; one that did not pass counts as 1.0, since its user stays with eager", failing_as_one),
        of("clipped at 1.0", "tasks that passed; a slowdown counts as 1.0, as in upstream's summary of 2022", no_slowdown),
        of(
            "weights in logs",
            "tasks that passed; the dtypes' means to the power of their weights, multiplied",
            passing,
            weighted_score_in_logs,
        ),
        of("suite-balanced", "tasks that passed; each suite counts the same, however many models it has", balanced),
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
    passed = sum(row.passed for row in rows)
    skipped = sum(row.status == Status.SKIPPED for row in rows)
    infra = sum(row.status == Status.INFRA_ERROR for row in rows)
    return Rate(
        *(passed, total, len(rows) - passed - skipped - infra, skipped, infra, missing, wilson(passed, total)),
        unjudged=sum(row.passed and row.accuracy != Accuracy.PASS for row in rows),
        upstream_passed=sum(row.accuracy in (Accuracy.PASS, Accuracy.SKIPPED) for row in rows),
        upstream_counted=sum(_got_through_eager(row) for row in rows),
    )


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

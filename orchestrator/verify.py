"""The invariants of a stored run: complete, well-formed, and every published number re-derived from its samples to the same bytes.

Reads the store and changes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from orchestrator import schema
from orchestrator.record import PlannedTask, RunState
from orchestrator.store import RunStore
from tasks.estimator import MIN_PAIRS_FOR_INTERVAL, summarise
from tasks.spec import AA_PHASES, Phase, Samples, Status

TASKS_AT_ONCE = 64
"""How many tasks' samples are held in memory at a time."""
AA = tuple(f"aa_{arm}{end}" for arm in ("eager", "compiled") for end in ("", "_low", "_high"))
ON_DEVICE = ("eager_device_ms", "compiled_device_ms", "eager_event_ms", "compiled_event_ms", "launch_bound")
DERIVED = (
    *("speedup", "speedup_low", "speedup_high", "speedup_of_medians", "pairs", "eager_ms", "compiled_ms", "process_speedups"),
    *ON_DEVICE,
    *AA,
)
"""The columns that are pure functions of the samples, by their names in a row and in ``tasks.estimator.Summary``."""
_CLOSED = {"status": {status.value for status in Status}, "phase": {phase.value for phase in Phase}}
_IDENTITY = ("suite", "model", "dtype", "mode", "backend", "task_digest")


@dataclass(frozen=True, slots=True)
class Violation:
    """One invariant that does not hold; ``subject`` is a task id or a file."""

    rule: str
    subject: str
    message: str

    def __str__(self) -> str:
        return f"{self.subject}: {self.rule}: {self.message}"


def verify(run: RunStore) -> list[Violation]:
    """Every violation, completeness first.

    Raises:
        StoreError: the run's record or plan cannot be read.
    """
    plan = {planned.task.task_id: planned for planned in run.plan()}
    columns = [*_IDENTITY, *DERIVED, "aa", "run_id", "task_id", "status", "phase", "skip_reason", "manifest_digest", "log"]
    rows = {row["task_id"]: row for row in run.rows(columns).to_pylist()}
    found = [*_completeness(plan, rows), *_duplicates(run)]
    logs = {f"logs/{name}" for name in run.files.names("logs")}
    for task_id, row in rows.items():
        found.extend(_well_formed(row))
        found.extend(_identity(run, row, plan.get(task_id)))
        if row["log"] and row["log"] not in logs:
            found.append(Violation("log", task_id, f"{run.files.at(row['log'])} is missing"))
    found.extend(_numbers(run, rows))
    run.blocks(columns=("task_id",))  # no number depends on them; a damaged file is found all the same
    found.extend(Violation("file", run.files.at(path), reason) for path, reason in run.damaged().items())
    return found


def _completeness(plan: Mapping[str, PlannedTask], rows: Mapping[str, Any]) -> Iterator[Violation]:
    yield from (Violation("row", task_id, "planned, but has no terminal row") for task_id in plan if task_id not in rows)
    yield from (Violation("row", task_id, "has a row, but was not planned") for task_id in rows if task_id not in plan)


def _duplicates(run: RunStore) -> Iterator[Violation]:
    for (task_id, attempt), count in Counter(run.attempts()).items():
        if count > 1:
            yield Violation("row", task_id, f"attempt {attempt} is stored {count} times")
    if run.record.state is RunState.FINISHED:
        for task_id in sorted(run.beaten()):
            yield Violation("row", task_id, "beside its row there is one that it replaces: a query over the bare files finds both")


def _well_formed(row: Mapping[str, Any]) -> Iterator[Violation]:
    for column, closed in _CLOSED.items():
        if row[column] not in closed:
            yield Violation(column, row["task_id"], f"{row[column]!r} is not one of {', '.join(sorted(closed))}")
    if row["status"] == Status.SKIPPED and not row["skip_reason"]:
        yield Violation("skip", row["task_id"], "is skipped without a reason")
    ratios = ("aa_eager", "aa_compiled") if row["aa"] else ("speedup",)
    if row["status"] == Status.PASS:
        may_lack = (row["pairs"] or 0) < len(ratios) * MIN_PAIRS_FOR_INTERVAL
        for column in ratios:
            yield from _interval(row, column, may_lack=may_lack)
    if row["aa"] and row["speedup"] is not None:
        yield Violation("speedup", row["task_id"], f"measured its arms against themselves, and has a speedup: {row['speedup']}")


def _interval(row: Mapping[str, Any], column: str, *, may_lack: bool) -> Iterator[Violation]:
    """``may_lack``: there are too few pairs for an interval."""
    ratio, low, high = row[column], row[f"{column}_low"], row[f"{column}_high"]
    if may_lack and low is None and high is None and ratio is not None and 0.0 < ratio < float("inf"):
        return
    if ratio is None or low is None or high is None:
        yield Violation(column, row["task_id"], f"passed without a {column} and its interval: {ratio}, [{low}, {high}]")
    elif not 0.0 < low <= ratio <= high < float("inf"):
        yield Violation(column, row["task_id"], f"{ratio} is not inside its interval [{low}, {high}] of positive numbers")


def _identity(run: RunStore, row: Mapping[str, Any], planned: PlannedTask | None) -> Iterator[Violation]:
    if row["run_id"] != run.run_id:
        yield Violation("identity", row["task_id"], f"its row says run {row['run_id']!r}")
    if row["manifest_digest"] != (run.record.manifest_digest or None):
        yield Violation(
            "identity", row["task_id"], f"manifest digest {row['manifest_digest']!r}, the run's is {run.record.manifest_digest!r}"
        )
    if planned is None:
        return
    expected = schema.task_columns(planned.task)
    for column in _IDENTITY:
        if row[column] != expected[column]:
            yield Violation("identity", row["task_id"], f"{column} is {row[column]!r}, the plan says {expected[column]!r}")


def _numbers(run: RunStore, rows: Mapping[str, Mapping[str, Any]]) -> Iterator[Violation]:
    measured = sorted(
        task_id for task_id, row in rows.items() if any(row[name] is not None for name in ("speedup", "aa_eager", "aa_compiled"))
    )
    for start in range(0, len(measured), TASKS_AT_ONCE):
        yield from _rederived(run, rows, measured[start : start + TASKS_AT_ONCE])


def _rederived(run: RunStore, rows: Mapping[str, Mapping[str, Any]], task_ids: Sequence[str]) -> Iterator[Violation]:
    table = run.samples(task_ids, ("task_id", *schema.SAMPLE_COLUMNS))
    owners = table.column("task_id").cast(pa.string())
    for task_id in task_ids:
        samples = schema.samples_of(table.filter(pc.equal(owners, task_id)))
        if not samples.phase:
            yield Violation("samples", task_id, "has a speedup and no samples")
            continue
        summary = summarise(samples)
        for column in DERIVED:
            stored, derived = rows[task_id][column], getattr(summary, column)
            if _written_before(column, stored, samples):
                continue
            derived = list(derived) if column == "process_speedups" else derived
            if stored != derived:
                yield Violation("samples", task_id, f"{column} is {stored!r}, its samples say {derived!r}")


def _written_before(column: str, stored: Any, samples: Samples) -> bool:
    """The row is older than the column, or than the samples from which to derive it: those of an arm against itself."""
    if column == "process_speedups":
        return stored is None
    return column in ON_DEVICE and "device" in samples.phase and not set(AA_PHASES.values()).isdisjoint(samples.phase)

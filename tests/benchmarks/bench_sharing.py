"""Whether sharing a device pays, and whether it changes what is measured:

``python -m tests.benchmarks.bench_sharing STRICT SHARED [STRICT SHARED ...] [--results DIR]``

Takes stored runs of the same tasks, or of some of them, in pairs: each pair from one machine. Prints for each pair tasks per hour of both
and what they had been forecast to take; and for all pairs together the mean differences of the logarithms of speedups and of what the
compiled steps take, with 90 % intervals, whether those lie inside the margin (an equivalence test), and which tasks differ after Benjamini
and Hochberg, each by all pairs that have it. Exits 0 if both agree, else 1.

A task's difference counts by how well it is known. What compiled steps take is the device's own time where rows have it: that is what the
choice of kernels moves, and the host's speed, which drifts between two runs, does not.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special, stats

from orchestrator import compare, costs
from orchestrator.compare import Change
from orchestrator.record import RunRecord
from orchestrator.report import rows
from orchestrator.report.rows import Run
from orchestrator.sessions import device_hours, took
from orchestrator.statistics.differences import FALSE_DISCOVERY_RATE
from orchestrator.statistics.intervals import standard_errors
from orchestrator.statistics.means import FloatArray
from orchestrator.store import RunStore, Store
from tasks.spec import Status

MARGIN = 0.01
MAX_MEAN = 0.005


@dataclass(frozen=True, slots=True)
class Agreement:
    """The mean difference of the logarithms of a quantity, shared less strict, with its 90 % interval."""

    tasks: int
    mean: float
    low: float
    high: float

    @property
    def holds(self) -> bool:
        return abs(self.mean) <= MAX_MEAN and self.low > -MARGIN and self.high < MARGIN


def agreement(differences: Sequence[float]) -> Agreement:
    """Student's interval of the mean: the tasks are the sample."""
    return weighed(differences, [1.0] * len(differences), 0.0)


def by_precision(differences: Sequence[float], errors: Sequence[float]) -> Agreement:
    """Each difference by its standard error and by what they scatter beyond those: DerSimonian and Laird, Controlled Clinical Trials 7
    (1986) 177, with the interval of Hartung and Knapp, Statistics in Medicine 20 (2001) 3875."""
    return weighed(differences, errors, scatter_beyond(differences, errors))


def scatter_beyond(differences: Sequence[float], errors: Sequence[float]) -> float:
    """The variance that is common to all, beside their own errors: DerSimonian and Laird's, by the method of moments."""
    values, weights = np.asarray(differences), _weights(errors, 0.0)
    fixed = float(np.average(values, weights=weights))
    excess = float(np.sum(weights * (values - fixed) ** 2)) - (values.size - 1)
    return max(0.0, excess / float(weights.sum() - (weights**2).sum() / weights.sum())) if values.size > 1 else 0.0


def _weights(errors: Sequence[float], scatter: float) -> FloatArray:
    return 1 / (np.asarray(errors, dtype=np.float64) ** 2 + scatter)


def mean_and_error(differences: Sequence[float], errors: Sequence[float]) -> tuple[float, float]:
    """The mean by errors and common scatter, and its standard error by these."""
    weights = _weights(errors, scatter_beyond(differences, errors))
    return float(np.average(differences, weights=weights)), 1 / math.sqrt(float(weights.sum()))


def weighed(differences: Sequence[float], errors: Sequence[float], scatter: float) -> Agreement:
    """The mean by standard errors and the variance ``scatter`` that is common to all; its interval from how they lie around it."""
    values, weights = np.asarray(differences, dtype=np.float64), _weights(errors, scatter)
    mean, half = float(np.average(values, weights=weights)), math.inf
    if values.size > 1:
        spread = float(np.average((values - mean) ** 2, weights=weights)) / (values.size - 1)
        half = float(special.stdtrit(values.size - 1, 0.95) * math.sqrt(spread))
    return Agreement(values.size, mean, mean - half, mean + half)


def throughput(record: RunRecord, spans: Sequence[tuple[float, float]]) -> float | None:
    """Tasks per hour of a device, over all the sessions of a run; ``spans`` are from when to when its rows ran.

    Of a strict run that was broken off only the spans count: tasks that were under way then had the other devices without a row.
    """
    broken_off = any(session.ended is None for session in record.sessions)
    if broken_off and all(session.sharing == 1 for session in record.sessions):
        held_h: float | None = sum(ended - started for started, ended in spans) / 3600
    else:
        held_h = device_hours(record, [ended for _, ended in spans])
    return len(spans) / held_h if held_h else None


def seconds_by_task(store: RunStore) -> dict[str, float]:
    """What each task took: all phases, without standing still, and without waiting for the device or its memory."""
    return {row["task_id"]: costs.of_row(row).total_s for row in store.rows(costs.COLUMNS).to_pylist()}


def heavier(some: Iterable[str], seconds: Mapping[str, float]) -> float | None:
    """How many times as long the tasks ``some`` take as those of ``seconds`` do, in the mean; None: not known."""
    there = [seconds[task_id] for task_id in some if task_id in seconds]
    usual = sum(seconds.values()) / max(1, len(seconds))
    return sum(there) / len(there) / usual if there and usual else None


@dataclass(frozen=True, slots=True)
class Pair:
    """A strict run and a shared one, of one machine."""

    stores: tuple[RunStore, RunStore]
    runs: tuple[Run, Run]

    @classmethod
    def load(cls, results: str, strict: str, shared: str) -> Pair:
        first, second = (Store(results).resolve(name) for name in (strict, shared))
        columns = (*compare.COLUMNS, "compiled_device_ms", "started", "ended")
        return cls((first, second), (rows.load(first, columns), rows.load(second, columns)))

    def tell_throughput(self) -> None:
        rates = []
        ran = [[row for row in run.rows if row.status != Status.SKIPPED] for run in self.runs]
        for run, store, rows_of in zip(self.runs, self.stores, ran, strict=True):
            rate = throughput(store.record, [(row.started, row.ended) for row in rows_of if row.started and row.ended])
            sessions = "; ".join(filter(None, map(took, store.record.sessions))) or "no session has ended"
            speed = f", {rate:.1f} per device hour, {3600 / rate:.1f} s each" if rate else ""
            print(f"{run.run_id}: {len(rows_of)} rows{speed}; {sessions}")
            rates.append(rate)
        if rates[0] and rates[1]:
            faster = rates[1] / rates[0]
            print(f"throughput, shared over strict: {faster:.2f}")
            seconds = seconds_by_task(self.stores[1])
            weight = heavier(
                (row.task_id for row in ran[0]), {row.task_id: seconds[row.task_id] for row in ran[1] if row.task_id in seconds}
            )
            if weight is not None:
                tasks = f"the tasks of {self.runs[0].run_id} are {weight:.2f} times as heavy as all of {self.runs[1].run_id}"
                print(f"  {tasks}: like for like {faster / weight:.2f}")


def judged(changes: Sequence[Change]) -> dict[str, Agreement]:
    """What must agree, by name: the speedups, and what compiled steps take."""
    before, after = ([change.base for change in changes], [change.new for change in changes])
    parts = [standard_errors([row.speedup_low for row in side], [row.speedup_high for row in side]) for side in (before, after)]
    known = [(change.judgement.change, float(error)) for change, error in zip(changes, np.hypot(*parts), strict=True) if error > 0]
    found = {"ln(speedup)": by_precision([difference for difference, _ in known], [error for _, error in known])}
    on_device = [(old.compiled_device_ms, new.compiled_device_ms) for old, new in zip(before, after, strict=True)]
    taken = [math.log(new_ms / old_ms) for old_ms, new_ms in on_device if old_ms and new_ms]
    if taken:
        return found | {"ln(compiled ms on the device)": agreement(taken)}
    return found | {"ln(compiled ms)": agreement([math.log(change.compiled) for change in changes if change.compiled])}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="STRICT SHARED")
    parser.add_argument("--results", default="results")
    arguments = parser.parse_args()
    if len(arguments.runs) % 2:
        parser.error("runs come in pairs: a strict one and a shared one")
    names = arguments.runs
    pairs = [Pair.load(arguments.results, strict, shared) for strict, shared in zip(names[::2], names[1::2], strict=True)]
    for pair in pairs:
        pair.tell_throughput()
    changes = [change for pair in pairs for change in compare.compare(*pair.runs, min_effect=0.0).changes]
    if not changes:
        parser.error("no task was timed in both runs of a pair")
    agreements = judged(changes)
    plain = agreement([change.judgement.change for change in changes])
    for name, one in agreements.items():
        print(
            f"{name}, shared less strict, {one.tasks} tasks: mean {one.mean:+.4f}, 90 % interval {one.low:+.4f} to {one.high:+.4f}, "
            f"{'inside' if one.holds else 'NOT inside'} {MAX_MEAN:g} and {MARGIN:g}"
        )
    print(f"  ln(speedup) with equal weights: mean {plain.mean:+.4f}, 90 % interval {plain.low:+.4f} to {plain.high:+.4f}")
    differ = differing(changes)
    print(f"{len(differ)} tasks differ after Benjamini and Hochberg at {FALSE_DISCOVERY_RATE:g}")
    for task in differ:
        print(
            f"  {task.task_id}: {math.exp(task.change):.3f} times the speedup in {task.pairs} pair{'s'[: task.pairs > 1]}, q {task.q:.3g}"
        )
    return 0 if all(one.holds for one in agreements.values()) and not differ else 1


@dataclass(frozen=True, slots=True)
class TaskDifference:
    """What sharing does to ``ln(speedup)`` of a task, by all ``pairs`` that have it; ``q`` after Benjamini and Hochberg over all tasks."""

    task_id: str
    pairs: int
    change: float
    q: float


def differing(changes: Sequence[Change]) -> list[TaskDifference]:
    """Tasks that differ, and not by chance. What pairs say of the same task is one finding: what they do not agree on is not the mode's."""
    by_task: dict[str, list[Change]] = {}
    for change in changes:
        by_task.setdefault(change.task_id, []).append(change)
    found = [(task_id, len(of_task), *_together(of_task)) for task_id, of_task in by_task.items()]
    qs = stats.false_discovery_control([p for *_, p in found], method="bh")
    tasks = [TaskDifference(task_id, pairs, mean, float(q)) for (task_id, pairs, mean, _), q in zip(found, qs, strict=True)]
    return [task for task in tasks if task.q <= FALSE_DISCOVERY_RATE]


def _together(changes: Sequence[Change]) -> tuple[float, float]:
    """The mean of a task's changes by ``by_precision``'s weights, and its p by the normal law."""
    values = [change.judgement.change for change in changes]
    if len(changes) == 1:
        return values[0], changes[0].judgement.p
    mean, error = mean_and_error(values, [_normal_error(change) for change in changes])
    return mean, 2 * float(special.ndtr(-abs(mean) / error))


def _normal_error(change: Change) -> float:
    """The standard error with which the normal law has a change's p, which comes of one with longer tails."""
    quantile = -float(special.ndtri(max(change.judgement.p, 1e-300) / 2))
    return max(change.judgement.error, abs(change.judgement.change) / quantile) if quantile > 0 else change.judgement.error


if __name__ == "__main__":
    raise SystemExit(main())

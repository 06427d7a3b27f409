"""Whether sharing a device pays, and whether it changes what is measured:

``python -m tests.benchmarks.bench_sharing STRICT SHARED [--results DIR]``

Takes two stored runs of the same tasks, or of some of them. Prints tasks per hour of each, what each had been forecast to take, and for
the speedups and the compiled steps' times: the mean difference of the logarithms with its 90 % interval, whether that lies inside the
margin (an equivalence test), and which tasks differ after Benjamini and Hochberg. Exits 0 if both agree, else 1.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from orchestrator import compare, costs
from orchestrator.record import RunRecord
from orchestrator.report import rows
from orchestrator.sessions import device_hours, took
from orchestrator.statistics.differences import FALSE_DISCOVERY_RATE
from orchestrator.store import RunStore, Store

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
    values = np.asarray(differences, dtype=np.float64)
    half = math.inf
    if values.size > 1:
        half = float(special.stdtrit(values.size - 1, 0.95) * values.std(ddof=1) / math.sqrt(values.size))
    mean = float(values.mean())
    return Agreement(values.size, mean, mean - half, mean + half)


def throughput(record: RunRecord, tasks: int, rows_ended: Sequence[float] = ()) -> float | None:
    """Tasks per hour of a device, over all the sessions of a run; ``rows_ended`` as for ``device_hours``."""
    held_h = device_hours(record, rows_ended)
    return tasks / held_h if held_h else None


def seconds_by_task(store: RunStore) -> dict[str, float]:
    """What each task took: all phases, without standing still, and without waiting for the device or its memory."""
    return {row["task_id"]: costs.of_row(row).total_s for row in store.rows(costs.COLUMNS).to_pylist()}


def heavier(some: Iterable[str], seconds: Mapping[str, float]) -> float | None:
    """How many times as long the tasks ``some`` take as those of ``seconds`` do, in the mean; None: not known."""
    there = [seconds[task_id] for task_id in some if task_id in seconds]
    usual = sum(seconds.values()) / max(1, len(seconds))
    return sum(there) / len(there) / usual if there and usual else None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("strict")
    parser.add_argument("shared")
    parser.add_argument("--results", default="results")
    arguments = parser.parse_args()
    stores = [Store(arguments.results).resolve(name) for name in (arguments.strict, arguments.shared)]
    runs = [rows.load(store, (*compare.COLUMNS, "ended")) for store in stores]
    rates = [
        throughput(store.record, len(run.rows), [row.ended for row in run.rows if row.ended])
        for store, run in zip(stores, runs, strict=True)
    ]
    for run, store, rate in zip(runs, stores, rates, strict=True):
        sessions = "; ".join(filter(None, map(took, store.record.sessions))) or "no session has ended"
        speed = f", {rate:.1f} per device hour, {3600 / rate:.1f} s each" if rate else ""
        print(f"{run.run_id}: {len(run.rows)} rows{speed}; {sessions}")
    if all(rates):
        faster = rates[1] / rates[0]
        print(f"throughput, shared over strict: {faster:.2f}")
        weight = heavier((row.task_id for row in runs[0].rows), seconds_by_task(stores[1]))
        if weight is not None:
            tasks = f"the tasks of {runs[0].run_id} are {weight:.2f} times as heavy as all of {runs[1].run_id}"
            print(f"  {tasks}: like for like {faster / weight:.2f}")
    found = compare.compare(*runs, min_effect=0.0)
    differ = [change for change in found.changes if change.judgement.q <= FALSE_DISCOVERY_RATE]
    judged = {
        "ln(speedup)": agreement([change.judgement.change for change in found.changes]),
        "ln(compiled ms)": agreement([math.log(change.compiled) for change in found.changes if change.compiled]),
    }
    for name, one in judged.items():
        print(
            f"{name}, shared less strict, {one.tasks} tasks: mean {one.mean:+.4f}, 90 % interval {one.low:+.4f} to {one.high:+.4f}, "
            f"{'inside' if one.holds else 'NOT inside'} {MAX_MEAN:g} and {MARGIN:g}"
        )
    print(f"{len(differ)} tasks differ after Benjamini and Hochberg at {FALSE_DISCOVERY_RATE:g}")
    for change in differ:
        print(f"  {change.task_id}: {change.ratio:.3f} times the speedup, q {change.judgement.q:.3g}")
    return 0 if all(one.holds for one in judged.values()) and not differ else 1


if __name__ == "__main__":
    raise SystemExit(main())

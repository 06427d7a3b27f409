"""What a run tells a monitoring system: five metrics, through Ray, which offers its nodes' metrics to Prometheus.

Pure counting. The meters themselves come from the cluster; no result depends on them, and the results store stays the record of a run.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from orchestrator.events import Ended, Event, Started
from orchestrator.sweep import State, Sweep
from tasks.spec import Outcome, TaskSpec

if TYPE_CHECKING:
    from orchestrator.driver import Progress

LOOK_S = 5.0
TAG = "what"
"""The one tag of each metric: a state, a status or a failure class."""

GAUGES: Mapping[str, str] = {
    "sweep_tasks": "Tasks of the run by state",
    "sweep_quarantined_nodes": "Nodes that get no more tasks in this run",
}
COUNTERS: Mapping[str, str] = {
    "sweep_rows": "Tasks that were decided, by status",
    "sweep_retries": "Attempts beyond a task's first",
    "sweep_lease_wait_seconds": "Seconds that attempts waited to own their device",
}


class Gauge(Protocol):
    """A value that goes up and down."""

    def set(self, value: float, tags: dict[str, str]) -> None: ...


class Count(Protocol):
    """A value that only grows."""

    def inc(self, value: float, tags: dict[str, str]) -> None: ...


@dataclass(frozen=True, slots=True)
class Meters:
    """In the order of ``GAUGES`` and ``COUNTERS``."""

    tasks: Gauge
    quarantined: Gauge
    rows: Count
    retries: Count
    lease_wait_s: Count


class Metered:
    """A progress that counts what it passes on to ``inner``."""

    def __init__(self, inner: Progress, task_ids: Sequence[str], meters: Meters, clock: Callable[[], float] = time.monotonic) -> None:
        self._inner = inner
        self._task_ids = task_ids
        self._meters = meters
        self._clock = clock
        self._looked_s = -LOOK_S
        self._started: set[tuple[str, int]] = set()

    def event(self, event: Event) -> None:
        self._inner.event(event)
        if isinstance(event, Started) and event.attempt > 1 and (event.task_id, event.attempt) not in self._started:
            self._started.add((event.task_id, event.attempt))
            self._meters.retries.inc(1.0, {TAG: "all"})
        elif isinstance(event, Ended) and event.outcome.waited_s > 0:  # Ray takes no zero
            self._meters.lease_wait_s.inc(event.outcome.waited_s, {TAG: "all"})

    def row(self, task: TaskSpec, outcome: Outcome) -> None:
        self._inner.row(task, outcome)
        self._meters.rows.inc(1.0, {TAG: outcome.status.value})

    def tick(self, sweep: Sweep) -> None:
        self._inner.tick(sweep)
        if self._clock() - self._looked_s < LOOK_S and not sweep.finished:
            return
        self._looked_s = self._clock()
        states = Counter(sweep.state(task_id) for task_id in self._task_ids)
        for state in State:
            self._meters.tasks.set(float(states[state]), {TAG: state.value})
        self._meters.quarantined.set(float(len(sweep.quarantined)), {TAG: "all"})

"""What a run tells a monitoring system: six metrics, through Ray, which offers its nodes' metrics to Prometheus.

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
SAMPLE_S = 1.0
"""How often it is looked who has a device."""

TAGS = ("run", "what")
"""The tags of each metric: the run, and a state or a status, where there is one."""

GAUGES: Mapping[str, str] = {
    "sweep_tasks": "Tasks of the run by state",
    "sweep_quarantined_nodes": "Nodes that get no more tasks in this run",
}
COUNTERS: Mapping[str, str] = {
    "sweep_rows": "Tasks that were decided, by status",
    "sweep_retries": "Attempts beyond a task's first",
    "sweep_lease_wait_seconds": "Seconds that attempts waited to own their device",
    "sweep_device_idle_seconds": "Seconds in which a device that tasks could run on had none; on the CPU a node is a device",
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
    device_idle_s: Count


class Metered:
    """A progress that counts what it passes on to ``inner``. ``devices`` says how many there are that tasks could run on."""

    def __init__(
        self,
        inner: Progress,
        run_id: str,
        task_ids: Sequence[str],
        meters: Meters,
        devices: Callable[[], int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._inner = inner
        self._run_id = run_id
        self._task_ids = task_ids
        self._meters = meters
        self._devices = devices
        self._clock = clock
        self._looked_s = -LOOK_S
        self._sampled_s = clock()
        self._device_count = 0
        self._gpus: dict[tuple[str, int], tuple[str, ...]] = {}

    def event(self, event: Event) -> None:
        self._inner.event(event)
        match event:
            case Started():
                key = (event.task_id, event.attempt)
                if event.attempt > 1 and key not in self._gpus:
                    self._meters.retries.inc(1.0, self._tags("all"))
                self._gpus[key] = event.gpus
            case Ended() if event.outcome.waited_s > 0:  # Ray takes no zero
                self._meters.lease_wait_s.inc(event.outcome.waited_s, self._tags("all"))

    def row(self, task: TaskSpec, outcome: Outcome) -> None:
        self._inner.row(task, outcome)
        self._meters.rows.inc(1.0, self._tags(outcome.status.value))

    def tick(self, sweep: Sweep) -> None:
        self._inner.tick(sweep)
        now_s = self._clock()
        if now_s - self._sampled_s >= SAMPLE_S:
            self._count_idle(sweep, now_s)
        if now_s - self._looked_s < LOOK_S and not sweep.finished:
            return
        self._looked_s = now_s
        if not sweep.finished:
            self._device_count = self._devices()
        states = Counter(sweep.state(task_id) for task_id in self._task_ids)
        for state in State:
            self._meters.tasks.set(float(states[state]), self._tags(state.value))
        self._meters.quarantined.set(float(len(sweep.quarantined)), self._tags("all"))

    def _count_idle(self, sweep: Sweep, now_s: float) -> None:
        running = [task for task in sweep.active() if task.state is State.RUNNING]
        busy = {(task.node, gpu) for task in running for gpu in self._gpus.get((task.task_id, task.attempt)) or ("",)}
        idle_s = (self._device_count - len(busy)) * (now_s - self._sampled_s)
        self._sampled_s = now_s
        if idle_s > 0:
            self._meters.device_idle_s.inc(idle_s, self._tags("all"))

    def _tags(self, what: str) -> dict[str, str]:
        return dict(zip(TAGS, (self._run_id, what), strict=True))

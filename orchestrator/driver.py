"""The loop of a run: events from the cluster to the sweep, the sweep's actions to the cluster and the store, signals to drain.

It decides nothing. The first SIGINT or SIGTERM stops launching and lets what runs come to its end; the second cancels what runs. A
request to stop that was left in the run's folder counts like a signal.
Rows are written in groups: at most ``FLUSH_AFTER_S`` old, or ``FLUSH_ROWS`` many.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Protocol

from orchestrator.cluster import Cluster
from orchestrator.errors import ClusterLostError, ExitCode, StoreError
from orchestrator.events import (
    Action,
    Begin,
    Cancel,
    ClusterLost,
    Drain,
    Event,
    Finish,
    Force,
    Launch,
    NodesChanged,
    RowsWritten,
    StoreFailed,
    Tick,
    WriteRow,
)
from orchestrator.sweep import Sweep
from tasks.spec import Attempt, Outcome, TaskSpec

FLUSH_AFTER_S = 1.0
FLUSH_ROWS = 256
POLL_S = 0.2
TICK_S = 1.0
HOUSEKEEPING_S = 5.0
"""How often the nodes are looked at, and the run's lock is renewed."""


class Sink(Protocol):
    """Where rows go; the results store, or a list in a test."""

    def append(self, batch: Sequence[tuple[TaskSpec, Outcome]]) -> None:
        """Make the rows of ``batch`` durable, all or none."""
        ...

    def tell(self, sweep: Sweep, decided: Sequence[str]) -> None:
        """Leave the stories of the tasks ``decided``, and what is in flight, for people who follow the run."""
        ...

    def refresh_lock(self) -> None:
        """Show that this driver lives."""
        ...

    def stop_requests(self) -> int:
        """How often people have asked through the store that the run stop."""
        ...


class Progress(Protocol):
    """Who watches the run."""

    def event(self, event: Event) -> None: ...

    def row(self, task: TaskSpec, outcome: Outcome) -> None: ...

    def tick(self, sweep: Sweep) -> None: ...


@dataclass(frozen=True, slots=True)
class Ending:
    """How the run ended."""

    exit_code: ExitCode
    reason: str


class Driver:
    """One run of one plan. ``attempts`` makes the context of an attempt from its number."""

    def __init__(
        self,
        tasks: Iterable[TaskSpec],
        sweep: Sweep,
        cluster: Cluster,
        sink: Sink,
        progress: Progress,
        attempt: Callable[[int], Attempt],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tasks: Mapping[str, TaskSpec] = {task.task_id: task for task in tasks}
        self._sweep = sweep
        self._cluster = cluster
        self._sink = sink
        self._progress = progress
        self._attempt = attempt
        self._clock = clock
        self._unwritten: list[tuple[TaskSpec, Outcome]] = []
        self._oldest_unwritten_s = 0.0
        self._ending: Ending | None = None
        self._signals = 0
        self._requests = 0

    def run(self) -> Ending:
        """Run to the end, or to where a signal or a failing store makes it stop."""
        with self._signal_handlers():
            try:
                self._loop()
            except ClusterLostError as error:
                self._handle([ClusterLost(self._clock(), str(error))])
                if self._unwritten:
                    self._flush()
        assert self._ending is not None
        return self._ending

    def _loop(self) -> None:
        self._handle([NodesChanged(self._clock(), self._node_names()), Begin(self._clock())])
        next_tick_s = next_housekeeping_s = self._clock()
        seen = 0
        while self._ending is None:
            events = self._cluster.poll(POLL_S)
            now_s = self._clock()
            if (asked := self._signals + self._requests) > seen:
                events.append(Drain(now_s) if seen == 0 and asked == 1 else Force(now_s))
                seen = asked
            if now_s >= next_tick_s:
                events.append(Tick(now_s))
                next_tick_s = now_s + TICK_S
            if now_s >= next_housekeeping_s:
                events.append(NodesChanged(now_s, self._node_names()))
                self._keep_lock()
                self._requests = max(self._requests, self._sink.stop_requests())
                self._sink.tell(self._sweep, ())
                next_housekeeping_s = now_s + HOUSEKEEPING_S
            self._handle(events)
            self._flush_if_due()
            self._progress.tick(self._sweep)

    def _handle(self, events: Iterable[Event]) -> None:
        for event in events:
            self._progress.event(event)
            self._carry_out(self._sweep.handle(event))

    def _carry_out(self, actions: Iterable[Action]) -> None:
        for action in actions:
            match action:
                case Launch():
                    task = self._tasks[action.task_id]
                    self._cluster.launch(task, self._attempt(action.attempt), action.avoid, action.alone)
                case Cancel():
                    self._cluster.cancel(action.task_id, action.attempt)
                case WriteRow():
                    self._keep(self._tasks[action.task_id], action.outcome)
                case Finish():
                    self._ending = Ending(action.exit_code, action.reason)

    def _keep(self, task: TaskSpec, outcome: Outcome) -> None:
        if not self._unwritten:
            self._oldest_unwritten_s = self._clock()
        self._unwritten.append((task, outcome))
        self._progress.row(task, outcome)

    def _flush_if_due(self) -> None:
        idle = not self._sweep.active()
        old = self._clock() - self._oldest_unwritten_s >= FLUSH_AFTER_S
        if self._unwritten and (old or idle or len(self._unwritten) >= FLUSH_ROWS):
            self._flush()

    def _flush(self) -> None:
        batch, self._unwritten = self._unwritten, []
        try:
            self._sink.append(batch)
        except StoreError as error:
            # What the store could not take is still in the spool of the nodes; a resume finds it there.
            self._handle([StoreFailed(self._clock(), str(error))])
            return
        task_ids = tuple(task.task_id for task, _ in batch)
        self._handle([RowsWritten(self._clock(), task_ids)])
        self._sink.tell(self._sweep, task_ids)

    def _keep_lock(self) -> None:
        try:
            self._sink.refresh_lock()
        except StoreError as error:
            self._handle([StoreFailed(self._clock(), str(error))])

    def _node_names(self) -> frozenset[str]:
        return frozenset(node.name for node in self._cluster.nodes())

    @contextmanager
    def _signal_handlers(self) -> Iterator[None]:
        def count(_number: int, _frame: FrameType | None) -> None:
            self._signals += 1

        previous = {number: signal.signal(number, count) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

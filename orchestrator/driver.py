"""The loop of a run: events from the cluster to the sweep, the sweep's actions to the cluster and the store, signals to drain.

It decides nothing. What an attempt has left in the spool counts before what is said of it: one that is reported lost, or that the
sweep is about to give up, is looked for there first. The first SIGINT or SIGTERM stops launching and lets what runs come to its end; the
second cancels what runs. A request to stop that was left in the run's folder counts like a signal. Rows are written in groups: at most
``FLUSH_AFTER_S`` old, or ``FLUSH_ROWS`` many. What the store does not take stops the run, and is tried again until the end.
"""

from __future__ import annotations

import itertools
import logging
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
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
    Ended,
    Event,
    Finish,
    Force,
    Launch,
    Lost,
    NodesChanged,
    RowsWritten,
    StoreFailed,
    Tick,
    WriteRow,
)
from orchestrator.lock import STALE_AFTER_S
from orchestrator.room import Room
from orchestrator.sharing import roomier
from orchestrator.sweep import State, Sweep
from tasks.spec import Attempt, Outcome, TaskSpec

FLUSH_AFTER_S = 1.0
FLUSH_ROWS = 256
POLL_S = 0.2
TICK_S = 1.0
HOUSEKEEPING_S = 5.0
"""How often the nodes are looked at, and the run's lock is renewed."""
LAST_TRIES_S = (0.0, 2.0)
"""The pauses before the last tries to write what the store has not taken."""
SILENT_S = STALE_AFTER_S / 2
"""How long the lock's sign of life may fail to be written, before others may take this driver for dead."""

log = logging.getLogger(__name__)


class Sink(Protocol):
    """Where rows go; the results store, or a list in a test."""

    def append(self, batch: Sequence[tuple[TaskSpec, Outcome]]) -> None:
        """Make the rows of ``batch`` durable, all or none."""
        ...

    def tell(self, sweep: Sweep, decided: Sequence[str]) -> None:
        """Leave the stories of the tasks ``decided``, and what is in flight, for people who follow the run."""
        ...

    def find(self, task_id: str, attempt: int) -> Outcome | None:
        """What the attempt has left in the spool, or an earlier one that was given up; None if there is nothing."""
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
    """One run of one plan. ``attempt`` makes the context of an attempt from its number; ``room`` is what the plan asks of nodes."""

    def __init__(
        self,
        tasks: Iterable[TaskSpec],
        sweep: Sweep,
        cluster: Cluster,
        sink: Sink,
        progress: Progress,
        attempt: Callable[[int], Attempt],
        room: Room | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tasks: Mapping[str, TaskSpec] = {task.task_id: task for task in tasks}
        self._room = room or Room.of(self._tasks.values())
        self._sweep = sweep
        self._cluster = cluster
        self._sink = sink
        self._progress = progress
        self._attempt = attempt
        self._clock = clock
        self._epoch_s = time.time() - clock()  # from the events' clock to that of rows
        self._lock_kept_s = clock()
        self._untold: dict[str, None] = {}  # tasks without a row whose story has gone on
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
            self._write_the_rest()
            self._tell(task.task_id for task in self._sweep.active())
        assert self._ending is not None
        return self._ending

    def _loop(self) -> None:
        self._handle([self._look_at_nodes(), Begin(self._clock())])
        next_tick_s = next_housekeeping_s = self._clock()
        seen = 0
        while self._ending is None:
            events = self._cluster.poll(POLL_S)
            now_s = self._clock()
            if (asked := self._signals + self._requests) > seen:
                # What has just ended makes room that a drain is not to fill; what is taken back may just have ended.
                events = [Drain(now_s), *events] if seen == 0 and asked == 1 else [*events, Force(now_s)]
                seen = asked
            if now_s >= next_tick_s:
                events.append(Tick(now_s))
                next_tick_s = now_s + TICK_S
            self._handle(events)  # before the nodes are looked at, which may find the cluster gone
            if now_s >= next_housekeeping_s:
                self._handle([self._look_at_nodes()])
                self._keep_lock()
                self._requests = max(self._requests, self._sink.stop_requests())
                self._tell(())
                next_housekeeping_s = now_s + HOUSEKEEPING_S
            self._flush_if_due()
            self._progress.tick(self._sweep)

    def _handle(self, events: Iterable[Event]) -> None:
        for event in itertools.chain.from_iterable(map(self._with_what_was_left, events)):
            self._progress.event(event)
            self._carry_out(self._sweep.handle(event))
            if isinstance(event, (Ended, Lost)) and self._sweep.state(event.task_id) is not State.TERMINAL:
                self._untold[event.task_id] = None

    def _with_what_was_left(self, event: Event) -> Iterator[Event]:
        """``event``, after the ends that the spool knows of attempts which the event would give up."""
        match event:
            case Lost():
                outcome = self._sink.find(event.task_id, event.attempt)
                yield event if outcome is None else Ended(event.at_s, event.task_id, event.attempt, outcome)
                return
            case Tick() | NodesChanged() | ClusterLost() | Force():
                for task_id, attempt in self._sweep.gives_up(event):
                    outcome = self._sink.find(task_id, attempt)
                    if outcome is not None:
                        self._cluster.cancel(task_id, attempt)
                        yield Ended(event.at_s, task_id, attempt, outcome)
        yield event

    def _carry_out(self, actions: Iterable[Action]) -> None:
        for action in actions:
            match action:
                case Launch():
                    task = _roomier(self._tasks[action.task_id]) if action.roomy else self._tasks[action.task_id]
                    attempt = replace(self._attempt(action.attempt), refuse=tuple(sorted(action.refuse)))
                    self._cluster.launch(task, attempt, action.avoid, action.alone)
                case Cancel():
                    self._cluster.cancel(action.task_id, action.attempt)
                    self._untold[action.task_id] = None
                case WriteRow():
                    self._keep(self._tasks[action.task_id], self._in_wall_time(action))
                case Finish():
                    self._ending = Ending(action.exit_code, action.reason)

    def _in_wall_time(self, action: WriteRow) -> Outcome:
        outcome = action.outcome
        if not action.here:
            return outcome
        return replace(outcome, started=outcome.started + self._epoch_s, ended=outcome.ended + self._epoch_s)

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
        if error := self._append(batch):
            self._unwritten = batch
            self._oldest_unwritten_s = self._clock()  # the next try is as far away as the next batch would be
            self._handle([StoreFailed(self._clock(), error)])

    def _append(self, batch: Sequence[tuple[TaskSpec, Outcome]]) -> str | None:
        """Write ``batch`` and say so; what went wrong if it cannot be written."""
        try:
            self._sink.append(batch)
        except StoreError as error:
            return str(error)
        task_ids = tuple(task.task_id for task, _ in batch)
        self._handle([RowsWritten(self._clock(), task_ids)])
        self._tell(task_ids)
        return None

    def _write_the_rest(self) -> None:
        """All at once, or else row by row: one that no store would take keeps no other out."""
        for pause_s in LAST_TRIES_S:
            if not self._unwritten:
                return
            time.sleep(pause_s)
            if self._append(self._unwritten) is None:
                self._unwritten = []
                return
            failed = [(entry, error) for entry in self._unwritten if (error := self._append([entry]))]
            self._unwritten = [entry for entry, _ in failed]
        for (task, outcome), error in failed:
            log.error("%s: its row (%s) is not stored: %s", task.task_id, outcome.status.value, error)
        if failed:
            self._handle([StoreFailed(self._clock(), failed[0][1])])

    def _tell(self, task_ids: Iterable[str]) -> None:
        told = dict.fromkeys([*task_ids, *self._untold])
        self._untold.clear()
        self._sink.tell(self._sweep, tuple(told))

    def _keep_lock(self) -> None:
        try:
            self._sink.refresh_lock()
            self._lock_kept_s = self._clock()
        except StoreError as error:
            if self._clock() - self._lock_kept_s > SILENT_S:
                self._handle([StoreFailed(self._clock(), str(error))])
            else:
                log.warning("the run's lock could not be renewed: %s", error)

    def _look_at_nodes(self) -> NodesChanged:
        return self._room.event(self._clock(), self._cluster.nodes())

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


def _roomier(task: TaskSpec) -> TaskSpec:
    """``task`` with several times its share of a device; what its row says of it stays as planned."""
    return replace(task, resources=replace(task.resources, num_gpus=roomier(task.resources.num_gpus)))

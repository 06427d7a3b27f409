"""The pure state machine of a run: events in, actions out. It imports no ray, os or clock; every event carries its time.

    planned -> queued -> launched -> running -> terminal
                 ^          |           |
                 +------ retrying <-----+

Events may come twice, late, or not at all: one about an attempt that is over is noted in the task's story and changes nothing, and
deadlines fire on ``Tick``. An event that cannot be (an unknown task, an attempt that was never launched) raises
``IllegalTransition`` with the story so far.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from orchestrator.errors import ExitCode
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
    Heartbeat,
    Launch,
    Lost,
    NodesChanged,
    PhaseStarted,
    Refused,
    RowsWritten,
    Started,
    StoreFailed,
    Tick,
    WriteRow,
)
from orchestrator.policy import QUARANTINE_AFTER_TASKS, Policy, Retry
from tasks.spec import DeadlineSpec, FailureClass, Outcome, Phase, Status, device_name

SILENCE_S = 120.0
"""A running attempt that sends no heartbeat for this long is lost, whatever Ray says of its node."""

DEADLINE_MARGIN_S = 60.0
"""What the driver grants beyond a task's own deadline before it stops trusting the task's supervisor to enforce it."""


TIME_IS_UP = "its time is up"
"""Why a run ends early that was given only so long."""

UNSCHEDULED_S = 900.0
"""How long an attempt may wait to be started while nothing of this run is on: others use the cluster, or a node that fits never comes."""


class State(StrEnum):
    """Where a task is."""

    PLANNED = "planned"
    QUEUED = "queued"
    LAUNCHED = "launched"
    RUNNING = "running"
    RETRYING = "retrying"
    TERMINAL = "terminal"


@dataclass(frozen=True, slots=True)
class StoryEntry:
    """One thing that happened to a task."""

    at_s: float
    state: State
    what: str

    def __str__(self) -> str:
        return f"{self.at_s:.3f} {self.state.value}: {self.what}"


class IllegalTransition(RuntimeError):  # noqa: N818 - it is a transition, and an error by what it derives from
    """An event that cannot be; a bug in the driver. The message ends with the task's story."""

    def __init__(self, what: str, story: Iterable[StoryEntry]) -> None:
        super().__init__("\n  ".join([what, *(str(entry) for entry in story)]))


@dataclass(frozen=True, slots=True)
class SweepTask:
    """What the machine needs to know of a task. ``done`` is the status of a terminal row that an earlier driver wrote.

    ``shares``: other tasks may be placed on its device; ``small``: even if it asked for several times as much.
    ``request``: which of ``NodesChanged.fitting`` are the nodes that can run it.
    ``expected_s``: how long an attempt is expected to take from its launch, beside all others.
    """

    task_id: str
    deadlines: DeadlineSpec = field(default_factory=DeadlineSpec)
    skip: str | None = None
    done: Status | None = None
    first_attempt: int = 1
    shares: bool = False
    request: int = 0
    expected_s: float = 0.0
    small: bool = False


@dataclass(slots=True)
class _Record:
    task: SweepTask
    attempt: int
    state: State = State.PLANNED
    story: list[StoryEntry] = field(default_factory=list)
    failures: tuple[FailureClass, ...] = ()
    flagged: tuple[Outcome, ...] = ()  # passes that are measured again
    status: Status | None = None
    written: bool = False
    phase: Phase | None = None
    node: str = ""
    gpus: tuple[str, ...] = ()
    avoid: frozenset[str] = frozenset()  # its own wish
    shunned: frozenset[str] = frozenset()  # where the attempt that is on cannot be placed
    alone: bool = False
    roomy: bool = False
    not_before_s: float = 0.0
    launched_s: float = 0.0
    started_s: float = 0.0
    heard_s: float = 0.0
    paused_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Progress:
    """One line of a progress table."""

    task_id: str
    state: State
    attempt: int
    phase: Phase | None
    node: str
    status: Status | None
    started_s: float


class Sweep:
    """The run. ``handle`` is the only method that changes anything."""

    def __init__(
        self,
        tasks: Iterable[SweepTask],
        policy: Policy,
        max_in_flight: int = 1,
        unscheduled_s: float = UNSCHEDULED_S,
        until_s: float = math.inf,
    ) -> None:
        """``until_s``: when to stop; no task is launched that is expected to end later."""
        self._records = {task.task_id: _Record(task, task.first_attempt) for task in tasks}
        self._policy = policy
        self._max_in_flight = max_in_flight
        self._unscheduled_s = unscheduled_s
        self._until_s = until_s
        self._queue: deque[str] = deque()
        self._active: dict[str, _Record] = {}
        self._counts: Counter[Status] = Counter()
        self._retrying: dict[str, _Record] = {}
        self._open = len(self._records)  # tasks without a durable row
        self._nodes: frozenset[str] = frozenset()
        self._fitting: tuple[frozenset[str], ...] = ()
        self._suspects: dict[str, set[str]] = {}
        self._quarantined: frozenset[str] = frozenset()
        self._gpus: Mapping[str, int] = {}  # of each node, how many
        self._bad_gpus: frozenset[str] = frozenset()
        self._last_activity_s = 0.0
        self._interrupted = ""
        self._fatal = ""
        self._store_failed = False
        self._finished = False

    # What a driver may look at ------------------------------------------------------------------------------------------------

    @property
    def quarantined(self) -> frozenset[str]:
        """Nodes and GPUs that get no more tasks in this run."""
        return self._quarantined | self._bad_gpus

    @property
    def finished(self) -> bool:
        return self._finished

    def story(self, task_id: str) -> tuple[StoryEntry, ...]:
        """All that happened to a task, in order."""
        return tuple(self._records[task_id].story)

    def state(self, task_id: str) -> State:
        return self._records[task_id].state

    def status_counts(self) -> Mapping[Status, int]:
        """How many tasks have ended in each status."""
        return dict(self._counts)

    def gives_up(self, event: Tick | NodesChanged | ClusterLost | Force) -> list[tuple[str, int]]:
        """The attempts that ``event`` would end, as (task_id, attempt): a last chance to look for what they may have left."""
        records = self._active.values()
        match event:
            case Tick():
                doomed = [record for record in records if self._overdue(record, event.at_s)]
            case NodesChanged():
                doomed = [record for record in records if record.node in self._nodes - event.nodes]
            case _:
                doomed = list(records)
        return [(record.task.task_id, record.attempt) for record in doomed]

    def active(self) -> tuple[Progress, ...]:
        """The tasks that the cluster has now."""
        return tuple(Progress(r.task.task_id, r.state, r.attempt, r.phase, r.node, r.status, r.started_s) for r in self._active.values())

    # The one mutator ----------------------------------------------------------------------------------------------------------

    def handle(self, event: Event) -> list[Action]:
        """Take in one event; the actions are to be carried out in order.

        Raises:
            IllegalTransition: the event cannot be.
        """
        actions: list[Action] = []
        match event:
            case Begin():
                self._begin(event, actions)
            case Started() | PhaseStarted() | Heartbeat():
                self._progress(event)
            case Ended() | Lost() | Refused():
                self._over(event, actions)
            case NodesChanged():
                self._nodes_changed(event, actions)
            case RowsWritten():
                self._rows_written(event)
            case StoreFailed():
                self._store_failed = True
                self._fatal = self._fatal or event.error
            case ClusterLost():
                self._fatal = self._fatal or event.error
                self._abandon(event.at_s, "the cluster is gone")
            case Drain():
                self._drain(event.at_s, "interrupted", actions)
            case Force():
                self._force(event, actions)
            case Tick():
                self._tick(event, actions)
        self._launch(event.at_s, actions)
        self._finish(actions)
        return actions

    def _begin(self, event: Begin, actions: list[Action]) -> None:
        self._last_activity_s = event.at_s
        for task_id, record in self._records.items():
            if record.state is not State.PLANNED:
                continue
            if record.task.done is not None:
                self._note(record, event.at_s, State.TERMINAL, f"kept from an earlier driver: {record.task.done.value}")
                record.status, record.written = record.task.done, True
                self._counts[record.task.done] += 1
                self._open -= 1
            elif record.task.skip is not None:
                error = record.task.skip
                self._decide(record, event.at_s, self._verdict(record, event.at_s, Status.SKIPPED, FailureClass.EXCLUDED, error), actions)
            else:
                self._note(record, event.at_s, State.QUEUED, "released")
                self._queue.append(task_id)

    def _progress(self, event: Started | PhaseStarted | Heartbeat) -> None:
        record = self._current(event.task_id, event.attempt, type(event).__name__, event.at_s)
        if record is None:
            return
        record.heard_s = self._last_activity_s = event.at_s
        if record.state is State.LAUNCHED:
            # A heartbeat or phase may overtake a lost ``Started``: what matters is that the attempt runs.
            record.started_s = event.at_s
            self._note(record, event.at_s, State.RUNNING, f"attempt {record.attempt} runs")
        if isinstance(event, Started):
            record.node, record.gpus = event.node, event.gpus
            self._note(record, event.at_s, State.RUNNING, f"on node {event.node}")
        elif isinstance(event, PhaseStarted):
            record.phase = event.phase
            self._note(record, event.at_s, State.RUNNING, f"phase {event.phase.value}")
        else:
            record.paused_s = event.paused_s

    def _over(self, event: Ended | Lost | Refused, actions: list[Action]) -> None:
        record = self._current(event.task_id, event.attempt, _what(event), event.at_s)
        if record is None:
            return
        match event:
            case Ended():
                record.gpus = event.gpus or record.gpus
                self._settle(record, event.at_s, event.outcome, actions, here=False)
            case Lost():
                outcome = self._verdict(record, event.at_s, Status.INFRA_ERROR, event.failure_class, event.error)
                self._settle(record, event.at_s, outcome, actions)
            case Refused():
                self._requeue(record, event.at_s, "it was given a quarantined GPU")

    def _nodes_changed(self, event: NodesChanged, actions: list[Action]) -> None:
        gone = self._nodes - event.nodes
        self._nodes, self._fitting, self._gpus = event.nodes, event.fitting, event.gpus
        self._max_in_flight = event.max_in_flight or self._max_in_flight
        for record in list(self._active.values()):
            if record.node and record.node in gone:
                error = f"node {record.node} left the cluster"
                actions.append(Cancel(record.task.task_id, record.attempt))
                self._settle(
                    record, event.at_s, self._verdict(record, event.at_s, Status.INFRA_ERROR, FailureClass.NODE_LOST, error), actions
                )
            elif record.state is State.LAUNCHED and record.shunned and not self._places(record) - record.shunned:
                self._place_anew(record, event.at_s, actions)

    def _place_anew(self, record: _Record, at_s: float, actions: list[Action]) -> None:
        """The nodes that an attempt waits for have left, and it may not run on those that are there: no failure, but no way on either."""
        actions.append(Cancel(record.task.task_id, record.attempt))
        self._requeue(record, at_s, "the nodes that it waited for have left")

    def _requeue(self, record: _Record, at_s: float, why: str) -> None:
        """An attempt that never began is no failure; the next one has another number, so that the two are told apart."""
        del self._active[record.task.task_id]
        record.attempt += 1
        self._note(record, at_s, State.QUEUED, why)
        self._queue.appendleft(record.task.task_id)

    def _rows_written(self, event: RowsWritten) -> None:
        for task_id in event.task_ids:
            record = self._find(task_id)
            if record.state is not State.TERMINAL:
                raise IllegalTransition(f"{task_id}: a row was written for a task that is {record.state.value}", record.story)
            if not record.written:
                record.written = True
                self._open -= 1
                self._note(record, event.at_s, State.TERMINAL, "row written")

    def _drain(self, at_s: float, why: str, actions: list[Action]) -> None:
        """Launch nothing more, and take back what does not run yet: it could start at any time, and the drain would wait for it."""
        self._interrupted = why
        for task_id, record in list(self._active.items()):
            if record.state is State.LAUNCHED:
                actions.append(Cancel(task_id, record.attempt))
                del self._active[task_id]
                if not record.flagged:
                    self._note(record, at_s, State.QUEUED, f"{why} before it ran; a resume runs it")
        for task_id, record in self._records.items():  # measured before, and not to be measured again: that counts
            if record.flagged and record.state in (State.LAUNCHED, State.RETRYING, State.QUEUED):
                self._retrying.pop(task_id, None)
                self._decide(record, at_s, record.flagged[-1], actions, here=False)

    def _force(self, event: Force, actions: list[Action]) -> None:
        self._interrupted = "interrupted"
        actions += [Cancel(record.task.task_id, record.attempt) for record in self._active.values()]
        self._abandon(event.at_s, "cancelled by the user")

    def _abandon(self, at_s: float, why: str) -> None:
        """Nothing more is expected of what is in flight."""
        for record in self._active.values():
            self._note(record, at_s, State.QUEUED, f"{why}; a resume runs it again")
        self._active.clear()

    def _tick(self, event: Tick, actions: list[Action]) -> None:
        for task_id, record in list(self._retrying.items()):
            if event.at_s >= record.not_before_s:
                del self._retrying[task_id]
                self._note(record, event.at_s, State.QUEUED, f"attempt {record.attempt} is due")
                self._queue.appendleft(task_id)
        if any(record.state is State.RUNNING for record in self._active.values()):
            self._last_activity_s = event.at_s
        for record in list(self._active.values()):
            overdue = self._overdue(record, event.at_s)
            if overdue is not None:
                status, failure_class, error = overdue
                actions.append(Cancel(record.task.task_id, record.attempt))
                self._settle(record, event.at_s, self._verdict(record, event.at_s, status, failure_class, error), actions)
        if event.at_s >= self._until_s and not self._draining:
            self._drain(event.at_s, TIME_IS_UP, actions)

    def _overdue(self, record: _Record, at_s: float) -> tuple[Status, FailureClass, str] | None:
        if record.state is State.LAUNCHED:
            # Waiting behind a running task is no fault; waiting while nothing runs is.
            waited_s = at_s - max(record.launched_s, self._last_activity_s)
            if waited_s > self._unscheduled_s:
                error = f"the cluster did not start the task within {self._unscheduled_s:.0f} s although nothing else ran"
                return Status.INFRA_ERROR, FailureClass.UNSCHEDULED, error
            return None
        if at_s - record.heard_s > SILENCE_S:
            where = f"node {record.node}" if record.node else "its node"
            return Status.INFRA_ERROR, FailureClass.NODE_LOST, f"no sign of life from {where} for {SILENCE_S:.0f} s"
        limit_s = record.task.deadlines.task_s + DEADLINE_MARGIN_S
        if at_s - record.started_s - record.paused_s > limit_s:
            phase = record.phase.value if record.phase else Phase.START.value
            error = f"the driver's deadline: {limit_s:.0f} s, in phase {phase}; the task's own supervisor did not enforce it"
            return Status.TIMEOUT, FailureClass.DEADLINE, error
        return None

    # Transitions ----------------------------------------------------------------------------------------------------------------

    def _settle(self, record: _Record, at_s: float, outcome: Outcome, actions: list[Action], *, here: bool = True) -> None:
        """An attempt is over: try again or decide. ``here``: by a verdict of this class's own."""
        self._active.pop(record.task.task_id, None)
        self._last_activity_s = at_s
        if outcome.failure_class is not None:
            record.failures += (outcome.failure_class,)
        self._suspect(record, outcome)
        # A worker that dies early has not said whether it had neighbours; that it could have had some is enough.
        shared = not record.alone and (record.task.shares or bool(outcome.measurement.neighbours))
        retry = self._policy.retry(outcome, shared, record.failures, small=record.task.small)
        again = None if self._draining else self._policy.remeasure(outcome, len(record.flagged))
        if again is not None:
            record.flagged += (outcome,)
            self._retry(record, at_s, again, f"{outcome.status.value}, but {outcome.measurement.quality}: measured again")
        elif retry is None:
            self._conclude(record, at_s, outcome, actions, here=here)
        elif self._draining:
            self._note(record, at_s, State.QUEUED, f"{outcome.status.value}: {outcome.error}; left for a resume"[:500])
        else:
            if outcome.failure_class is FailureClass.UNSCHEDULED:  # perhaps nothing but the node that it avoids has room
                record.avoid = frozenset()
            self._retry(record, at_s, retry, f"{outcome.status.value} ({outcome.failure_class}): {outcome.error}"[:500])

    def _conclude(self, record: _Record, at_s: float, outcome: Outcome, actions: list[Action], *, here: bool) -> None:
        """The last attempt counts, unless the machinery broke it off: then an earlier pass does, with its flag."""
        if outcome.status is Status.INFRA_ERROR and record.flagged:
            self._note(record, at_s, record.state, f"{outcome.error}; what was measured before counts"[:500])
            outcome, here = record.flagged[-1], False
        self._decide(record, at_s, outcome, actions, here=here)

    def _retry(self, record: _Record, at_s: float, retry: Retry, why: str) -> None:
        self._note(record, at_s, State.RETRYING, why)
        record.attempt += 1
        record.not_before_s = at_s + retry.delay_s
        record.alone = record.alone or retry.alone
        record.roomy = record.roomy or retry.roomy
        record.avoid |= {retry.avoid_node} if retry.avoid_node else frozenset()
        record.phase, record.node, record.gpus, record.paused_s, record.started_s = None, "", (), 0.0, 0.0
        self._retrying[record.task.task_id] = record

    def _decide(self, record: _Record, at_s: float, outcome: Outcome, actions: list[Action], *, here: bool = True) -> None:
        record.status = outcome.status
        self._counts[outcome.status] += 1
        self._note(record, at_s, State.TERMINAL, outcome.status.value)
        actions.append(WriteRow(record.task.task_id, outcome, here))

    def _suspect(self, record: _Record, outcome: Outcome) -> None:
        """A device's failure counts against the device where it is known, any other against the node.

        The last node or GPU is never given up: a doubtful one with a bounded number of retries beats no run at all.
        """
        if not outcome.node or not self._policy.suspects(outcome.failure_class):
            return
        others = self._places(record) - self._quarantined - {outcome.node}
        if outcome.failure_class is not FailureClass.DEVICE or not record.gpus:
            if self._fails_too_many(outcome.node, record) and others:
                self._quarantined |= {outcome.node}
            return
        for gpu in record.gpus:
            name = device_name(outcome.node, gpu)
            if self._fails_too_many(name, record) and self._good_gpus(others | {outcome.node}) > (name not in self._bad_gpus):
                self._bad_gpus |= {name}
        if others and self._gpus.get(outcome.node) and not self._good_gpus({outcome.node}):
            self._quarantined |= {outcome.node}

    def _fails_too_many(self, name: str, record: _Record) -> bool:
        failed = self._suspects.setdefault(name, set())
        failed.add(record.task.task_id)
        return len(failed) >= QUARANTINE_AFTER_TASKS

    def _good_gpus(self, nodes: Collection[str]) -> int:
        bad = sum(name.rpartition("/")[0] in nodes for name in self._bad_gpus)
        return sum(self._gpus.get(node, 0) for node in nodes) - bad

    def _launch(self, at_s: float, actions: list[Action]) -> None:
        while not self._draining and len(self._active) < self._max_in_flight:
            record = self._next(at_s)
            if record is None:
                return
            record.launched_s = at_s
            self._active[record.task.task_id] = record
            self._note(record, at_s, State.LAUNCHED, f"attempt {record.attempt}")
            record.shunned = self._shunned(record)
            actions.append(Launch(record.task.task_id, record.attempt, record.shunned, record.alone, self._bad_gpus, record.roomy))

    def _next(self, at_s: float) -> _Record | None:
        """The first task in the queue that can end in time."""
        for task_id in self._queue:
            record = self._records[task_id]
            if at_s + record.task.expected_s <= self._until_s:
                self._queue.remove(task_id)
                return record
        if self._queue and not self._active and not self._retrying:
            self._interrupted = TIME_IS_UP
        return None

    def _shunned(self, record: _Record) -> frozenset[str]:
        """The nodes to keep the next attempt away from, as far as others are left that can run it.

        "Elsewhere" and quarantine are wishes: with no other node the same one is better than none.
        """
        places = self._places(record)
        for unwanted in (record.avoid | self._quarantined, self._quarantined):
            if places - unwanted:
                return places & unwanted
        return frozenset()

    def _places(self, record: _Record) -> frozenset[str]:
        """The live nodes that could run the task if they were empty."""
        return self._fitting[record.task.request] if self._fitting else self._nodes

    def _finish(self, actions: list[Action]) -> None:
        if self._finished or self._active:
            return
        if self._open == 0:
            actions.append(Finish(self._exit_code(), "finished"))
        elif self._draining and (self._store_failed or not self._rows_under_way()):
            code = ExitCode.INFRASTRUCTURE if self._fatal else ExitCode.INTERRUPTED
            actions.append(Finish(code, self._fatal or self._interrupted))
        else:
            return
        self._finished = True

    @property
    def _draining(self) -> bool:
        """Nothing more is launched."""
        return bool(self._interrupted or self._fatal)

    def _rows_under_way(self) -> bool:
        return any(record.state is State.TERMINAL and not record.written for record in self._records.values())

    def _exit_code(self) -> ExitCode:
        counts = self.status_counts()
        if counts.get(Status.INFRA_ERROR):
            return ExitCode.INFRASTRUCTURE
        passed, skipped = counts.get(Status.PASS, 0), counts.get(Status.SKIPPED, 0)
        # "Measured nothing" is never a success.
        return ExitCode.PASSED if passed and passed + skipped == len(self._records) else ExitCode.SOME_FAILED

    # Small print ----------------------------------------------------------------------------------------------------------------

    def _find(self, task_id: str) -> _Record:
        try:
            return self._records[task_id]
        except KeyError:
            raise IllegalTransition(f"{task_id}: no such task in this run", ()) from None

    def _current(self, task_id: str, attempt: int, what: str, at_s: float) -> _Record | None:
        """The record if the event is about the attempt that is on; None if that attempt is over."""
        record = self._find(task_id)
        if attempt > record.attempt or (attempt == record.attempt and record.state is State.PLANNED):
            raise IllegalTransition(f"{task_id}: {what} of attempt {attempt}, which was never launched", record.story)
        if attempt < record.attempt or record.state not in (State.LAUNCHED, State.RUNNING):
            self._note(record, at_s, record.state, f"ignored: {what} of attempt {attempt}")
            return None
        return record

    def _note(self, record: _Record, at_s: float, state: State, what: str) -> None:
        record.state = state
        record.story.append(StoryEntry(at_s, state, what))

    def _verdict(self, record: _Record, at_s: float, status: Status, failure_class: FailureClass, error: str) -> Outcome:
        return Outcome(
            task_id=record.task.task_id,
            attempt=record.attempt,
            status=status,
            phase=record.phase or Phase.START,
            failure_class=failure_class,
            error=error,
            started=record.started_s or at_s,
            ended=at_s,
            node=record.node,
        )


def _what(event: Ended | Lost | Refused) -> str:
    match event:
        case Ended():
            return f"ended {event.outcome.status.value}"
        case Lost():
            return f"lost: {event.error}"
        case Refused():
            return "refused"

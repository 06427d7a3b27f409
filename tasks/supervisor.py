"""Runs one attempt at a task in a process tree of its own, and says what happens: the library that a Ray task calls.

``supervise`` starts a guardian (``tasks.guardian``), a small process that starts the worker and ends with nothing of it left. The caller
gets events, at the end exactly one ``Finished``, whatever the worker does. Close the iterator, or let the calling process die, and the
guardian ends the worker. ``run_inline`` runs a toy in the calling process instead. Standard library only.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, TypeAlias

from tasks.channel import Channel
from tasks.devices import cores_of, device_of
from tasks.forkclient import UnpreparedError, fork_guardian
from tasks.launch import importable_paths
from tasks.lease import meeting_place
from tasks.processes import Identity, identity, kill
from tasks.scratch import UnsafeDirectoryError, clear_leftovers, user_directory
from tasks.spec import Attempt, FailureClass, Outcome, Phase, SpecError, Status, TaskSpec, decode, encode
from tasks.spool import leave

HEARTBEAT_S = 5.0

CLOSE_LIMIT_S = 15.0
"""A guardian that has not ended so long after it was told to is killed; longer than what it allows the kernel to end processes."""

_ERRORS = 2

# A fork at once, before anything is imported: the guardian must not be a child of the caller, because Ray kills the children of its
# workers with SIGKILL, and a guardian that dies so cannot clean up. It notices the caller's death by end of file on its input.
_START_GUARDIAN = (
    "import os, sys\n"
    "if os.fork(): os._exit(0)\n"
    "os.setsid()\n"
    "sys.path.append(sys.argv[1])\n"
    "from tasks.guardian import main\n"
    "sys.exit(main())\n"
)


@dataclass(frozen=True, slots=True)
class Started:
    """The worker runs, in ``Phase.START``. ``at``, here and below, is in seconds since the epoch."""

    node: str
    pid: int
    gpu_ids: tuple[str, ...]
    at: float


@dataclass(frozen=True, slots=True)
class PhaseStarted:
    """The worker entered ``phase``."""

    phase: Phase
    at: float


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The guardian lives, about every ``HEARTBEAT_S``; the first may precede ``Started``, for no worker starts while a neighbour times.

    ``paused_s``: seconds so far that do not count, paused or waiting for the device.
    """

    phase: Phase
    at: float
    paused_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Finished:
    """The attempt is over, and nothing of it is left on the node."""

    outcome: Outcome


Event: TypeAlias = Started | PhaseStarted | Heartbeat | Finished
EVENTS: dict[str, type[Started | PhaseStarted | Heartbeat | Finished]] = {
    kind.__name__: kind for kind in (Started, PhaseStarted, Heartbeat, Finished)
}


@dataclass(frozen=True, slots=True)
class Request:
    """What a guardian is told, as one line of JSON on its input. ``supervisor``: process number and start time of the caller."""

    task: TaskSpec
    attempt: Attempt
    node: str
    directory: str
    meeting_place: str
    device: str  # shared by all attempts that name the same one
    cores: tuple[int, ...]  # the worker's; empty: any
    python_path: str
    heartbeat_s: float
    supervisor: tuple[int, ...]
    unprepared: str = ""  # why the guardian was not forked from a prepared parent, where it was not


def supervise(task: TaskSpec, attempt: Attempt, node: str | None = None) -> Iterator[Event]:
    """Run ``task`` once and yield what happens; the last event is a ``Finished``, and there is only one.

    A task that is measured in several processes starts anew with each: after its first time, ``PhaseStarted`` says ``Phase.START``.
    Nothing that the worker does raises. ``node`` names this machine in the outcome (None: its host name). Closing the iterator early
    ends the worker and everything that it started before it returns.
    """
    node = node or os.uname().nodename
    began = time.time()
    phase = Phase.START
    try:
        guardian = _Guardian(task, attempt, node)
    except (OSError, UnsafeDirectoryError) as error:
        yield Finished(_lost(task, attempt, node, began, phase, f"the guardian did not start: {error}"))
        return
    finished: Finished | None = None
    try:
        for event in guardian.events():
            if isinstance(event, Finished):
                finished = event
                break
            if not isinstance(event, Started):
                phase = event.phase
            yield event
    finally:
        guardian.close()
    if finished is None:
        finished = Finished(_lost(task, attempt, node, began, phase, "the guardian of the worker died"))
        leave(finished.outcome, attempt)
    yield finished


def run_inline(task: TaskSpec, attempt: Attempt, node: str | None = None) -> Outcome:
    """Run a toy that finishes at once in this very process, for benchmarks of the orchestration itself.

    Anything else would need the protection of a process and ends as ``unsupported``.
    """
    from tasks.suites import toy
    from tasks.worker import combined

    began = time.time()
    if task.model.suite != "toy" or not toy.finishes_at_once(task.model.name):
        text = f"{task.task_id} cannot run in the supervisor's own process: only toys that finish at once can"
        outcome = _outcome(task, attempt, node, began, Status.UNSUPPORTED, FailureClass.UNSUPPORTED, Phase.START, text)
    else:
        results = [toy.run(task, Channel(None), Path(os.devnull))]
        while results[-1].measured and len(results) < task.measure.processes:
            results.append(toy.run(task, Channel(None), Path(os.devnull), len(results)))
        result = combined(results, task)
        outcome = Outcome(
            task_id=task.task_id,
            attempt=attempt.number,
            status=result.status,
            phase=result.phase,
            failure_class=result.failure_class,
            error=result.error,
            started=began,
            ended=time.time(),
            node=node or os.uname().nodename,
            measurement=result.measurement,
            samples=result.samples,
            blocks=result.blocks,
        )
    leave(outcome, attempt)
    return outcome


class _Guardian:
    """The caller's side of a running guardian."""

    def __init__(self, task: TaskSpec, attempt: Attempt, node: str) -> None:
        self._directory = user_directory(tempfile.gettempdir())
        clear_leftovers(self._directory)  # of guardians that died together with their caller
        self._identity: Identity | None = None
        package_root = Path(__file__).parent.parent
        request = Request(
            task=task,
            attempt=attempt,
            node=node,
            directory=str(self._directory),
            meeting_place=meeting_place(tempfile.gettempdir()),
            device=device_of(task, attempt),
            cores=cores_of(task, attempt),
            python_path=importable_paths(package_root),
            heartbeat_s=HEARTBEAT_S,
            supervisor=_own_identity(),
        )
        try:
            self._input, self._output = _forked_guardian(request)
        except UnpreparedError as why:
            request = replace(request, unprepared=str(why))
            self._input, self._output = _fresh_guardian(package_root)
        with contextlib.suppress(BrokenPipeError):  # it died at once: the missing outcome says so
            self._input.write(json.dumps(encode(request)).encode() + b"\n")
            self._input.flush()

    def events(self) -> Iterator[Event]:
        """Until its output ends; a line that is no event, cut short by the guardian's death, ends it, too."""
        for line in self._output:
            try:
                message: dict[str, Any] = json.loads(line)
                if "guardian" in message:
                    self._identity = Identity(*message["guardian"])
                    continue
                yield decode(EVENTS[message.pop("event")], message)
            except (ValueError, KeyError, SpecError):
                return

    def close(self) -> None:
        """Let the guardian end, or make it; then end what a guardian that was killed has left."""
        with contextlib.suppress(BrokenPipeError):
            self._input.close()
        if not self._ends_by_itself() and self._identity is not None:
            kill(self._identity)
        self._output.close()
        clear_leftovers(self._directory)

    def _ends_by_itself(self) -> bool:
        give_up = time.monotonic() + CLOSE_LIMIT_S
        while (left_s := give_up - time.monotonic()) > 0:
            readable, _, _ = select.select([self._output], [], [], left_s)
            if readable and not self._output.read1(65536):  # type: ignore[attr-defined]
                return True
        return False


def _fresh_guardian(package_root: Path) -> tuple[IO[bytes], IO[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-IS", "-c", _START_GUARDIAN, str(package_root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.wait()
    return process.stdin, process.stdout


def _forked_guardian(request: Request) -> tuple[IO[bytes], IO[bytes]]:
    """A guardian from a prepared parent.

    Raises:
        UnpreparedError: there is none that fits.
    """
    its_input, ours = os.pipe()
    theirs, its_output = os.pipe()
    streams = os.fdopen(ours, "wb"), os.fdopen(theirs, "rb")
    try:
        fork_guardian(request.task.resources.device, request.meeting_place, request.python_path, (its_input, its_output, _ERRORS))
    except UnpreparedError:
        for stream in streams:
            stream.close()
        raise
    finally:
        os.close(its_input)
        os.close(its_output)
    return streams


def _own_identity() -> tuple[int, ...]:
    own = identity(os.getpid())
    return (own.pid, own.started) if own else ()


def _lost(task: TaskSpec, attempt: Attempt, node: str, began: float, phase: Phase, error: str) -> Outcome:
    return _outcome(task, attempt, node, began, Status.INFRA_ERROR, FailureClass.WORKER_LOST, phase, error)


def _outcome(
    task: TaskSpec, attempt: Attempt, node: str | None, began: float, status: Status, failure_class: FailureClass, phase: Phase, error: str
) -> Outcome:
    return Outcome(
        task_id=task.task_id,
        attempt=attempt.number,
        status=status,
        phase=phase,
        failure_class=failure_class,
        error=error,
        started=began,
        ended=time.time(),
        node=node or os.uname().nodename,
    )

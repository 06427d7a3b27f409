"""The process between a supervisor and its worker: starts the worker, times it, keeps its output, and ends with nothing of it left.

A task that is measured in several processes has that many workers, one after the other.

Started by ``tasks.supervisor``; reads one ``Request`` from its input and writes events to its output. End of file on its input means
that the supervisor is dead. It adopts every orphan below it, and the worker dies with it, so that no death of one process leaves
another behind. Standard library only, and quick to start.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tasks.capture import CappedLog
from tasks.channel import Grant, GuardianEnd, Use
from tasks.clock import PAUSED, WAITING, PhaseClock
from tasks.forkable import obstacle
from tasks.launch import DEVICE_DIRECTORY, NoDeviceError, Start, recorded, start_worker, worker_environment
from tasks.lease import Lease, Place
from tasks.processes import (
    Identity,
    become_subreaper,
    continue_descendants,
    end_descendants,
    identity,
    is_alive,
    reap,
    stop_descendants,
)
from tasks.reread import NEVER_AGAIN
from tasks.residue import DirtyDeviceError, Residue
from tasks.scratch import UnsafeDirectoryError, attempt_directory, renew
from tasks.spec import FailureClass, Outcome, Phase, Status, WorkerResult, decode, encode
from tasks.spool import leave
from tasks.supervisor import Heartbeat, PhaseStarted, Request, Started
from tasks.uplink import SupervisorGoneError, Uplink
from tasks.verdict import DISK_FULL, Ending, blame_for_disk, has_risen, judge, oom_kills

DUMP_S = 1.0
"""How long a worker that has run out of time may take to write its stacks."""

GRACE_S = 3.0
"""How long it may take to end after SIGTERM."""

JOIN_POLL_S = 0.02
"""How often a guardian whose neighbour is timing looks whether it may start its worker."""

_READ_BYTES = 1 << 16
_OVER = "over"  # why the clock stands still at the end
_SIGNALS = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class ToldToEndError(Exception):
    """Somebody sent the guardian SIGTERM."""


def main(*, forked: bool = False) -> int:
    """Do what the request on the input says. ``forked``: this process has the libraries already, from a prepared parent."""
    become_subreaper()
    signals = _listen_to_signals()
    line = _read_line(sys.stdin.fileno())
    if line is None:
        return 0
    uplink = Uplink(sys.stdout.fileno())
    with contextlib.suppress(SupervisorGoneError):
        uplink.introduce(identity(os.getpid()))
        request = decode(Request, json.loads(line))
        outcome = Guardian(request, uplink, signals, forked=forked).run()
        leave(outcome, request.attempt)
        uplink.finish(outcome)
    return 0


@dataclass(slots=True)
class _Worker:
    """One process of the task. ``steps``: what is still to be done to it when it has run out of time."""

    number: int
    pid: int = 0
    wait_status: int | None = None
    expired: str | None = None
    killed: bool = False
    steps: deque[tuple[float, Callable[[], None]]] = field(default_factory=deque)


class Guardian:
    """One attempt, from the start of its first worker to its outcome."""

    def __init__(self, request: Request, uplink: Uplink, signals: int, *, forked: bool = False) -> None:
        self._request = request
        self._uplink = uplink
        self._log = CappedLog()
        self._clock = PhaseClock(request.task.deadlines, time.monotonic())
        self._began = time.time()
        self._environment: dict[str, str] = {}
        self._worker = _Worker(0)
        self._heartbeat_due = time.monotonic() + request.heartbeat_s
        self._signals = signals
        self._forked = forked

    def run(self) -> Outcome:
        """Start the workers, see each to its end, and leave nothing of them.

        Raises:
            SupervisorGoneError: nobody waits for an outcome.
        """
        try:
            with attempt_directory(Path(self._request.directory)) as scratch:
                result = self._run_in(scratch)
        except (NoDeviceError, DirtyDeviceError) as error:
            result = self._infrastructure(FailureClass.DEVICE, str(error))
        except (OSError, UnsafeDirectoryError, ToldToEndError) as error:
            full = isinstance(error, OSError) and error.errno in DISK_FULL
            failure_class = FailureClass.DISK_FULL if full else FailureClass.WORKER_LOST
            result = self._infrastructure(failure_class, f"the guardian of the worker could not go on: {error}")
        except SupervisorGoneError:
            raise
        except Exception:  # noqa: BLE001 - a mistake in this module: an outcome of its own class, with all that helps to find it
            result = self._infrastructure(FailureClass.INTERNAL, f"the guardian of the worker failed:\n{traceback.format_exc()}")
        return self._outcome(result)

    def _run_in(self, scratch: Path) -> WorkerResult:
        """The result that the last worker left of all of them, or that of the first one that failed."""
        count = self._request.task.measure.processes
        result, earlier = self._run_process(scratch, []), list[Path]()
        while result.measured and len(earlier) < count - 1:
            earlier.append(scratch / f"result-{len(earlier)}.json")
            earlier[-1].write_text(json.dumps(encode(result)), encoding="utf-8")
            renew(scratch, keep=earlier)
            self._next_process(len(earlier))
            result = self._run_process(scratch, earlier)
        if count > 1 and not result.measured:
            result = replace(result, error=f"process {self._worker.number + 1} of {count}: {result.error}")
        return result

    def _next_process(self, number: int) -> None:
        self._worker = _Worker(number)
        self._log.feed(f"--- process {number + 1} of {self._request.task.measure.processes} ---\n".encode())
        self._clock.restart(time.monotonic())
        self._uplink.tell(PhaseStarted(Phase.START, time.time()))

    def _run_process(self, scratch: Path, earlier: list[Path]) -> WorkerResult:
        before, worker = oom_kills(), self._worker
        residue = self._residue()
        residue.before()
        self._lease = Lease(self._request.device, self._request.meeting_place, self)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._signals, selectors.EVENT_READ, self._on_signal)
        self._selector.register(sys.stdin.fileno(), selectors.EVENT_READ, self._on_supervisor)
        try:
            self._join()
            self._start(scratch, earlier)
            self._selector.register(self._lease, selectors.EVENT_READ, self._lease.attend)
            while worker.wait_status is None and not worker.killed:
                for key, _ in self._selector.select(self._timeout_s()):
                    key.data()
                if self._lease.timeout_s() is not None:
                    self._lease.attend()
                self._keep_time()
        finally:
            self._clock.halt(_OVER, time.monotonic())
            self._clock.disown(time.monotonic())
            ended, stuck = end_descendants()
            self._lease.leave()
            self._selector.close()
        status = worker.wait_status if worker.wait_status is not None else ended.get(worker.pid)
        self._drain()
        risen = has_risen(before, oom_kills())
        ending = Ending(status, self._clock.phase, worker.expired, worker.killed, risen, stuck, residue.after(worker.pid))
        return blame_for_disk(judge(ending, scratch / "result.json"), scratch)

    def _residue(self) -> Residue:
        resources, gpus = self._request.task.resources, self._request.attempt.gpu_ids
        return Residue(gpus if resources.device == "cuda" else (), Path(self._request.directory), alone=resources.num_gpus >= 1)

    def _start(self, scratch: Path, earlier: list[Path]) -> None:
        task, attempt = self._request.task, self._request.attempt
        environment = worker_environment(task, attempt, scratch, Path(self._request.directory), self._request.python_path, os.environ)
        environment[DEVICE_DIRECTORY] = str(self._lease.directory)
        cores = self._request.cores
        why_fresh = self._why_fresh()
        start = Start.FORKED if why_fresh is None else Start.FRESH
        self._environment = recorded(environment) | ({"cores": ",".join(map(str, cores))} if cores else {})
        self._environment["worker_start"] = start.value if why_fresh is None else f"{start.value}: {why_fresh}"
        (scratch / "spec.json").write_text(json.dumps(encode(task)), encoding="utf-8")
        self._worker.pid, self._output, connection = start_worker(scratch, environment, earlier, cores, start)
        os.set_blocking(self._output, False)
        self._channel = GuardianEnd(connection)
        self._selector.register(self._output, selectors.EVENT_READ, self._on_output)
        self._selector.register(self._channel, selectors.EVENT_READ, self._on_message)
        if not earlier:
            self._uplink.tell(Started(self._request.node, self._worker.pid, attempt.gpu_ids, time.time()))

    def _why_fresh(self) -> str | None:
        """Why the worker is an interpreter of its own; None if it can be a copy of this process."""
        if not self._forked:
            return self._request.unprepared
        if self._request.task.measure.processes > 1:
            return "it is measured in several processes, which are to be independent"
        if NEVER_AGAIN in os.environ:
            return f"{NEVER_AGAIN} is set"
        return obstacle()

    # --- what happens ---------------------------------------------------------------------------------------------------------------

    def _on_signal(self) -> None:
        if signal.SIGTERM in os.read(self._signals, _READ_BYTES):
            raise ToldToEndError("it was sent SIGTERM")
        self._worker.wait_status = (reap() or {}).get(self._worker.pid, self._worker.wait_status)

    def _on_supervisor(self) -> None:
        if not os.read(sys.stdin.fileno(), _READ_BYTES):
            raise SupervisorGoneError

    def _on_output(self) -> None:
        try:
            data = os.read(self._output, _READ_BYTES)
        except BlockingIOError:
            return
        self._log.feed(data)
        if not data:
            self._selector.unregister(self._output)

    def _on_message(self) -> None:
        messages = self._channel.receive()
        if messages is None:
            self._selector.unregister(self._channel)
            return
        for message in messages:
            self._obey(message)

    def _obey(self, message: dict[str, Any]) -> None:
        match message:
            case {"phase": str(name)} if name in set(Phase):
                self._enter(Phase(name))
            case {"lease": str(name)} if name in set(Use):
                self._acquire(Use(name))
            case {"lease": "ease"} if self._lease.ease():
                self._clock.own(time.monotonic(), self._lease.use)
            case {"lease": "release"}:
                self._lease.release()
                self._clock.disown(time.monotonic())
            case {"device": "leave"}:
                self._lease.move(Place.PROCESSORS)
            case {"device": "return"}:
                self._lease.move(Place.DEVICE, awaited=True)
            case {"ask": "halted_s"}:
                self._channel.answer({"halted_s": self._clock.all_halted_s(time.monotonic())})

    def _enter(self, phase: Phase) -> None:
        if phase is Phase.BUILD:  # what comes before are imports
            self._lease.move(Place.DEVICE)
        self._clock.enter(phase, time.monotonic())
        self._uplink.tell(PhaseStarted(phase, time.time()))

    # --- sharing the device: what its lease asks of a worker's tree -------------------------------------------------------------------

    def _acquire(self, use: Use) -> None:
        self._clock.halt(WAITING, time.monotonic())
        if not self._lease.acquire(use):  # a worker that asks twice must not stop its own clock
            self._clock.go_on(WAITING, time.monotonic())

    def pause(self) -> None:
        """Stop everything below this process, for a neighbour."""
        self._clock.halt(PAUSED, time.monotonic())
        stop_descendants(os.getpid())

    def resume(self) -> None:
        continue_descendants(os.getpid())
        self._clock.go_on(PAUSED, time.monotonic())

    def granted(self, grant: Grant) -> None:
        """The worker owns the device."""
        now = time.monotonic()
        self._clock.go_on(WAITING, now)
        self._clock.own(now, self._lease.use)
        self._channel.grant(grant)

    def returned(self) -> None:
        """The worker, which waits for it, may use the device again."""
        self._channel.answer({"returned": True})

    def _join(self) -> None:
        """Become a neighbour; while another worker times, none is started."""
        self._clock.halt(WAITING, time.monotonic())
        while not self._lease.try_join():
            for key, _ in self._selector.select(JOIN_POLL_S):
                key.data()
            if time.monotonic() >= self._heartbeat_due:
                self._beat(time.monotonic())
        self._clock.go_on(WAITING, time.monotonic())

    # --- time -----------------------------------------------------------------------------------------------------------------------

    def _timeout_s(self) -> float:
        """Seconds until there is something to do even if nothing happens."""
        now = time.monotonic()
        due = [self._heartbeat_due - now]
        if (lease_s := self._lease.timeout_s()) is not None:
            due.append(lease_s)
        if self._worker.steps:
            due.append(self._worker.steps[0][0] - now)
        elif (remaining_s := self._clock.remaining_s(now)) is not None:
            due.append(remaining_s)
        return max(0.0, min(due))

    def _keep_time(self) -> None:
        now, worker = time.monotonic(), self._worker
        if now >= self._heartbeat_due:
            self._beat(now)
        if worker.wait_status is not None:  # it has just ended, and there is nobody to be sent a signal
            return
        if worker.expired is None:
            worker.expired = self._clock.expired(now)
            if worker.expired is not None:
                worker.steps.extend([(now, self._dump), (now + DUMP_S, self._terminate), (now + DUMP_S + GRACE_S, self._kill)])
        while worker.steps and now >= worker.steps[0][0]:
            worker.steps.popleft()[1]()

    def _beat(self, now: float) -> None:
        self._heartbeat_due = now + self._request.heartbeat_s
        supervisor = self._request.supervisor
        if supervisor and not is_alive(Identity(*supervisor)):  # its end of the pipe may live on in a child that it forked
            raise SupervisorGoneError
        self._uplink.tell(Heartbeat(self._clock.phase, time.time(), self._clock.all_halted_s(now)))

    def _dump(self) -> None:
        os.kill(self._worker.pid, signal.SIGUSR1)  # the worker has faulthandler write the stacks of its threads

    def _terminate(self) -> None:
        os.killpg(self._worker.pid, signal.SIGTERM)

    def _kill(self) -> None:
        self._worker.killed = True  # the loop ends here, and with it everything below this process

    # --- what came of it ------------------------------------------------------------------------------------------------------------

    def _drain(self) -> None:
        """What is still in the pipe: its writers are gone. Then both lines to the worker are closed."""
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._output, _READ_BYTES):
                self._log.feed(data)
        os.close(self._output)
        self._channel.close()

    def _infrastructure(self, failure_class: FailureClass, error: str) -> WorkerResult:
        return WorkerResult(status=Status.INFRA_ERROR, phase=self._clock.phase, failure_class=failure_class, error=error)

    def _outcome(self, result: WorkerResult) -> Outcome:
        now = time.monotonic()
        return Outcome(
            task_id=self._request.task.task_id,
            attempt=self._request.attempt.number,
            status=result.status,
            phase=result.phase,
            failure_class=result.failure_class,
            error=result.error,
            log_tail=self._log.tail(),
            log=self._log.text(),
            phase_s=self._clock.phase_s(now),
            paused_s=self._clock.halted_s(PAUSED, now),
            waited_s=self._clock.halted_s(WAITING, now),
            owned_s=self._clock.owned_s(now),
            tuned_s=self._clock.owned_s(now, Use.TUNE),
            warmed_s=self._clock.owned_s(now, Use.WARM),
            started=self._began,
            ended=time.time(),
            node=self._request.node,
            environment=self._environment,
            measurement=result.measurement,
            samples=result.samples,
            blocks=result.blocks,
        )


def _listen_to_signals() -> int:
    """A descriptor from which the numbers of signals can be read; handlers that do nothing, for the kernel resets them for the worker."""
    read_end, write_end = os.pipe()
    for end in (read_end, write_end):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    for number in _SIGNALS:
        signal.signal(number, lambda *_: None)
    return read_end


def _read_line(descriptor: int) -> bytes | None:
    """The one line that comes, without reading past it into a buffer; None if the input ends before."""
    line = b""
    while not line.endswith(b"\n"):
        data = os.read(descriptor, _READ_BYTES)
        if not data:
            return None
        line += data
    return line

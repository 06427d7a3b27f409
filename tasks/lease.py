"""The right to time on a device alone, among the workers that share it on one node. Standard library only.

Two locks per device, both ``flock`` on a file, so the kernel frees them however their holder dies. ``turn`` is a lock for readers and
writers: a guardian holds it shared while its worker runs, and exclusively while its worker times. So a worker can time when, and only
when, every neighbour's guardian has stopped its own worker's processes and let go, or is dead, and its worker with it. ``queue`` says
who is next: exclusively by the one guardian that owns the device or is about to, for a moment shared by those that go on afterwards.
Whoever needs both takes ``queue`` first.

A guardian stops and resumes only processes below itself. It is told that a neighbour wants to time by a datagram to its socket in the
device's directory, and it waits for its own turn to go on in a thread that blocks in the kernel: a paused neighbour costs no cycle.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import Protocol

from tasks.channel import Grant
from tasks.scratch import user_directory

SHARED_MEMORY = "/dev/shm"  # noqa: S108 - what is made there is this user's own, and checked to be
"""In memory, and one per node or container: the reach of a lease."""

POLL_S = 0.002
"""How often a guardian looks whether its neighbours have stopped; only while they do so."""

REMIND_S = 0.05
"""How often it tells them, for one may have come after it looked who is there."""

_WANTED = b"w"
_WAKE_UP = b"d"


def meeting_place(otherwise: str) -> str:
    """The directory under which a node's guardians meet: the shared memory, or ``otherwise`` where there is none to write to."""
    return SHARED_MEMORY if os.access(SHARED_MEMORY, os.W_OK | os.X_OK) else otherwise


class Tree(Protocol):
    """The worker's processes, as a lease needs them."""

    def pause(self) -> None:
        """Stop them; none runs when this returns."""
        ...

    def resume(self) -> None:
        """Let them go on."""
        ...

    def granted(self, grant: Grant) -> None:
        """The worker may time."""
        ...


class Job(StrEnum):
    """What the waiting thread waits for."""

    RESUME = "resume"  # nobody owns the device, and this guardian holds ``turn`` shared
    QUEUE = "queue"  # this guardian holds ``queue``


class Lease:
    """One guardian's share of a device. For one thread; ``attend`` is to be called when ``fileno`` is readable or ``timeout_s`` over."""

    def __init__(self, device: str, base: str, tree: Tree) -> None:
        """Become a neighbour on ``device``; ``base`` is the directory under which all its guardians meet.

        Raises:
            OSError, UnsafeDirectoryError: they cannot meet there.
        """
        self._directory = user_directory(base) / f"device-{hashlib.sha256(device.encode()).hexdigest()[:16]}"
        self._directory.mkdir(mode=0o700, exist_ok=True)
        self._tree = tree
        self._queue = os.open(self._directory / "queue", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._turn = os.open(self._directory / "turn", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._path = self._directory / f"{secrets.token_hex(6)}.sock"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.bind(str(self._path))
        self._job: Job | None = None
        self._done = False  # set by the waiting thread, before it wakes the other
        self._paused = False
        self._owning = False
        self._claiming = False
        self._wanted_since: float | None = None
        self._remind_at = 0.0
        self._neighbours = 0
        self._left = False

    def fileno(self) -> int:
        return self._socket.fileno()

    def try_join(self) -> bool:
        """Take the right to run, before there is anything to run. False while a neighbour times: try again."""
        with self._briefly_shared_queue() as free:
            return free and _try_lock(self._turn, fcntl.LOCK_SH)

    def acquire(self) -> bool:
        """The worker wants to time; ``Tree.granted`` follows. False, and nothing follows, if it has said so before."""
        if self._wanted_since is not None or self._owning:
            return False
        self._wanted_since = time.monotonic()
        self._queue_up()
        return True

    def release(self) -> None:
        """The worker is done timing."""
        if self._owning:
            self._owning = False
            fcntl.flock(self._turn, fcntl.LOCK_SH)  # at once: nobody else can want it without the queue
            fcntl.flock(self._queue, fcntl.LOCK_UN)

    def timeout_s(self) -> float | None:
        """Seconds until ``attend`` is to be called even if nothing comes."""
        return POLL_S if self._claiming else None

    def attend(self) -> None:
        """Heed what neighbours and the waiting thread have said, and try to own the device if it is this guardian's turn."""
        messages = self._received()
        if self._done:
            self._finish_job()
        if _WANTED in messages:
            self._make_way()
        if self._claiming:
            self._claim()

    def leave(self) -> None:
        """Give everything up. The worker's processes must have ended."""
        self._left = True
        self._path.unlink(missing_ok=True)
        self._socket.close()
        os.close(self._turn)
        os.close(self._queue)

    # --- making way -----------------------------------------------------------------------------------------------------------------

    def _make_way(self) -> None:
        if self._paused or self._owning or self._claiming:
            return
        if self._job is None:
            with self._briefly_shared_queue() as free:
                if free:  # whoever wanted to time is done, or dead
                    return
        self._paused = True
        self._tree.pause()
        fcntl.flock(self._turn, fcntl.LOCK_UN)
        if self._job is None:
            self._wait_for(Job.RESUME)

    def _finish_job(self) -> None:
        job, self._job, self._done = self._job, None, False
        if job is Job.QUEUE:
            self._start_claim()
        elif job is Job.RESUME:
            self._resume()
            if self._wanted_since is not None:
                self._queue_up()

    def _resume(self) -> None:
        if self._paused:
            self._paused = False
            self._tree.resume()

    # --- owning ---------------------------------------------------------------------------------------------------------------------

    def _queue_up(self) -> None:
        if self._job is not None:  # it waits to resume; then this is called again
            return
        if _try_lock(self._queue, fcntl.LOCK_EX):
            self._start_claim()
        else:
            self._wait_for(Job.QUEUE)

    def _start_claim(self) -> None:
        self._claiming = True
        self._remind_at = 0.0
        self._claim()

    def _claim(self) -> None:
        now = time.monotonic()
        if now >= self._remind_at:
            self._remind_at = now + REMIND_S
            self._neighbours = self._tell_neighbours()
        if not _try_lock(self._turn, fcntl.LOCK_EX):
            return
        assert self._wanted_since is not None
        waited_s = now - self._wanted_since
        self._claiming, self._owning, self._wanted_since = False, True, None
        self._resume()
        self._tree.granted(Grant(round(waited_s, 6), self._neighbours))

    def _tell_neighbours(self) -> int:
        """How many there are. Sockets whose guardian is dead are removed."""
        count = 0
        for path in self._directory.glob("*.sock"):
            if path == self._path:
                continue
            try:
                self._socket.sendto(_WANTED, str(path))
            except ConnectionRefusedError:
                path.unlink(missing_ok=True)
                continue
            except FileNotFoundError:
                continue
            except OSError:  # its buffer is full: it lives, and has been told
                pass
            count += 1
        return count

    # --- waiting --------------------------------------------------------------------------------------------------------------------

    def _wait_for(self, job: Job) -> None:
        """Wait in a thread, on file numbers of its own: those of this lease may be another file's when the wait is over."""
        self._job = job
        numbers = [os.dup(self._queue)] if job is Job.QUEUE else [os.dup(self._queue), os.dup(self._turn)]
        work = self._wait_to_resume if job is Job.RESUME else self._wait_for_queue
        threading.Thread(target=self._wait, args=(work, numbers), daemon=True).start()

    def _wait(self, work: Callable[..., None], numbers: list[int]) -> None:
        try:
            work(*numbers)
            self._done = True
            with contextlib.suppress(OSError):  # this guardian has left meanwhile, or its buffer is full of messages that wake it as well
                self._socket.sendto(_WAKE_UP, str(self._path))
        finally:
            for number in numbers:
                os.close(number)

    def _wait_to_resume(self, queue: int, turn: int) -> None:
        fcntl.flock(queue, fcntl.LOCK_SH)
        if not self._left:
            fcntl.flock(turn, fcntl.LOCK_SH)
            fcntl.flock(queue, fcntl.LOCK_UN)

    def _wait_for_queue(self, queue: int) -> None:
        fcntl.flock(queue, fcntl.LOCK_EX)

    def _received(self) -> set[bytes]:
        messages = set()
        with contextlib.suppress(BlockingIOError):
            while True:
                messages.add(self._socket.recv(16))
        return messages

    @contextlib.contextmanager
    def _briefly_shared_queue(self) -> Iterator[bool]:
        free = _try_lock(self._queue, fcntl.LOCK_SH)
        try:
            yield free
        finally:
            if free:
                fcntl.flock(self._queue, fcntl.LOCK_UN)


def _try_lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True

"""The right to a device alone, to time or to tune on it, among the workers that share it on one node. Standard library only.

A device has two rings (``tasks.ring``). In the ring of the device are the guardians of all workers but those that start or compile; these
are in the ring of the processors. Who times owns both. Who tunes, comparing the candidates of a kernel by the device's own clock, or warms
up what it will time, owns the device's alone: its compiling neighbours, which hardly touch the device, go on. Whoever needs both rings
takes the device's first, and may take the other one later.

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
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from tasks.channel import Grant, Use
from tasks.ring import Ring
from tasks.scratch import user_directory

SHARED_MEMORY = "/dev/shm"  # noqa: S108 - what is made there is this user's own, and checked to be
"""In memory, and one per node or container: the reach of a lease."""

POLL_S = 0.0005
"""How often a guardian looks whether its neighbours have stopped; only while they do so."""

REMIND_S = 0.05
"""How often it tells them, for one may have come after it looked who is there."""

_WANTED = b"w"
_WAKE_UP = b"d"


def meeting_place(otherwise: str) -> str:
    """The directory under which a node's guardians meet: the shared memory, or ``otherwise`` where there is none to write to."""
    return SHARED_MEMORY if os.access(SHARED_MEMORY, os.W_OK | os.X_OK) else otherwise


class Place(StrEnum):
    """What a worker uses while it owns nothing; its ring."""

    DEVICE = "device"
    PROCESSORS = "processors"


class Tree(Protocol):
    """The worker's processes, as a lease needs them."""

    def pause(self) -> None:
        """Stop them; none runs when this returns."""
        ...

    def resume(self) -> None:
        """Let them go on."""
        ...

    def granted(self, grant: Grant) -> None:
        """The worker owns what it wanted."""
        ...

    def returned(self) -> None:
        """The worker, which waits for it, may use the device again, together with others."""
        ...


class Job(StrEnum):
    """What the waiting thread waits for."""

    RESUME = "resume"  # nobody owns the ring in which this guardian wants to be, and it is in it
    QUEUE = "queue"  # this guardian holds the device's ``queue``


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
        self._rings = {place: Ring(self._directory, place.value) for place in Place}
        self._place = Place.PROCESSORS
        self._path = self._directory / f"{secrets.token_hex(6)}.sock"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.bind(str(self._path))
        self._job: Job | None = None
        self._awaited = Place.DEVICE  # whose ring the waiting thread wants to be in
        self._done = False  # set by the waiting thread, before it wakes the other
        self._paused = False
        self._returning = False
        self._use = self._before = Use.TIME
        self._owning = False
        self._claiming = False
        self._wanted_since: float | None = None
        self._remind_at = 0.0
        self._neighbours = 0
        self._left = False

    @property
    def use(self) -> Use:
        """What the worker owns the device for, or wanted to at last."""
        return self._use

    @property
    def directory(self) -> Path:
        """Where all who share the device meet."""
        return self._directory

    def fileno(self) -> int:
        return self._socket.fileno()

    def try_join(self) -> bool:
        """Take the right to run, before there is anything to run. False while a neighbour times: try again."""
        return self._ring.try_enter()

    def move(self, place: Place, *, awaited: bool = False) -> None:
        """The worker is at ``place`` from now on; if it waits to be there, ``Tree.returned`` follows."""
        left, self._place = self._place, place
        self._returning = awaited
        if self._job is None and not (self._owning or self._claiming or left is place):
            fcntl.flock(self._rings[left].turn, fcntl.LOCK_UN)
            self._enter()
        elif not self._paused:
            self._arrive()

    def acquire(self, use: Use = Use.TIME) -> bool:
        """The worker wants to own the device, or to time on one that it owns; ``Tree.granted`` follows.

        False, and nothing follows, if it has said so before.
        """
        if self._wanted_since is not None or (self._owning and (self._use.stops_all or not use.stops_all)):
            return False
        self._before = self._use if self._owning else use
        self._use = use
        self._wanted_since = time.monotonic()
        self._queue_up()
        return True

    def ease(self) -> bool:
        """The worker has timed on a device that it had owned before; neighbours that need it not may go on. False: it has not."""
        if not (self._owning and self._use.stops_all) or self._before.stops_all:
            return False
        self._use = self._before
        self._rings[Place.PROCESSORS].disown(stay=self._place is Place.PROCESSORS)
        return True

    def release(self) -> None:
        """The worker is done."""
        if self._owning:
            self._owning = False
            if self._use.stops_all:
                self._rings[Place.PROCESSORS].disown(stay=self._place is Place.PROCESSORS)
            self._rings[Place.DEVICE].disown(stay=self._place is Place.DEVICE)

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
        for ring in self._rings.values():
            ring.close()

    @property
    def _ring(self) -> Ring:
        return self._rings[self._place]

    def _enter(self) -> None:
        """Into the ring of its place, at once or when it is free."""
        if self._ring.try_enter():
            self._go_on()
            return
        if not self._paused:
            self._paused = True
            self._tree.pause()
        self._wait_for(Job.RESUME)

    def _go_on(self) -> None:
        self._resume()
        self._arrive()
        if self._wanted_since is not None:
            self._queue_up()

    def _arrive(self) -> None:
        if self._returning:
            self._returning = False
            self._tree.returned()

    # --- making way -----------------------------------------------------------------------------------------------------------------

    def _make_way(self) -> None:
        if self._paused or self._owning or self._claiming:
            return
        if self._job is None or self._place is Place.PROCESSORS:  # else the waiting thread is at that queue itself
            with self._ring.briefly_shared_queue() as free:
                if free:  # whoever wanted the ring is done, or dead; or wants another
                    return
        self._paused = True
        self._tree.pause()
        fcntl.flock(self._ring.turn, fcntl.LOCK_UN)
        if self._job is None:
            self._wait_for(Job.RESUME)

    def _finish_job(self) -> None:
        job, self._job, self._done = self._job, None, False
        if job is Job.QUEUE:
            self._start_claim()
        elif job is Job.RESUME:
            if self._awaited is not self._place:  # the worker had said so before it was stopped
                fcntl.flock(self._rings[self._awaited].turn, fcntl.LOCK_UN)
                self._enter()
                return
            self._go_on()

    def _resume(self) -> None:
        if self._paused:
            self._paused = False
            self._tree.resume()

    # --- owning ---------------------------------------------------------------------------------------------------------------------

    def _queue_up(self) -> None:
        if self._job is not None:  # it waits to resume; then this is called again
            return
        if self._rings[Place.DEVICE].try_be_next():
            self._start_claim()
        else:
            self._wait_for(Job.QUEUE)

    def _start_claim(self) -> None:
        self._claiming = True
        self._remind_at = 0.0
        self._claim()

    def _claim(self) -> None:
        now, rings = time.monotonic(), self._wanted_rings()
        if not all(ring.try_be_next() for ring in rings):
            return
        if now >= self._remind_at:
            self._remind_at = now + REMIND_S
            self._neighbours = self._tell_neighbours()
        if not all(ring.try_own() for ring in rings):
            return
        if not self._use.stops_all and self._place is Place.PROCESSORS:  # it may have been driven from it while it waited; nobody can now
            fcntl.flock(self._ring.turn, fcntl.LOCK_SH)
        assert self._wanted_since is not None
        waited_s = now - self._wanted_since
        self._claiming, self._owning, self._wanted_since = False, True, None
        self._resume()
        self._tree.granted(Grant(round(waited_s, 6), self._neighbours))

    def _wanted_rings(self) -> tuple[Ring, ...]:
        device, processors = self._rings[Place.DEVICE], self._rings[Place.PROCESSORS]
        return (device, processors) if self._use.stops_all else (device,)

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
        self._awaited = Place.DEVICE if job is Job.QUEUE else self._place
        numbers = self._rings[self._awaited].duplicate()
        work = self._wait_to_resume if job is Job.RESUME else self._wait_for_queue
        threading.Thread(target=self._wait, args=(work, numbers), daemon=True).start()

    def _wait(self, work: Callable[..., None], numbers: tuple[int, int]) -> None:
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

    def _wait_for_queue(self, queue: int, turn: int) -> None:  # noqa: ARG002 - it has the same numbers to close
        fcntl.flock(queue, fcntl.LOCK_EX)

    def _received(self) -> set[bytes]:
        messages = set()
        with contextlib.suppress(BlockingIOError):
            while True:
                messages.add(self._socket.recv(16))
        return messages

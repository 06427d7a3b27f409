"""Two locks with which guardians share something, or one of them has it alone. Standard library only.

A ring is a pair of locks, both ``flock`` on a file, so the kernel frees them however their holder dies. ``turn`` is a lock for readers
and writers: a guardian holds it shared while its worker runs, and exclusively while its worker owns what the ring stands for. So a worker
can own it when, and only when, every other guardian in the ring has stopped its own worker's processes and let go, or is dead, and its
worker with it. ``queue`` says who is next: exclusively by the one guardian that owns or is about to, for a moment shared by those that go
on afterwards. Whoever needs both takes ``queue`` first.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from tasks.file_lock import try_lock


class Ring:
    """The two locks of one guardian in one ring."""

    def __init__(self, directory: Path, name: str) -> None:
        self.queue, self.turn = (
            os.open(directory / f"{name}.{lock}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600) for lock in ("queue", "turn")
        )

    def try_enter(self) -> bool:
        """Become a reader, if nobody owns the ring or is about to."""
        with self.briefly_shared_queue() as free:
            return free and try_lock(self.turn, fcntl.LOCK_SH)

    def try_be_next(self) -> bool:
        """Become the one that will own the ring. Again, while it is that, does nothing."""
        return try_lock(self.queue, fcntl.LOCK_EX)

    def try_own(self) -> bool:
        """Become the writer; only for the one that is next. Again, once it is that, does nothing."""
        return try_lock(self.turn, fcntl.LOCK_EX)

    def disown(self, *, stay: bool) -> None:
        """Let others in; with ``stay`` as one of them: at once, for nobody else can own without the queue."""
        fcntl.flock(self.turn, fcntl.LOCK_SH if stay else fcntl.LOCK_UN)
        fcntl.flock(self.queue, fcntl.LOCK_UN)

    @contextlib.contextmanager
    def briefly_shared_queue(self) -> Iterator[bool]:
        """Whether nobody owns the ring or is about to; nobody is while the block lasts."""
        free = try_lock(self.queue, fcntl.LOCK_SH)
        try:
            yield free
        finally:
            if free:
                fcntl.flock(self.queue, fcntl.LOCK_UN)

    def duplicate(self) -> tuple[int, int]:
        """Both locks' file numbers, anew: these may be another file's when a wait is over."""
        return os.dup(self.queue), os.dup(self.turn)

    def close(self) -> None:
        os.close(self.turn)
        os.close(self.queue)

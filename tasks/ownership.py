"""The device for this process alone: what surrounds a lease on the worker's side, so that nobody's queued work is timed.

A grant says that the neighbours' processes are stopped; on a GPU what they have queued goes on. So it is waited for, and nothing of this
process's own is left in the queue when the device is given back.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Protocol

from tasks.channel import Channel, Use
from tasks.idle import BUDGET_S, LIMIT_S, Quiet
from tasks.spec import Scalar


class Queue(Protocol):
    """The device's work, where it goes on without the processes that queued it."""

    def synchronize(self) -> None:
        """Wait for what this process has queued."""
        ...

    def wait_until_idle(self, limit_s: float) -> Quiet:
        """Wait for what others have queued, for about so long."""
        ...


class Ownership:
    """What a process sees of owning its device. ``queue`` is None where work ends with the process, as on the CPU."""

    def __init__(self, channel: Channel, queue: Queue | None = None) -> None:
        self._channel = channel
        self._queue = queue
        self.neighbours = 0
        """The most that stood still at once."""
        self.settling_s = 0.0
        """Spent on waiting for their queues."""
        self.busy: str | None = None
        """Why the device is not this process's alone although it owns it; of the latest time."""
        self.times_busy = 0

    def tuning(self) -> AbstractContextManager[None]:
        """Own the device until the block ends, to compare kernels by its own clock: neighbours that only compile go on meanwhile."""
        return self.exclusive(Use.TUNE)

    def warming(self) -> AbstractContextManager[None]:
        """Own the device until the block ends, to warm up. Neighbours that only compile go on, unless they compile on what is warmed up."""
        return self.exclusive(Use.TIME if self._queue is None else Use.WARM)

    @contextlib.contextmanager
    def exclusive(self, use: Use = Use.TIME) -> Iterator[None]:
        """Own the device until the block ends; within another block that owns as much nothing more happens."""
        if self._channel.owns_for(use):
            yield
            return
        with self._channel.exclusive(use) as grant:
            self.neighbours = max(self.neighbours, grant.neighbours)
            self.busy = self._settle() if grant.neighbours else None
            try:
                yield
            except BaseException:
                with contextlib.suppress(Exception):  # a device in error has no queue to wait for
                    self._drain()
                raise
            self._drain()

    def summary(self) -> dict[str, Scalar]:
        """For the row, where there is a queue to wait for."""
        return {} if self._queue is None else {"settling_s": round(self.settling_s, 6), "times_busy": self.times_busy}

    def _settle(self) -> str | None:
        if self._queue is None:
            return None
        quiet = self._queue.wait_until_idle(max(0.0, min(LIMIT_S, BUDGET_S - self.settling_s)))
        self.settling_s += quiet.waited_s
        if quiet.idle:
            return None
        self.times_busy += 1
        return f"the GPU was not idle {quiet.waited_s:.1f} s after {self.neighbours} neighbour(s) had stopped"

    def _drain(self) -> None:
        if self._queue is not None:
            self._queue.synchronize()

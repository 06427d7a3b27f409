"""Room on a device that others use, too: who is about to take much memory waits until that much is free, and one at a time.

A task is near its peaks for seconds of the minute that it takes, so there are more tasks on a device than whole peaks would fit. Where
two peaks would meet in fact, one waits. The turn lasts until memory is taken, by the first step, after which torch's allocator holds it;
not until it is given back. Who has waited for long enough goes on all the same: every phase has an answer to a lack of memory.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from tasks.file_lock import try_lock
from tasks.launch import DEVICE_DIRECTORY

LIMIT_S = 90.0
"""For all turns of a phase: a third of what the shortest has. To fail costs more than to wait: the next attempt compiles again."""

LACK_LIMIT_S = 60.0
"""Neighbours near their peaks are past them by then, or lack memory themselves and give back what they have."""

PATIENCE_S = 20.0
"""For so long others who find what they want go first."""

POLL_S = 0.1
SMALL_SHARE = 0.03
"""Of a device's memory: who wants no more than that does not wait, and who finds others with no more is as good as alone."""

LARGEST_SHARE = 0.5
"""More than that is not waited for: it would take nearly all neighbours to leave."""

MARGIN_SHARE = 0.04
"""Stays free: a process that starts, and libraries that load, fail without a few hundred MiB, and in words that say nothing of memory."""


class Room:
    """A worker's view of the memory of ``device``. ``directory`` is where all meet who share the device; None: nobody is known to."""

    def __init__(self, device: torch.device, directory: Path | None, sleep: Callable[[float], None] = time.sleep) -> None:
        self._device = device
        self._lock = directory / "memory.lock" if directory is not None and device.type == "cuda" else None
        self._sleep = sleep
        self._left_s = LIMIT_S
        self.waited_s = 0.0

    def renew(self) -> None:
        """A phase begins, and with it the time that turns may take."""
        self._left_s = LIMIT_S

    @classmethod
    def from_environment(cls, device: torch.device) -> Room:
        """That of a worker which a guardian has started, or which shares with nobody."""
        directory = os.environ.get(DEVICE_DIRECTORY)
        return cls(device, Path(directory) if directory else None)

    @contextlib.contextmanager
    def turn(self, wanted_bytes: float) -> Iterator[None]:
        """Take up to ``wanted_bytes`` more in this block, when they are free and nobody else is about to."""
        if self._lock is None or wanted_bytes <= SMALL_SHARE * self._all_bytes():
            yield
            return
        descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self._wait(descriptor, wanted_bytes)
            yield
        finally:
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # a process that was forked meanwhile has the descriptor, too
            os.close(descriptor)

    def _wait(self, descriptor: int, wanted_bytes: float) -> None:
        """Until it is its turn. Who waits keeps nothing that others could use, and at first lets those go ahead who want less."""
        for poll in range(round(self._left_s / POLL_S)):  # counted, for a clock would go on while this process is paused
            if try_lock(descriptor):
                if self._fits(wanted_bytes):
                    return
                if poll * POLL_S < PATIENCE_S:
                    fcntl.flock(descriptor, fcntl.LOCK_UN)
            if poll == 0:
                torch.cuda.empty_cache()
            self._nap()
            self._left_s -= POLL_S

    def wait_for(self, wanted_bytes: float) -> bool:
        """After a lack of memory: wait until so much is free. False as soon as neighbours hold none, or after a while.

        Then the caller lacks memory of its own, and to begin again would end the same way.
        """
        for _ in range(int(LACK_LIMIT_S / POLL_S) if self._device.type == "cuda" else 0):
            try:
                if not self.crowded():
                    return False
                if torch.cuda.mem_get_info(self._device)[0] >= wanted_bytes:
                    return True
            except RuntimeError:  # not even for this process's beginnings on the device was there memory
                pass
            self._nap()
        return False

    def crowded(self) -> bool:
        """Whether others hold memory of the device that this process might have alone."""
        if self._device.type != "cuda":
            return False
        free_bytes, all_bytes = torch.cuda.mem_get_info(self._device)
        return bool(all_bytes - free_bytes - torch.cuda.memory_reserved(self._device) > SMALL_SHARE * all_bytes)

    def _fits(self, wanted_bytes: float) -> bool:
        free_bytes, all_bytes = torch.cuda.mem_get_info(self._device)
        unused_bytes = torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device)
        wanted_bytes = min(wanted_bytes, LARGEST_SHARE * all_bytes)
        return not self.crowded() or free_bytes + unused_bytes >= wanted_bytes + MARGIN_SHARE * all_bytes

    def _nap(self) -> None:
        self._sleep(POLL_S)
        self.waited_s += POLL_S

    def _all_bytes(self) -> int:
        return int(torch.cuda.mem_get_info(self._device)[1])

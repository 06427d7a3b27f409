"""A worker's dealings with device memory that others use, too: a turn before a peak, and room made after a lack."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TypeVar

import torch

from tasks import accuracy, failure
from tasks.memory import PeakMemory
from tasks.room import Room
from tasks.spec import Phase
from tasks.step import State

T = TypeVar("T")


class Headroom:
    """Memory of ``device`` for a task that is expected to need ``expected_mib`` at its peak.

    What is done for lack of memory is added to ``remarks``, in words for the row. ``interrupted``: compiling was gone on with after it.
    """

    def __init__(self, device: torch.device, expected_mib: float, remarks: list[str]) -> None:
        self.peak = PeakMemory(device)
        self.room = Room.from_environment(device)
        self.interrupted = False
        self._device = device
        self._expected_mib = expected_mib
        self._remarks = remarks
        self._phase = Phase.START

    def enter(self, phase: Phase) -> None:
        """A phase begins, and with it the time that turns may take."""
        self._phase = phase
        self.room.renew()

    def turn(self, peak_mib: float | None = None) -> AbstractContextManager[None]:
        """Take memory in this block, up to a peak of ``peak_mib`` or the expected one, when it is there."""
        return self.room.turn(self._lacking_bytes(self._expected_mib if peak_mib is None else peak_mib))

    def fitted(self, act: Callable[[], T], *reliefs: Callable[[], bool]) -> T:
        """What ``act`` returns; while it does not fit, once more after each of ``reliefs`` that made room."""
        left = iter(reliefs)
        while True:
            try:
                return act()
            except Exception as error:
                if not failure.lacks_memory(error):
                    raise
                failed = error
            traceback.clear_frames(failed.__traceback__)  # they hold what did not fit
            accuracy.free_memory(self._device)
            if not any(relief() for relief in left):
                raise failed

    def wait(self) -> bool:
        """A relief: until neighbours have given back what the task needs. False if they never had it, or after a while."""
        if not self.room.wait_for(self._lacking_bytes(max(self.peak.so_far() or 0.0, self._expected_mib))):
            return False
        self._relieved(f"phase {self._phase.value} lacked memory until neighbours had given some back")
        return True

    def to_host(self, state: State) -> bool:
        """A relief: the saved state goes to the host. False if it is there."""
        if state.on_host:
            return False
        state.to_host()
        self._relieved(f"the saved state was moved to the host in phase {self._phase.value}, for lack of memory")
        return True

    def _lacking_bytes(self, peak_mib: float) -> float:
        return max(0.0, peak_mib - self.peak.held_mib()) * 2**20

    def _relieved(self, remark: str) -> None:
        self._remarks.append(remark)
        self.interrupted = self.interrupted or self._phase is Phase.COMPILE

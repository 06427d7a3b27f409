"""The most device memory that torch has allocated: by one step, and by the whole process."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch

ROOM_LIMIT_S = 30.0
"""Neighbours near their peaks are past them by then."""

ROOM_POLL_S = 0.25
SMALL_SHARE = 0.05  # of a device's memory: CUDA's own takes as much


def wait_for_room(
    device: torch.device, needed_bytes: int, sleep: Callable[[float], None] = time.sleep, limit_s: float = ROOM_LIMIT_S
) -> bool:
    """Wait until ``device`` has so many bytes free beside what neighbours hold; False as soon as nobody else holds any, or after a while.

    Then the caller lacks memory of its own, and to begin again would end the same way.
    """
    polls = int(limit_s / ROOM_POLL_S) if device.type == "cuda" else 0
    for _ in range(polls):
        try:
            free_bytes, all_bytes = torch.cuda.mem_get_info(device)
        except RuntimeError:  # not even for this process's beginnings on the device was there memory
            sleep(ROOM_POLL_S)
            continue
        others_bytes = all_bytes - free_bytes - torch.cuda.memory_reserved(device)
        if others_bytes < SMALL_SHARE * all_bytes:
            return False
        if free_bytes >= needed_bytes:
            return True
        sleep(ROOM_POLL_S)
    return False


class PeakMemory:
    """Peaks on ``device``. None on the CPU, whose allocator does not count.

    Torch has one mark per device. It is set back to look at a single step, so what it said before is kept here.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._earlier_bytes = 0

    def of_step(self, step: Callable[[], object], context: Callable[[], AbstractContextManager[Any]]) -> float | None:
        """During a warm ``step``, in MiB."""
        if self._device.type != "cuda":
            return None
        with context():
            step()
            torch.cuda.synchronize(self._device)
            self._earlier_bytes = self._highest_bytes()
            torch.cuda.reset_peak_memory_stats(self._device)
            step()
            torch.cuda.synchronize(self._device)
        return torch.cuda.max_memory_allocated(self._device) / 2**20

    def wait_for_room(self, peak_mib: float = 0.0) -> bool:
        """Wait until there is room for a peak of ``peak_mib``, or for as much as this process ever held: a neighbour was in its way."""
        if self._device.type != "cuda":
            return False
        peak_bytes = max(self._highest_bytes(), int(peak_mib * 2**20))
        return wait_for_room(self._device, max(0, peak_bytes - torch.cuda.memory_allocated(self._device)))

    def held_mib(self) -> float:
        """What this process's tensors take now."""
        return 0.0 if self._device.type != "cuda" else torch.cuda.memory_allocated(self._device) / 2**20

    def so_far(self) -> float | None:
        """Since this process began, in MiB: with saved states, copies and the accuracy reference."""
        return None if self._device.type != "cuda" else self._highest_bytes() / 2**20

    def _highest_bytes(self) -> int:
        return max(self._earlier_bytes, torch.cuda.max_memory_allocated(self._device))

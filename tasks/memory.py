"""The most device memory that torch has allocated: by one step, and by the whole process."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch


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

    def held_mib(self) -> float:
        """What this process's tensors take now."""
        return 0.0 if self._device.type != "cuda" else torch.cuda.memory_allocated(self._device) / 2**20

    def so_far(self) -> float | None:
        """Since this process began, in MiB: with saved states, copies and the accuracy reference."""
        return None if self._device.type != "cuda" else self._highest_bytes() / 2**20

    def _highest_bytes(self) -> int:
        return max(self._earlier_bytes, torch.cuda.max_memory_allocated(self._device))

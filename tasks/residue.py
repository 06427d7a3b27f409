"""What an attempt leaves on its GPU: memory that is held after its last process has ended, by a stuck driver or a process that hides.

After an attempt its GPUs are looked at. What has come since it began, and does not go, is noted on the node; as long as it is there no
attempt starts on that GPU: a dirty device is an infrastructure failure, and says nothing about the model. Where neighbours share the GPU
only the attempt's own worker can be judged. Where NVML is missing nothing can. Standard library only.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tasks.gpu_holders import holders
from tasks.spec import slug

GRACE_S = 5.0
"""How long the memory of a process that has ended may take to come back."""

_POLL_S = 0.1


class DirtyDeviceError(Exception):
    """An earlier attempt's memory is still held."""


class Residue:
    """One worker's GPUs. ``alone``: it shares them with nobody. ``directory``: where what was found is noted, for later attempts."""

    def __init__(
        self, gpus: Sequence[str], directory: Path, *, alone: bool, look: Callable[[str], dict[int, int] | None] = holders
    ) -> None:
        self._gpus = gpus
        self._directory = directory
        self._alone = alone
        self._look = look
        self._before: dict[str, set[int]] = {}

    def before(self) -> None:
        """Look at the GPUs before the worker starts.

        Raises:
            DirtyDeviceError: what an earlier attempt left on one is still there.
        """
        for gpu in self._gpus:
            found = self._look(gpu)
            if found is None:
                continue
            self._before[gpu] = set(found)
            left = {pid: mib for pid, mib in found.items() if pid in self._noted(gpu)}
            if left:
                raise DirtyDeviceError(f"{_told(gpu, left)}, left by an earlier attempt: reset the GPU, or end what holds it")
            self._note(gpu).unlink(missing_ok=True)

    def after(self, worker: int) -> str | None:
        """Look again when the worker's whole tree has ended; what is left, in words."""
        give_up_s = time.monotonic() + GRACE_S
        while (left := self._left(worker)) and time.monotonic() < give_up_s:
            time.sleep(_POLL_S)
        for gpu, found in left.items():
            with contextlib.suppress(OSError):
                self._note(gpu).write_text(json.dumps(sorted(found)), encoding="utf-8")
        return "; ".join(_told(gpu, found) for gpu, found in left.items()) or None

    def _left(self, worker: int) -> dict[str, dict[int, int]]:
        left = {}
        for gpu, before in self._before.items():
            found = self._look(gpu) or {}
            mine = set(found) - before if self._alone else {worker} & set(found)
            if mine:
                left[gpu] = {pid: found[pid] for pid in mine}
        return left

    def _noted(self, gpu: str) -> set[int]:
        try:
            return set(json.loads(self._note(gpu).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return set()

    def _note(self, gpu: str) -> Path:
        return self._directory / f"dirty-{slug(gpu)}.json"


def _told(gpu: str, left: dict[int, int]) -> str:
    held = ", ".join(f"process {pid} ({mib} MiB)" for pid, mib in sorted(left.items()))
    return f"GPU {gpu} is still held by {held}"

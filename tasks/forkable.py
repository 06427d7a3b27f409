"""Whether this process may be forked: a child has one thread, and no part in what its parent began with a GPU. Standard library only."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Collection
from typing import Any

_OF_A_GPU = "/dev/nvidia"


def obstacle() -> str | None:
    """Why a child of this process would be no sound worker; None if nothing speaks against it."""
    threads = len(os.listdir("/proc/self/task"))  # noqa: PTH208 - only how many
    if threads != 1:
        return f"it has {threads} threads"
    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return "it uses CUDA"
    return next((f"it has {path} open" for path in descriptors().values() if path.startswith(_OF_A_GPU)), None)


def strangers(own: Collection[int]) -> str | None:
    """What is open beside the descriptors ``own``, in words: somebody would miss it in a child, which has none of it."""
    return next(
        (f"descriptor {number} ({path}) was opened by an import" for number, path in descriptors().items() if number not in own), None
    )


def descriptors() -> dict[int, str]:
    """What this process has open."""
    found = {}
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - numbers, not paths
        with contextlib.suppress(OSError):  # the one of this very listing
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")  # noqa: PTH115 - what it says may be no path
    return found


def spoils_cuda() -> bool:
    """Whether torch refuses CUDA to a child: a library may have asked the driver without a trace in this process. Forks to see."""
    torch: Any = sys.modules.get("torch")
    is_spoilt = getattr(torch._C, "_cuda_isInBadFork", None) if torch is not None else None  # noqa: SLF001 - it has no public name
    if is_spoilt is None:  # no torch, or one without CUDA
        return False
    pid = os.fork()
    if pid == 0:
        os._exit(1 if is_spoilt() else 0)
    _, status = os.waitpid(pid, 0)
    return status != 0

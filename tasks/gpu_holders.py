"""Which processes hold memory of a GPU, from NVML's own library. Standard library only: a guardian has nothing else.

Process numbers are those of the machine; in a container with numbers of its own they can be compared with each other, and with no others.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from typing import Any

LIBRARY = "libnvidia-ml.so.1"
_INSUFFICIENT_SIZE = 7  # NVML_ERROR_INSUFFICIENT_SIZE, <nvml.h>
_ROOM_FOR_NEWCOMERS = 8
_UNKNOWN_BYTES = 2**64 - 1  # NVML_VALUE_NOT_AVAILABLE


class _Process(ctypes.Structure):
    """nvmlProcessInfo_t."""

    _fields_ = (
        ("pid", ctypes.c_uint),
        ("used_bytes", ctypes.c_ulonglong),
        ("gpu_instance", ctypes.c_uint),
        ("compute_instance", ctypes.c_uint),
    )


def holders(gpu: str) -> dict[int, int] | None:
    """MiB by process number, for each process that computes on the GPU with this number or UUID; also for a dead one that it still knows.

    None where NVML is missing or does not know: for parts of a GPU (MIG), for one.
    """
    with _library() as library:
        return None if library is None else listed(library, gpu)


def listed(nvml: Any, gpu: str) -> dict[int, int] | None:
    """``holders`` by the functions of ``nvml``."""
    handle = ctypes.c_void_p()
    if gpu.isdecimal():
        error = nvml.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(int(gpu)), ctypes.byref(handle))
    else:
        error = nvml.nvmlDeviceGetHandleByUUID(gpu.encode(), ctypes.byref(handle))
    if error:
        return None
    count = ctypes.c_uint(0)
    while True:
        count.value += _ROOM_FOR_NEWCOMERS
        processes = (_Process * count.value)()
        error = nvml.nvmlDeviceGetComputeRunningProcesses_v3(handle, ctypes.byref(count), processes)
        if error != _INSUFFICIENT_SIZE:
            break
    if error:
        return None
    found = processes[: count.value]
    return {each.pid: 0 if each.used_bytes == _UNKNOWN_BYTES else each.used_bytes // 2**20 for each in found}


@contextlib.contextmanager
def _library() -> Iterator[Any]:
    """NVML for the moment only: a worker that is forked from this process must find it as it is before its first use."""
    try:
        nvml = ctypes.CDLL(LIBRARY)
        found = nvml.nvmlInit_v2() == 0
    except (OSError, AttributeError):
        found = False
    try:
        yield nvml if found else None
    finally:
        if found:
            nvml.nvmlShutdown()

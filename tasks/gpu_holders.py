"""Which processes hold memory of a GPU, from NVML's own library. Standard library only: a guardian has nothing else.

    python -IS -c START ROOT GPU LIBRARY

prints them as JSON. A guardian has a process of its own ask, for NVML starts a thread in whoever loads it, and a worker is not to be forked
from a process with two; and a driver that does not answer holds up that process only.

Process numbers are those of the machine; in a container with numbers of its own they can be compared with each other, and with no others.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

LIBRARY = "libnvidia-ml.so.1"
LIMIT_S = 10.0
"""How long NVML may take; some tens of milliseconds are usual."""

_START = "import sys; sys.path.append(sys.argv[1]); from tasks.gpu_holders import main; main(*sys.argv[2:])"
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


def holders(gpu: str, library: str = LIBRARY) -> dict[int, int] | None:
    """MiB by process number, for each process that computes on the GPU with this number or UUID; also for a dead one that it still knows.

    None where NVML is missing, does not know (for parts of a GPU, for one) or does not answer.
    """
    command = [sys.executable, "-IS", "-c", _START, str(Path(__file__).parent.parent), gpu, library]
    try:
        asked = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=LIMIT_S, check=True)
        found = json.loads(asked.stdout)
    except (subprocess.SubprocessError, ValueError):
        return None
    return None if found is None else {int(pid): mib for pid, mib in found.items()}


def main(gpu: str, library: str) -> None:
    """Print the holders of ``gpu``, or null."""
    try:
        nvml = ctypes.CDLL(library)
        found = listed(nvml, gpu) if nvml.nvmlInit_v2() == 0 else None
    except (OSError, AttributeError):
        found = None
    json.dump(found, sys.stdout)


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

"""GPUs as CUDA's own driver library lists them, where NVML is missing, as it is in many containers. Standard library only.

``gpus`` asks in a process of its own, which ends at once: whoever initialises CUDA in a process that lives on can never fork again.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from typing import Any

LIBRARY = "libcuda.so.1"
LIMIT_S = 30.0
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR, <cuda.h>
_NAME_BYTES, _UUID_BYTES = 256, 16


def gpus() -> list[dict[str, Any]]:
    """Name, UUID, compute capability times ten and memory in MiB of each GPU of the machine; empty where there is none, or no driver."""
    everything = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    try:
        done = subprocess.run([sys.executable, "-IS", __file__], capture_output=True, timeout=LIMIT_S, check=True, env=everything)
    except (subprocess.SubprocessError, OSError):
        return []
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def listed(cuda: Any) -> Iterator[dict[str, Any]]:
    """What the driver library ``cuda`` says; nothing if it finds no device.

    Raises:
        OSError: the driver reports an error for a device that it has counted.
    """
    count = ctypes.c_int()
    if cuda.cuInit(0) != 0 or cuda.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return
    for device in range(count.value):
        name, identity, memory = ctypes.create_string_buffer(_NAME_BYTES), ctypes.create_string_buffer(_UUID_BYTES), ctypes.c_size_t()
        major, minor = ctypes.c_int(), ctypes.c_int()
        errors = (
            cuda.cuDeviceGetName(name, _NAME_BYTES, device),
            cuda.cuDeviceGetUuid(identity, device),
            cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device),
            cuda.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device),
            cuda.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device),
        )
        if any(errors):
            raise OSError(f"CUDA's driver reports errors {errors} for device {device}")
        yield {
            "name": name.value.decode(),
            "uuid": f"GPU-{uuid.UUID(bytes=identity.raw)}",
            "capability": 10 * major.value + minor.value,
            "memory_mib": memory.value // 2**20,
        }


def main() -> int:
    try:
        found = list(listed(ctypes.CDLL(LIBRARY)))
    except OSError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())

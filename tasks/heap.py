"""The C library's heap, which is kept from shrinking while a worker lives. Standard library only.

glibc gives free memory at the top of its heap back to the system, and takes it again page by page. How much is left at the top follows
from where the last small object happens to lie: of equal processes some give a few hundred pages back in every step of a model, and take
them again, and some none (docs/decisions/020). Nothing of that is the compiler's. What a worker no longer needs it gives back between its
phases.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from enum import StrEnum

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
NEVER = 2**31 - 1  # bytes that may be free at the top: as many as an int says
LARGEST = 32 * 2**20  # bytes; what is larger is mapped by itself, and glibc allows no more: DEFAULT_MMAP_THRESHOLD_MAX
_SETTINGS = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")


class Heap(StrEnum):
    """What became of the wish to keep it."""

    KEPT = "kept"
    AS_SET = "as set in the environment"
    UNKNOWN = "a C library without mallopt"


def keep(environment: Mapping[str, str]) -> Heap:
    """Have this process's heap give nothing back by itself, unless ``environment`` says how memory is to be allocated."""
    if any(name.startswith(_SETTINGS) for name in environment):
        return Heap.AS_SET
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt"):
        return Heap.UNKNOWN
    for setting, size in ((_M_MMAP_THRESHOLD, LARGEST), (_M_TRIM_THRESHOLD, NEVER)):
        if library.mallopt(setting, size) != 1:
            return Heap.UNKNOWN
    return Heap.KEPT


def give_back() -> None:
    """Let the system have what is free now."""
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)

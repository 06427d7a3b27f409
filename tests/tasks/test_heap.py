"""Every test has a process of its own: what is set cannot be taken back."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from tasks import heap

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library gives memory back by other rules")

BLOCKS = """
import ctypes, resource
from tasks import heap

library = ctypes.CDLL(None)
library.malloc.restype, library.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
library.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def step(size=4 * 2**20):
    blocks = [library.malloc(size) for _ in range(4)]
    for block in blocks:
        library.memset(block, 1, size)
    for block in reversed(blocks):
        library.free(block)

def faults_of_a_step():
    for _ in range(3):
        step()
    before = faults()
    for _ in range(10):
        step()
    return (faults() - before) / 10
"""


def printed(*lines: str, **environment: str) -> list[str]:
    source = "\n".join((BLOCKS, *lines))
    found = subprocess.run([sys.executable, "-c", source], env=environment, capture_output=True, text=True, timeout=60, check=True)
    return found.stdout.split("\n")[:-1]


def test_a_heap_that_is_kept_costs_no_page_faults():
    """Four blocks of 4 MiB at the top of the heap are more than glibc leaves there, by default, after blocks of 4 MiB."""
    default, kept, how = printed("print(faults_of_a_step())", "how = heap.keep({})", "print(faults_of_a_step())", "print(how.value)")
    assert float(default) > 1000
    assert float(kept) < 10
    assert how == heap.Heap.KEPT


def test_what_is_free_is_given_back_when_asked_for():
    before, after = printed(
        "heap.keep({})",
        "step()",
        "first = faults(); step(); print(faults() - first)",
        "heap.give_back()",
        "first = faults(); step(); print(faults() - first)",
    )
    assert float(before) < 10
    assert float(after) > 1000


@pytest.mark.parametrize("setting", ["MALLOC_TRIM_THRESHOLD_", "MALLOC_ARENA_MAX", "GLIBC_TUNABLES", "LD_PRELOAD"])
def test_who_has_chosen_how_memory_is_allocated_is_left_alone(setting):
    how, faults = printed(f"print(heap.keep({{'{setting}': 'x'}}).value)", "print(faults_of_a_step())")
    assert how == heap.Heap.AS_SET
    assert float(faults) > 1000


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(heap.ctypes, "CDLL", lambda name: object())
    assert heap.keep({}) is heap.Heap.UNKNOWN
    heap.give_back()

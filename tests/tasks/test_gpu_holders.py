"""Who holds a GPU, asked of a library that behaves as NVML does."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from tasks.forkable import obstacle
from tasks.gpu_holders import holders

NVML = """
#include <pthread.h>
#include <stddef.h>
#include <unistd.h>
typedef struct { unsigned pid; unsigned long long bytes; unsigned gpu_instance, compute_instance; } process;
static void *forever(void *nothing) { for (;;) pause(); return nothing; }
int nvmlInit_v2(void) { pthread_t thread; return pthread_create(&thread, NULL, forever, NULL); }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) { *handle = NULL; return index == 0 ? 0 : 6; }
int nvmlDeviceGetHandleByUUID(const char *uuid, void **handle) { *handle = NULL; return 6; }
int nvmlDeviceGetComputeRunningProcesses_v3(void *handle, unsigned *count, process *found) {
    if (*count < 1) return 7;
    *count = 1; found[0].pid = 4711; found[0].bytes = 3ull << 20; return 0;
}
"""
HANGS = "#include <unistd.h>\nint nvmlInit_v2(void) { sleep(60); return 1; }\n"


@pytest.fixture
def library(tmp_path):
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")

    def build(source):
        (tmp_path / "nvml.c").write_text(source)
        subprocess.run([compiler, "-shared", "-fPIC", "-o", tmp_path / "nvml.so", tmp_path / "nvml.c", "-lpthread"], check=True)
        return str(tmp_path / "nvml.so")

    return build


def test_whoever_asks_stays_as_it_was_although_nvml_starts_a_thread(library):
    path, before = library(NVML), len(os.listdir("/proc/self/task"))  # noqa: PTH208 - only how many

    assert holders("0", path) == {4711: 3}
    assert holders("1", path) is None
    assert holders("GPU-no-such-one", path) is None
    assert len(os.listdir("/proc/self/task")) == before  # noqa: PTH208 - as above
    with open("/proc/self/maps") as maps:  # noqa: PTH123 - read once
        assert path not in maps.read()
    assert before > 1 or obstacle() is None


def test_a_machine_without_nvml_does_not_know():
    assert holders("0", "libno-such-thing.so") is None


def test_a_driver_that_does_not_answer_is_not_waited_for(library, monkeypatch):
    monkeypatch.setattr("tasks.gpu_holders.LIMIT_S", 0.5)

    assert holders("0", library(HANGS)) is None

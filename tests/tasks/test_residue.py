"""What is left on a GPU, against stand-ins for NVML: its functions, what follows from them, and a library that a real guardian loads."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from dataclasses import dataclass, field

import pytest

from tasks import residue
from tasks.gpu_holders import listed
from tasks.residue import DirtyDeviceError, Residue
from tasks.scratch import user_directory
from tasks.spec import FailureClass, ResourceSpec, Status
from tasks.supervisor import Finished, supervise
from tests.tasks.processes_fixtures import attempt, toy

MIB = 2**20


@dataclass
class Nvml:
    """What the library's functions do to their arguments: this list of (pid, bytes)."""

    processes: list = field(default_factory=list)
    handle_error: int = 0
    list_error: int = 0
    asked: list = field(default_factory=list)

    def nvmlDeviceGetHandleByIndex_v2(self, index, handle):  # noqa: N802 - NVML's names
        self.asked.append(index.value)
        return self.handle_error

    def nvmlDeviceGetHandleByUUID(self, uuid, handle):  # noqa: N802
        self.asked.append(uuid)
        return self.handle_error

    def nvmlDeviceGetComputeRunningProcesses_v3(self, handle, count, processes):  # noqa: N802
        room, count._obj.value = count._obj.value, len(self.processes)
        if room < len(self.processes):
            return 7
        for place, (pid, used) in enumerate(self.processes):
            processes[place].pid, processes[place].used_bytes = pid, used
        return self.list_error


def test_processes_and_their_memory_are_read_however_many_there_are():
    nvml = Nvml([(10 + number, number * MIB) for number in range(20)] + [(99, 2**64 - 1)])
    assert listed(nvml, "3") == {10 + number: number for number in range(20)} | {99: 0}
    assert listed(Nvml(), "GPU-1") == {}
    assert nvml.asked == [3]


@pytest.mark.parametrize("nvml", [Nvml(handle_error=6), Nvml(list_error=3)])
def test_a_gpu_that_nvml_does_not_know_cannot_be_judged(nvml):
    assert listed(nvml, "MIG-1") is None


def test_the_structure_is_that_of_the_header():
    from tasks.gpu_holders import _Process

    assert ctypes.sizeof(_Process) == 24
    assert _Process.used_bytes.offset == 8


# --- what follows -----------------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(residue, "GRACE_S", 0.05)


@pytest.fixture
def gpu(tmp_path):
    """Makes the residue of one attempt on GPU 0; ``held`` is what NVML says at each look, the last for ever."""

    def make(*held, alone=True):
        answers = list(held)
        return Residue(["0"], tmp_path, alone=alone, look=lambda _gpu: answers.pop(0) if len(answers) > 1 else answers[0])

    return make


def test_a_clean_gpu_is_no_news(gpu):
    attempt = gpu({}, {7: 500}, {})
    attempt.before()
    assert attempt.after(7) is None
    gpu({}).before()


def test_memory_that_does_not_come_back_is_told_and_nothing_starts_there_until_it_has(gpu):
    attempt = gpu({}, {7: 500, 8: 20})
    attempt.before()
    assert attempt.after(7) == "GPU 0 is still held by process 7 (500 MiB), process 8 (20 MiB)"
    with pytest.raises(DirtyDeviceError, match=r"held by process 8 \(20 MiB\), left by an earlier attempt"):
        gpu({8: 20, 9: 1}).before()
    gpu({9: 1}).before()
    gpu({8: 20}).before()  # another process of that number


def test_who_was_there_before_is_left_alone(gpu):
    attempt = gpu({5: 3000}, {5: 3000, 7: 500}, {5: 3000})
    attempt.before()
    assert attempt.after(7) is None


def test_beside_neighbours_only_the_own_worker_is_judged(gpu):
    attempt = gpu({}, {7: 500, 8: 20}, alone=False)
    attempt.before()
    assert attempt.after(7) == "GPU 0 is still held by process 7 (500 MiB)"
    attempt = gpu({7: 500}, {8: 20}, alone=False)
    with pytest.raises(DirtyDeviceError):
        attempt.before()


def test_without_nvml_nothing_is_judged(gpu):
    attempt = gpu(None)
    attempt.before()
    assert attempt.after(7) is None


# --- a real guardian --------------------------------------------------------------------------------------------------------------

LIBRARY = r"""
#include <stdio.h>
typedef struct { unsigned pid; unsigned long long used; unsigned gi, ci; } process;
int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) { return 0; }
int nvmlDeviceGetHandleByUUID(const char *uuid, void **handle) { return 0; }
int nvmlDeviceGetComputeRunningProcesses_v3(void *handle, unsigned *count, process *found) {
    FILE *file = fopen("@", "r");
    unsigned pid = 0, n = 0;
    while (file && fscanf(file, "%u", &pid) == 1) { found[n].pid = pid; found[n++].used = 512ull << 20; }
    if (file) fclose(file);
    *count = n;
    return 0;
}
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_an_attempt_on_a_dirty_gpu_is_an_infrastructure_failure(tmp_path, monkeypatch):
    pids = tmp_path / "pids"
    source = tmp_path / "nvml.c"
    source.write_text(LIBRARY.replace("@", str(pids)))
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(tmp_path / "libnvidia-ml.so.1"), str(source)], check=True)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    on_gpu = ResourceSpec("cuda", 1.0, 1.0)

    def outcome(task):
        events = [event for event in supervise(task, attempt(gpu_ids=("0",))) if isinstance(event, Finished)]
        return events[-1].outcome

    folder = user_directory(str(tmp_path))
    Residue(["0"], folder, alone=True)._note("0").write_text("[4711]")
    pids.write_text("4711\n")
    dirty = outcome(toy("pass", resources=on_gpu))
    assert (dirty.status, dirty.failure_class) == (Status.INFRA_ERROR, FailureClass.DEVICE)
    assert "GPU 0 is still held by process 4711 (512 MiB)" in dirty.error
    pids.write_text("")
    assert outcome(toy("pass", resources=on_gpu)).status is Status.PASS

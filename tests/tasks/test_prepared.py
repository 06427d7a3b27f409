"""Which parents fit: by the environment, by what is installed, by this package's files."""

from __future__ import annotations

import os
import sys

import pytest

from tasks import prepared
from tasks.prepared import common, key, parents_environment

BASE = {"HOME": "/home/me", "TORCH_LOGS": "graph_breaks", "PATH": "/bin"}


@pytest.mark.parametrize(
    "changed",
    [
        {"TORCH_LOGS": "recompiles"},
        {"HOME": "/home/you"},
        {"TORCHINDUCTOR_MAX_AUTOTUNE": "1"},
        {"CXX": "clang++"},
        {"LD_LIBRARY_PATH": "/lib"},
        {"KMP_AFFINITY": "compact"},
        {"NOBODY_KNOWS_WHO_READS_IT": "1"},
    ],
)
def test_another_environment_is_another_parent(changed):
    assert key(BASE | changed, "/code", "cpu") != key(BASE, "/code", "cpu")


@pytest.mark.parametrize(
    "changed",
    [
        *({name: "7"} for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "TORCHINDUCTOR_COMPILE_THREADS")),
        *({name: "/elsewhere"} for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "TMPDIR", "PYTHONPATH", "PWD")),
        {"RAY_JOB_ID": "01", "RANK": "3", "SWEEP_CONTROL_FD": "9"},
        {"SSH_CLIENT": "1", "TERM": "xterm", "SHLVL": "2", "_": "/bin/env"},
        {"HF_HUB_OFFLINE": "0"},  # every worker has 1
    ],
)
def test_what_is_set_for_each_attempt_or_by_a_terminal_is_none(changed):
    assert key(BASE | changed, "/code", "cpu") == key(BASE, "/code", "cpu")


def test_where_it_imports_from_counts_and_what_is_installed_there(tmp_path, monkeypatch):
    site = tmp_path / "site-packages"
    site.mkdir()
    monkeypatch.setattr(sys, "path", [*sys.path, str(site)])
    keys = [key(BASE, "/code", "cpu"), key(BASE, "/more/code", "cpu")]
    (site / "torch-9.0.dist-info").mkdir()
    keys.append(key(BASE, "/code", "cpu"))
    os.utime(site / "torch-9.0.dist-info", (1, 1))  # the same version, installed again
    keys.append(key(BASE, "/code", "cpu"))
    (site / "__editable__.pth").touch()
    keys.append(key(BASE, "/code", "cpu"))
    (site / "__pycache__").mkdir()  # whoever imports may leave this
    (site / "notes.txt").touch()
    assert len(set(keys)) == len(keys)
    assert key(BASE, "/code", "cpu") == keys[-1]


def test_packages_beside_the_installation_count_as_well(tmp_path):
    before = key(BASE, str(tmp_path), "cpu")
    (tmp_path / "models-1.0.egg-info").mkdir()
    assert key(BASE, str(tmp_path), "cpu") != before


def test_another_version_of_this_package_is_another_parent(tmp_path, monkeypatch):
    (tmp_path / "worker.py").touch()
    monkeypatch.setattr(prepared, "__file__", str(tmp_path / "prepared.py"))
    before = key(BASE, "/code", "cpu")
    os.utime(tmp_path / "worker.py", (1, 1))
    assert key(BASE, "/code", "cpu") != before


def test_another_kind_of_device_is_another_parent():
    assert key(BASE, "/code", "cpu") != key(BASE, "/code", "cuda")


def test_another_interpreter_is_another_parent(monkeypatch):
    before = key(BASE, "/code", "cpu")
    monkeypatch.setattr(sys, "executable", "/another/python")
    assert key(BASE, "/code", "cpu") != before


def test_a_parent_imports_with_one_thread_and_no_gpu_and_else_as_its_workers_would():
    inherited = BASE | {"CUDA_VISIBLE_DEVICES": "3", "OMP_NUM_THREADS": "8", "TMPDIR": "/big", "RAY_JOB_ID": "1", "PYTHONPATH": "/x"}
    found = parents_environment(inherited, "/code")
    assert (found["CUDA_VISIBLE_DEVICES"], found["OMP_NUM_THREADS"], found["TORCHINDUCTOR_COMPILE_THREADS"]) == ("", "1", "1")
    assert (found["OPENBLAS_NUM_THREADS"], found["PYTORCH_NVML_BASED_CUDA_CHECK"]) == ("1", "1")
    assert (found["PYTHONPATH"], found["TMPDIR"], found["PYTHONUNBUFFERED"], found["HF_HUB_OFFLINE"]) == ("/code", "/big", "1", "1")
    assert common(found) == common(inherited) | {"OPENBLAS_NUM_THREADS": "1", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
    assert parents_environment(BASE | {"OPENBLAS_NUM_THREADS": "4"}, "/code")["OPENBLAS_NUM_THREADS"] == "4"

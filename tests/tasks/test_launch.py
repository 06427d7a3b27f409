from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tasks.launch import NoDeviceError, importable_paths, recorded, worker_environment
from tasks.spec import Attempt, ResourceSpec
from tests.tasks.processes_fixtures import toy

SCRATCH, SHARED = Path("/scratch"), Path("/shared")


def environment(resources=None, inherited=None, cache="cold", gpu_ids=()):
    task = toy("pass", resources=resources, cache=cache)
    return worker_environment(task, Attempt("my run", 1, gpu_ids=gpu_ids), SCRATCH, SHARED, "/code", inherited or {})


def test_a_worker_sees_exactly_its_gpus():
    cuda = ResourceSpec(device="cuda", num_gpus=1)
    assert environment(cuda, {"CUDA_VISIBLE_DEVICES": "0,1,2"}, gpu_ids=("2",))["CUDA_VISIBLE_DEVICES"] == "2"
    assert environment(inherited={"CUDA_VISIBLE_DEVICES": "0"}, gpu_ids=("0",))["CUDA_VISIBLE_DEVICES"] == ""
    with pytest.raises(NoDeviceError):
        environment(cuda, {"CUDA_VISIBLE_DEVICES": "0"})


@pytest.mark.parametrize(
    ("resources", "threads", "compile_threads"),
    [
        (ResourceSpec(num_cpus=4), "4", "4"),
        (ResourceSpec(num_cpus=0.5), "1", "1"),
        (ResourceSpec(num_cpus=2.9), "2", "2"),
        (ResourceSpec(num_cpus=4, threads=2), "2", "4"),
        (ResourceSpec(num_cpus=4, compile_threads=8), "4", "8"),
        (ResourceSpec(num_cpus=2, compile_helpers=3), "2", "5"),
        (ResourceSpec(num_cpus=0.5, compile_threads=2, compile_helpers=3), "1", "5"),
    ],
)
def test_threads_are_those_asked_for_or_one_per_cpu(resources, threads, compile_threads):
    variables = environment(resources, {"OMP_NUM_THREADS": "99", "MKL_NUM_THREADS": "99", "TORCHINDUCTOR_COMPILE_THREADS": "99"})
    assert variables["OMP_NUM_THREADS"] == variables["MKL_NUM_THREADS"] == threads
    assert variables["TORCHINDUCTOR_COMPILE_THREADS"] == compile_threads


def test_caches_are_the_attempts_or_the_runs():
    cold, shared = environment(), environment(cache="shared")
    assert cold["TORCHINDUCTOR_CACHE_DIR"].startswith("/scratch/")
    assert cold["TRITON_CACHE_DIR"].startswith("/scratch/")
    assert shared["TORCHINDUCTOR_CACHE_DIR"].startswith("/shared/cache-my-run-")
    assert shared["TRITON_CACHE_DIR"].startswith("/shared/cache-my-run-")


@pytest.mark.parametrize(("cache", "bundles", "told"), [("bundle", "/b", "/b"), ("bundle", None, None), ("cold", "/b", None)])
def test_only_who_keeps_its_cache_is_told_where(cache, bundles, told):
    task, attempt = toy("pass", cache=cache), Attempt("my run", 1, bundles=bundles)
    variables = worker_environment(task, attempt, SCRATCH, SHARED, "/code", {"SWEEP_BUNDLES": "/inherited"})

    assert variables.get("SWEEP_BUNDLES") == told
    assert variables["TORCHINDUCTOR_CACHE_DIR"].startswith("/scratch/")


def test_what_a_scheduler_left_is_removed_and_the_users_own_kept():
    inherited = {
        "RAY_JOB_ID": "1",
        "RANK": "0",
        "WORLD_SIZE": "8",
        "SWEEP_CONTROL_FD": "3",
        "TORCH_LOGS": "x",
        "HOME": "/h",
        "HF_HUB_OFFLINE": "0",
    }
    variables = environment(inherited=inherited)
    assert not {"RAY_JOB_ID", "RANK", "WORLD_SIZE", "SWEEP_CONTROL_FD"} & set(variables)
    assert (variables["TORCH_LOGS"], variables["HOME"], variables["HF_HUB_OFFLINE"]) == ("x", "/h", "1")
    assert "HOME" not in recorded(variables)
    assert {"TORCH_LOGS", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "TMPDIR", "PYTHONPATH"} <= set(recorded(variables))


def test_a_worker_imports_what_its_supervisor_can(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "path", ["", str(tmp_path), str(tmp_path), "/nonexistent", f"{sys.prefix}/lib", *sys.path])
    entries = importable_paths(Path("/usr")).split(":")
    assert entries[:3] == ["/usr", str(Path.cwd()), str(tmp_path)]
    assert len(entries) == len(set(entries))
    assert not any(entry.startswith((sys.prefix, sys.base_prefix + "/lib", "/nonexistent")) for entry in entries)

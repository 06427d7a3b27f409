"""What a cluster cannot run is refused before anything is launched, in words a user can act on."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.errors import ExitCode, PreflightError
from orchestrator.preflight import capacity, check, resolve_device
from tasks.probe import Gpu, NodeProbe
from tasks.spec import ModelSpec, ResourceSpec
from tests.orchestrator.fakes import NODE, task

GPU_NODE = replace(NODE, name="gpu:0002", num_gpus=4.0, num_cpus=16.0, accelerators=("H200",))
PROBE = NodeProbe("host", "3.11.7", "v1", 2, {"torch": "2.13.0"}, compiler="/usr/bin/g++")
CUDA_PROBE = replace(PROBE, torch_cuda="13.0", gpus=(Gpu("NVIDIA H200", "GPU-1", 90, 143000),))


def real(resources):
    return replace(task("m", resources=resources), model=ModelSpec("timm", "lcnet_050"))


def problems(tasks, nodes, probes):
    with pytest.raises(PreflightError) as raised:
        check(tasks, nodes, probes, "v1")
    assert raised.value.exit_code is ExitCode.INFRASTRUCTURE
    return str(raised.value)


def test_auto_is_cuda_where_there_is_a_gpu():
    assert resolve_device("auto", [NODE]) == "cpu"
    assert resolve_device("auto", [NODE, GPU_NODE]) == "cuda"
    assert resolve_device("cpu", [GPU_NODE]) == "cpu"


def test_a_plan_that_fits_is_let_through():
    check([real(ResourceSpec("cpu", num_cpus=2.0))], [NODE], {NODE.name: PROBE}, "v1")
    check([real(ResourceSpec("cuda", 4.0, 1.0))], [GPU_NODE], {GPU_NODE.name: CUDA_PROBE}, "v1")


@pytest.mark.parametrize(
    ("resources", "words"),
    [
        (ResourceSpec("cpu", num_cpus=64.0), "64 CPUs where the largest node has 2"),
        (ResourceSpec("cuda", 1.0, 1.0), "1 GPUs where the largest node has 0"),
        (ResourceSpec("cpu", memory_mib=10**6), "1e+06 MiB of memory where the largest node has 8000"),
        (ResourceSpec("cuda", 1.0, 0.0, accelerator="A100"), "an accelerator of type A100, and the cluster has none"),
    ],
)
def test_what_no_node_can_ever_run_is_named(resources, words):
    assert words in problems([task("m", resources=resources)], [NODE], {NODE.name: PROBE})


def test_no_node_at_all():
    assert "no live node" in problems([task("m")], [], {})


def test_a_gpu_that_inductor_does_not_support():
    old = replace(CUDA_PROBE, gpus=(Gpu("NVIDIA GeForce GTX 1080", "GPU-1", 61, 8000),))
    text = problems([real(ResourceSpec("cuda", 1.0, 1.0))], [GPU_NODE], {GPU_NODE.name: old})
    assert "Inductor does not support NVIDIA GeForce GTX 1080 (compute capability 6.1; it needs 7.0 or later)" in text


def test_a_torch_without_cuda_where_the_manifest_wants_it():
    text = problems([real(ResourceSpec("cuda", 1.0, 1.0))], [GPU_NODE], {GPU_NODE.name: replace(CUDA_PROBE, torch_cuda=None)})
    assert "a build without CUDA" in text
    assert "execution.device: cpu" in text


def test_no_torch_no_compiler_other_code_or_no_answer():
    cpu = [real(ResourceSpec("cpu"))]
    assert "has no torch" in problems(cpu, [NODE], {NODE.name: replace(PROBE, versions={"torch": None})})
    assert "no C++ compiler" in problems(cpu, [NODE], {NODE.name: replace(PROBE, compiler=None)})
    assert "another version of this project's code" in problems(cpu, [NODE], {NODE.name: replace(PROBE, code_version="v0")})
    assert "No module named 'tasks'" in problems(cpu, [NODE], {NODE.name: "ModuleNotFoundError: No module named 'tasks'"})


def test_toys_need_neither_torch_nor_compiler():
    check([task("pass")], [NODE], {NODE.name: replace(PROBE, versions={"torch": None}, compiler=None)}, "v1")


def test_every_problem_is_reported_at_once():
    text = problems([real(ResourceSpec("cpu", num_cpus=64.0))], [NODE], {NODE.name: replace(PROBE, versions={"torch": None})})
    assert text.count("\n  - ") == 2


def test_capacity_counts_slots_over_all_nodes():
    tasks = [task("m", resources=ResourceSpec("cuda", 4.0, 1.0))]
    assert capacity(tasks, [GPU_NODE, GPU_NODE], None).slots == 8
    assert capacity(tasks, [GPU_NODE, GPU_NODE], None).max_in_flight == 10
    assert capacity([task("m", resources=ResourceSpec("cpu", 2.0))], [NODE], None).max_in_flight == 2
    assert capacity(tasks, [GPU_NODE], 3).max_in_flight == 3

"""What a cluster cannot run is refused before anything is launched, in words a user can act on."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.errors import ExitCode, PreflightError
from orchestrator.preflight import capacity, check, devices, resolve_device
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
    assert capacity(tasks, [GPU_NODE, GPU_NODE], None).max_in_flight == 9
    assert capacity([task("m", resources=ResourceSpec("cpu", 2.0))], [NODE], None).max_in_flight == 2
    assert capacity(tasks, [GPU_NODE], 3).max_in_flight == 3


HEAD = replace(NODE, name="head:0000", num_cpus=0.0)


def test_a_node_that_no_task_fits_on_needs_nothing():
    bare = replace(PROBE, versions={"torch": None}, compiler=None)
    check([real(ResourceSpec("cpu", 2.0))], [HEAD, NODE], {HEAD.name: bare, NODE.name: PROBE}, "v1")
    old = replace(GPU_NODE, name="old:0003", accelerators=("P100",))
    pascal = replace(CUDA_PROBE, gpus=(Gpu("Tesla P100", "GPU-2", 60, 16000),))
    wanted = [real(ResourceSpec("cuda", 4.0, 1.0, accelerator="H200"))]
    check(wanted, [GPU_NODE, old], {GPU_NODE.name: CUDA_PROBE, old.name: pascal}, "v1")
    stale = replace(bare, code_version="v0")
    assert "head:0000 has another version" in problems([real(ResourceSpec("cpu", 2.0))], [HEAD, NODE], {HEAD.name: stale, NODE.name: PROBE})


OTHER = replace(GPU_NODE, name="gpu:0004", accelerators=("A100",), labels={"pool": "nightly"})
A100 = replace(CUDA_PROBE, gpus=(Gpu("NVIDIA A100", "GPU-3", 80, 40000),))


def test_two_gpu_models_are_not_mixed_unless_the_manifest_says_so():
    wanted = [real(ResourceSpec("cuda", 4.0, 1.0))]
    nodes, probes = [GPU_NODE, OTHER], {GPU_NODE.name: CUDA_PROBE, OTHER.name: A100}
    text = problems(wanted, nodes, probes)
    assert "2 GPU models" in text
    assert "NVIDIA A100 on gpu:0004; NVIDIA H200 on gpu:0002" in text
    assert "execution.accelerator (here: A100, H200)" in text
    check(wanted, nodes, probes, "v1", mix_accelerators=True)
    check([real(ResourceSpec("cuda", 4.0, 1.0, accelerator="A100"))], nodes, probes, "v1")
    check([real(ResourceSpec("cuda", 4.0, 1.0, labels=(("pool", "nightly"),)))], nodes, probes, "v1")
    both = replace(CUDA_PROBE, gpus=(*CUDA_PROBE.gpus, *A100.gpus))
    assert "2 GPU models" in problems(wanted, [GPU_NODE], {GPU_NODE.name: both})


def test_a_label_that_no_node_has():
    text = problems([real(ResourceSpec("cuda", 4.0, 1.0, labels=(("pool", "weekly"),)))], [OTHER], {OTHER.name: A100})
    assert "the label pool: weekly, and the cluster has nightly" in text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"python": "3.12.1"}, "python is not the same on all nodes: 3.11.7 on gpu:0002; 3.12.1 on gpu:0005"),
        ({"versions": {"torch": "2.11.0"}}, "torch is not the same on all nodes: 2.11.0 on gpu:0005; 2.13.0 on gpu:0002"),
        ({"versions": {"torch": "2.13.0", "timm": None}}, None),
        ({"torch_cuda": "12.6"}, "the CUDA version of torch is not the same on all nodes: 12.6"),
        ({"driver": "570.1"}, "the GPU driver is not the same on all nodes: 570.1 on gpu:0005; 580.2 on gpu:0002"),
        ({"driver": None}, None),
    ],
)
def test_nodes_with_other_versions_are_refused(change, words):
    twin = replace(GPU_NODE, name="gpu:0005")
    first = replace(CUDA_PROBE, driver="580.2")
    probes = {GPU_NODE.name: first, twin.name: replace(first, **change)}
    wanted = [real(ResourceSpec("cuda", 4.0, 1.0))]
    if words:
        assert words in problems(wanted, [GPU_NODE, twin], probes)
        check([task("pass", resources=ResourceSpec("cuda", 4.0, 1.0))], [GPU_NODE, twin], probes, "v1")  # toys use no library
    else:
        check(wanted, [GPU_NODE, twin], probes, "v1")


def test_where_gpu_models_are_mixed_versions_are_compared_within_each():
    twin = replace(OTHER, name="gpu:0006")
    probes = {GPU_NODE.name: CUDA_PROBE, OTHER.name: replace(A100, driver="1"), twin.name: replace(A100, driver="1")}
    wanted, nodes = [real(ResourceSpec("cuda", 4.0, 1.0))], [GPU_NODE, OTHER, twin]
    check(wanted, nodes, probes, "v1", mix_accelerators=True)
    with pytest.raises(PreflightError, match="the GPU driver is not the same"):
        check(wanted, nodes, probes | {twin.name: replace(A100, driver="2")}, "v1", mix_accelerators=True)


def test_devices_are_gpus_or_nodes_that_tasks_fit_on():
    assert devices([task("m", resources=ResourceSpec("cuda", 4.0, 1.0))], [GPU_NODE, OTHER, NODE]) == 8
    assert devices([task("m", resources=ResourceSpec("cuda", 4.0, 1.0, accelerator="A100"))], [GPU_NODE, OTHER]) == 4
    assert devices([task("m", resources=ResourceSpec("cpu", 2.0))], [HEAD, NODE, GPU_NODE]) == 2

"""The plan against the cluster as it is, before anything is launched: what no node can ever run is refused here, in plain words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.errors import PreflightError
from orchestrator.likeness import mixed_gpus, version_skew
from orchestrator.sharing import Machine
from tasks.spec import ResourceSpec, TaskSpec

if TYPE_CHECKING:
    from orchestrator.cluster import Cluster
    from orchestrator.nodes import NodeInfo
    from tasks.probe import NodeProbe

MIN_CAPABILITY = 70
"""Triton, which Inductor compiles to, needs compute capability 7.0 (Volta): https://github.com/triton-lang/triton#compatibility"""

SLOTS_PER_WAITING = 16
"""For each so many attempts that can run at once one more is handed to Ray, so that a free slot does not wait for the driver. No more, for
what waits there has lost its place: Ray starts requests by turns of their shapes, and not in the order in which they came."""


ROUNDING = 1e-6
"""Added before a quotient is rounded down: 1 / 0.1 must be 10."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """How many tasks can run at once, and how many the driver keeps in flight."""

    slots: int
    max_in_flight: int


def survey(cluster: Cluster) -> tuple[tuple[NodeInfo, ...], dict[str, NodeProbe | str]]:
    """The nodes that are there, with their answers. One that died while it was asked does not refuse a plan: the others do its work."""
    while True:
        probes = cluster.probe()
        alive = cluster.nodes()
        asked = tuple(node for node in alive if node.name in probes)
        if asked or not alive:  # else every node has been replaced meanwhile
            return asked, probes


def resolve_device(wanted: str, nodes: Sequence[NodeInfo]) -> str:
    """``auto`` is ``cuda`` where the cluster has a GPU, else ``cpu``."""
    if wanted != "auto":
        return wanted
    return "cuda" if any(node.num_gpus > 0 for node in nodes) else "cpu"


def machine(node: NodeInfo, found: NodeProbe | str | None) -> Machine:
    """A node as ``sharing`` sees it."""
    sizes = [gpu.memory_mib for gpu in found.gpus] if found and not isinstance(found, str) else []
    return Machine(node.num_cpus, int(node.num_gpus), node.memory_mib, min(sizes, default=None))


def check(
    tasks: Sequence[TaskSpec],
    nodes: Sequence[NodeInfo],
    probes: Mapping[str, NodeProbe | str],
    code_version: str,
    *,
    mix_accelerators: bool = False,
) -> None:
    """Refuse a plan that this cluster cannot run as a whole, or whose numbers would not belong together.

    Nodes that no task fits on need have nothing but this project's code. ``mix_accelerators``: several GPU models are wanted.

    Raises:
        PreflightError: with every reason found, one a line.
    """
    problems: list[str] = []
    if not nodes:
        problems.append("the cluster has no live node")
    requests: dict[ResourceSpec, list[TaskSpec]] = {}
    for task in tasks:
        requests.setdefault(task.resources, []).append(task)
    for resources, askers in requests.items():
        problems += _unschedulable(resources, askers, nodes)
    usable = suitable(requests, nodes)
    needs_cuda = any(task.resources.device == "cuda" for task in tasks)
    real = any(task.model.suite != "toy" for task in tasks)
    for node in nodes:
        found = probes.get(node.name, "was not asked")
        if node in usable or not usable:  # where nothing fits anywhere, every reason helps
            problems += node_problems(node, found, needs_cuda=needs_cuda, real=real, code_version=code_version)
        elif not isinstance(found, str):
            problems += code_problems(node, found, code_version)
    answered = [(node, said) for node in usable if (said := probes.get(node.name)) and not isinstance(said, str)]
    if needs_cuda and not mix_accelerators:
        problems += mixed_gpus(answered)
    if real:
        problems += version_skew(answered, needs_cuda=needs_cuda, mix_accelerators=mix_accelerators)
    if problems:
        raise PreflightError("the cluster cannot run this plan:\n" + "\n".join(f"  - {problem}" for problem in problems))


def capacity(tasks: Sequence[TaskSpec], nodes: Sequence[NodeInfo], max_in_flight: int | None) -> Capacity:
    """Slots for the most modest request of the plan, and the bound on attempts in flight."""
    slots = max((sum(fits(task.resources, node) for node in nodes) for task in _distinct(tasks)), default=1)
    slots = max(1, slots)
    return Capacity(slots, max_in_flight or slots + math.ceil(slots / SLOTS_PER_WAITING))


def suitable(requests: Iterable[ResourceSpec], nodes: Sequence[NodeInfo]) -> list[NodeInfo]:
    """The nodes on which at least one of ``requests`` fits."""
    wanted = list(requests)
    return [node for node in nodes if any(fits(resources, node) for resources in wanted)]


def devices(tasks: Sequence[TaskSpec], nodes: Sequence[NodeInfo]) -> int:
    """How many GPUs the tasks can run on; on the CPU a node is a device."""
    requests = {task.resources for task in tasks}
    cuda = any(resources.device == "cuda" for resources in requests)
    return sum(int(node.num_gpus) if cuda else 1 for node in suitable(requests, nodes))


def _distinct(tasks: Sequence[TaskSpec]) -> list[TaskSpec]:
    return list({task.resources: task for task in tasks}.values())


def fits(resources: ResourceSpec, node: NodeInfo) -> int:
    """How many such tasks fit on an empty node."""
    if resources.accelerator and resources.accelerator not in node.accelerators:
        return 0
    if any(node.labels.get(key) != value for key, value in resources.labels):
        return 0
    bounds = [node.num_cpus / resources.num_cpus + ROUNDING] if resources.num_cpus else []
    if resources.num_gpus:
        share = resources.num_gpus  # one task is never spread over parts of several GPUs
        bounds.append(node.num_gpus / share if share >= 1 else node.num_gpus * int(1 / share + ROUNDING))
    if resources.memory_mib:
        bounds.append(node.memory_mib / resources.memory_mib)
    return int(min(bounds, default=1))


def _unschedulable(resources: ResourceSpec, askers: Sequence[TaskSpec], nodes: Sequence[NodeInfo]) -> list[str]:
    if not nodes or any(fits(resources, node) for node in nodes):
        return []
    largest = {
        "CPUs": (resources.num_cpus, max(node.num_cpus for node in nodes)),
        "GPUs": (resources.num_gpus, max(node.num_gpus for node in nodes)),
        "MiB of memory": (float(resources.memory_mib or 0), max(node.memory_mib for node in nodes)),
    }
    lacks = [f"{want:g} {what} where the largest node has {have:g}" for what, (want, have) in largest.items() if want > have]
    if resources.accelerator and not any(resources.accelerator in node.accelerators for node in nodes):
        there = ", ".join(sorted({kind for node in nodes for kind in node.accelerators})) or "none"
        lacks.append(f"an accelerator of type {resources.accelerator}, and the cluster has {there}")
    for key, value in resources.labels:
        if not any(node.labels.get(key) == value for node in nodes):
            there = ", ".join(sorted({node.labels[key] for node in nodes if key in node.labels})) or "none"
            lacks.append(f"the label {key}: {value}, and the cluster has {there}")
    wish = "; ".join(lacks) or "a mix of resources that no single node has"
    return [f"{len(askers)} task(s), {askers[0].task_id} for one, ask for {wish} (execution: in the manifest)"]


def node_problems(node: NodeInfo, found: NodeProbe | str, *, needs_cuda: bool, real: bool, code_version: str) -> list[str]:
    """Why ``node`` cannot do its part. ``real``: models of libraries are to run there, not only toys."""
    if isinstance(found, str):
        return [f"node {node.name} cannot run this project's code: {found}"]
    problems = code_problems(node, found, code_version)
    if real and found.versions.get("torch") is None:
        problems.append(f"node {node.name} has no torch: pip install 'compile-sweep[models]' there")
    elif real and needs_cuda and node.num_gpus > 0:
        problems += _cuda_problems(node, found)
    elif real and not needs_cuda and found.compiler is None:
        problems.append(f"node {node.name} has no C++ compiler, which Inductor needs for the CPU: install g++ there, or set CXX")
    return problems


def code_problems(node: NodeInfo, found: NodeProbe, code_version: str) -> list[str]:
    """Whether ``node`` runs another version of this project than the driver."""
    if found.code_version == code_version:
        return []
    versions = f"{found.code_version}, the driver has {code_version}"
    return [f"node {node.name} has another version of this project's code ({versions}): install the same"]


def _cuda_problems(node: NodeInfo, found: NodeProbe) -> list[str]:
    if found.torch_cuda is None:
        build = f"torch {found.versions['torch']}, a build without CUDA"
        return [f"node {node.name} has {build}, and the manifest wants CUDA: install a CUDA build, or set execution.device: cpu"]
    return [
        f"node {node.name}: Inductor does not support {gpu.name} (compute capability {gpu.capability // 10}.{gpu.capability % 10}; "
        f"it needs {MIN_CAPABILITY // 10}.{MIN_CAPABILITY % 10} or later)"
        for gpu in found.gpus
        if gpu.capability < MIN_CAPABILITY
    ]

"""Whether nodes are alike enough for one run: rows of several GPU models, or of several versions of a library, are no one mean. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestrator.nodes import NodeInfo
    from tasks.probe import NodeProbe

Asked = tuple["NodeInfo", "NodeProbe"]
"""A node with what it said of itself."""


def mixed_gpus(nodes: Sequence[Asked]) -> list[str]:
    """The complaint about several GPU models, if there are any."""
    models = _by_value((node.name, gpu_models(node, probe)) for node, probe in nodes)
    if len(models) <= 1:
        return []
    kinds = sorted({kind for node, _ in nodes for kind in node.accelerators})
    choice = f"execution.accelerator (here: {', '.join(kinds)})" if kinds else "execution.accelerator"
    what = f"tasks could run on {len(models)} GPU models, and their speedups are no one mean: {_listed(models)}"
    cure = f"Choose one with {choice} or execution.labels, or set execution.mix_accelerators: true for a report with separate tables"
    return [f"{what}. {cure}"]


def version_skew(nodes: Sequence[Asked], *, needs_cuda: bool, mix_accelerators: bool) -> list[str]:
    """What differs between the nodes' installations. Where GPU models are mixed on purpose, only nodes of one model are compared."""
    groups: dict[tuple[str, ...], list[Asked]] = {}
    for node, probe in nodes:
        groups.setdefault(tuple(gpu_models(node, probe)) if mix_accelerators else (), []).append((node, probe))
    found = []
    for members in groups.values():
        facts = {node.name: _facts(probe, needs_cuda) for node, probe in members}
        for what in sorted({what for known in facts.values() for what in known}):
            versions = _by_value((name, [known[what]]) for name, known in facts.items() if what in known)
            if len(versions) > 1:
                found.append(f"{what} is not the same on all nodes: {_listed(versions)}. Install the same everywhere")
    return found


def gpu_models(node: NodeInfo, probe: NodeProbe) -> list[str]:
    """The GPU models of a node; Ray's word for them where the driver does not say."""
    return sorted({gpu.name for gpu in probe.gpus} or set(node.accelerators if node.num_gpus else ()))


def _facts(probe: NodeProbe, needs_cuda: bool) -> dict[str, str]:
    facts = {"python": probe.python} | {name: version or "not installed" for name, version in probe.versions.items()}
    if needs_cuda:
        facts["the CUDA version of torch"] = probe.torch_cuda or "none"
        facts |= {"the GPU driver": probe.driver} if probe.driver else {}  # unknown where NVML is not installed
    return facts


def _by_value(values: Iterable[tuple[str, Iterable[str]]]) -> dict[str, list[str]]:
    """Value -> the names of the nodes that have it."""
    found: dict[str, list[str]] = {}
    for name, of_node in values:
        for value in of_node:
            found.setdefault(value, []).append(name)
    return found


def _listed(values: dict[str, list[str]]) -> str:
    return "; ".join(f"{value} on {', '.join(sorted(names))}" for value, names in sorted(values.items()))

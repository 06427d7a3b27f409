"""What a machine or a cluster has and lacks, found by looking and by running one toy task per node."""

from __future__ import annotations

import time
import uuid
from contextlib import closing
from dataclasses import dataclass

from orchestrator.cluster import Cluster, RayCluster
from orchestrator.errors import SweepError
from orchestrator.events import Ended, Lost
from orchestrator.nodes import NodeInfo
from orchestrator.preflight import node_problems
from orchestrator.store import Store
from tasks.probe import NodeProbe, code_version
from tasks.spec import Attempt, DeadlineSpec, ModelSpec, Outcome, PrecisionSpec, ResourceSpec, Status, TaskSpec

TOY_LIMIT_S = 120.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One node, or the store: facts to read, problems to mend."""

    what: str
    facts: dict[str, str]
    problems: tuple[str, ...]


def examine(address: str | None, results: str | None) -> list[Finding]:
    """Look at every node of the cluster, or of a local Ray started for the purpose, and at the store if one is named."""
    with closing(RayCluster(address)) as cluster:
        nodes = cluster.nodes()
        probes = cluster.probe()
        findings = [_node(node, probes[node.name], _toy(cluster, node, nodes)) for node in nodes]
    return findings + ([_store(results)] if results else [])


def text(findings: list[Finding]) -> str:
    """For people."""
    lines = []
    for finding in findings:
        lines.append(finding.what)
        lines += [f"  {name:14s} {value}" for name, value in finding.facts.items()]
        lines += [f"  PROBLEM        {problem}" for problem in finding.problems] or ["  all well"]
    return "\n".join(lines) + "\n"


def _node(node: NodeInfo, found: NodeProbe | str, toy_problem: str | None) -> Finding:
    cuda = node.num_gpus > 0
    problems = node_problems(node, found, needs_cuda=cuda, real=True, code_version=code_version())
    facts = {"resources": f"{node.num_cpus:g} CPUs, {node.num_gpus:g} GPUs, {node.memory_mib / 1024:.0f} GiB"}
    if isinstance(found, NodeProbe):
        facts["python"] = found.python
        facts |= {name: version or "not installed" for name, version in found.versions.items()}
        facts["torch for CUDA"] = found.torch_cuda or "no"
        facts["C++ compiler"] = found.compiler or "none"
        facts |= {f"GPU {index}": f"{gpu.name}, {gpu.memory_mib / 1024:.0f} GiB, {gpu.uuid}" for index, gpu in enumerate(found.gpus)}
    facts["toy task"] = toy_problem or "ran"
    return Finding(f"node {node.name}", facts, (*problems, *([f"the toy task: {toy_problem}"] if toy_problem else [])))


def _toy(cluster: Cluster, node: NodeInfo, nodes: tuple[NodeInfo, ...]) -> str | None:
    """Why the toy task did not pass on ``node``; None if it did."""
    toy = TaskSpec(
        task_id=f"toy/pass/float32/training/{node.name}",
        model=ModelSpec("toy", "pass"),
        mode="training",
        backend="inductor",
        precision=PrecisionSpec("float32"),
        deadlines=DeadlineSpec(task_s=TOY_LIMIT_S / 2),
        resources=ResourceSpec("cuda", 1.0, 1.0) if node.num_gpus >= 1 else ResourceSpec("cpu", 1.0),
    )
    others = frozenset(other.name for other in nodes if other is not node)
    cluster.launch(toy, Attempt(f"doctor-{uuid.uuid4().hex[:8]}", 1), others, alone=True)
    give_up = time.monotonic() + TOY_LIMIT_S
    while time.monotonic() < give_up:
        for event in cluster.poll(0.2):
            if isinstance(event, Lost):
                return event.error
            if isinstance(event, Ended):
                return _complaint(event.outcome)
    cluster.cancel(toy.task_id, 1)
    return f"it did not end within {TOY_LIMIT_S:.0f} s"


def _complaint(outcome: Outcome) -> str | None:
    return None if outcome.status is Status.PASS else f"{outcome.status.value}: {outcome.error}"


def _store(results: str) -> Finding:
    try:
        store = Store(results)
        store.check_writable()
        runs = len(store.runs())
    except SweepError as error:
        return Finding(f"store {results}", {}, (str(error),))
    return Finding(f"store {results}", {"runs": str(runs)}, ())

"""What a machine or a cluster has and lacks, found by looking and by running a toy task on every GPU and on every node without one."""

from __future__ import annotations

import time
import uuid
from contextlib import closing
from dataclasses import dataclass, field

from orchestrator.cluster import NODE_ID_LABEL, Cluster, RayCluster
from orchestrator.errors import SweepError
from orchestrator.events import Ended, Lost, Started
from orchestrator.likeness import gpu_models, version_skew
from orchestrator.nodes import NodeInfo
from orchestrator.preflight import node_problems, survey
from orchestrator.store import Store
from tasks.probe import NodeProbe, code_version
from tasks.spec import Attempt, DeadlineSpec, ModelSpec, Outcome, PrecisionSpec, ResourceSpec, Status, TaskSpec

TOY_LIMIT_S = 120.0
HOLD_S = 6.0
"""How long a toy keeps its GPU where the node has several, so that the others are placed beside it and not after it."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One node, or the store: facts to read, problems to mend."""

    what: str
    facts: dict[str, str]
    problems: tuple[str, ...]


def examine(address: str | None, results: str | None) -> list[Finding]:
    """Look at every node of the cluster, or of a local Ray started for the purpose, and at the store if one is named."""
    with closing(RayCluster(address)) as cluster:
        nodes, probes = survey(cluster)
        trials = _try_out(cluster, nodes)
        findings = [_node(node, probes[node.name], trials[node.name]) for node in nodes]
    if len(nodes) > 1:
        findings.append(_together([(node, found) for node in nodes if not isinstance(found := probes[node.name], str)]))
    return findings + ([_store(results)] if results else [])


def text(findings: list[Finding]) -> str:
    """For people."""
    lines = []
    for finding in findings:
        lines.append(finding.what)
        lines += [f"  {name:14s} {value}" for name, value in finding.facts.items()]
        lines += [f"  PROBLEM        {problem}" for problem in finding.problems] or ["  all well"]
    return "\n".join(lines) + "\n"


def _node(node: NodeInfo, found: NodeProbe | str, trial: _Trial) -> Finding:
    problems = node_problems(node, found, needs_cuda=node.num_gpus > 0, real=_takes_tasks(node), code_version=code_version())
    facts = {"resources": f"{node.num_cpus:g} CPUs, {node.num_gpus:g} GPUs, {node.memory_mib / 1024:.0f} GiB"}
    if isinstance(found, NodeProbe):
        facts["python"] = found.python
        facts |= {name: version or "not installed" for name, version in found.versions.items()}
        facts["torch for CUDA"] = found.torch_cuda or "no"
        facts["C++ compiler"] = found.compiler or "none"
        facts |= {f"GPU {index}": f"{gpu.name}, {gpu.memory_mib / 1024:.0f} GiB, {gpu.uuid}" for index, gpu in enumerate(found.gpus)}
    facts["toy tasks"] = trial.words
    return Finding(f"node {node.name}", facts, (*problems, *trial.problems))


def _together(nodes: list[tuple[NodeInfo, NodeProbe]]) -> Finding:
    """What no node can say alone. Several GPU models are no problem as long as a manifest chooses one."""
    used = [(node, found) for node, found in nodes if _takes_tasks(node)]
    models = sorted({model for node, found in used for model in gpu_models(node, found)})
    skew = version_skew(used, needs_cuda=bool(models), mix_accelerators=True)
    return Finding("all nodes", {"nodes": str(len(nodes)), "GPU models": ", ".join(models) or "none"}, tuple(skew))


def _takes_tasks(node: NodeInfo) -> bool:
    """A head may have neither cores nor GPUs to give."""
    return node.num_cpus > 0 or node.num_gpus > 0


@dataclass(slots=True)
class _Trial:
    """What came of the toy tasks of a node."""

    wanted: int
    ran: int = 0
    gpus: set[str] = field(default_factory=set)
    failures: list[str] = field(default_factory=list)

    @property
    def words(self) -> str:
        where = f" on GPU {', '.join(sorted(self.gpus))}" if self.gpus else ""
        return f"{self.ran} of {self.wanted} ran{where}"

    @property
    def problems(self) -> list[str]:
        found = [f"a toy task: {failure}" for failure in self.failures]
        missed = self.wanted - len(self.gpus)
        if self.gpus and missed and not found:
            found.append(f"toy tasks reached {len(self.gpus)} of {self.wanted} GPUs only: look again when the cluster is idle")
        return found


def _try_out(cluster: Cluster, nodes: tuple[NodeInfo, ...]) -> dict[str, _Trial]:
    """A toy task on each GPU, or on the node where it has none; all at once, so that each takes a GPU of its own."""
    attempt = Attempt(f"doctor-{uuid.uuid4().hex[:8]}", 1)
    trials = {node.name: _Trial(max(1, int(node.num_gpus))) for node in nodes}
    waiting: dict[str, _Trial] = {}
    for node in nodes:
        for number in range(trials[node.name].wanted):
            toy = _toy(node, number)
            cluster.launch(toy, attempt, frozenset(), alone=True)
            waiting[toy.task_id] = trials[node.name]
    give_up = time.monotonic() + TOY_LIMIT_S
    while waiting and time.monotonic() < give_up:
        for event in cluster.poll(0.2):
            match event:
                case Started():
                    waiting[event.task_id].gpus |= set(event.gpus)
                case Lost():
                    waiting.pop(event.task_id).failures.append(event.error)
                case Ended():
                    _note(waiting.pop(event.task_id), event.outcome)
    for task_id, trial in waiting.items():
        cluster.cancel(task_id, attempt.number)
        trial.failures.append(f"it did not end within {TOY_LIMIT_S:.0f} s")
    return trials


def _toy(node: NodeInfo, number: int) -> TaskSpec:
    gpus = int(node.num_gpus)
    several = gpus > 1
    return TaskSpec(
        task_id=f"toy/pass/float32/training/{node.name}-{number}",
        model=ModelSpec("toy", "slow_pass", options={"seconds": HOLD_S}) if several else ModelSpec("toy", "pass"),
        mode="training",
        backend="inductor",
        precision=PrecisionSpec("float32"),
        deadlines=DeadlineSpec(task_s=TOY_LIMIT_S / 2),
        resources=ResourceSpec(
            device="cuda" if gpus else "cpu",
            num_cpus=min(1.0, node.num_cpus / max(1, gpus)),
            num_gpus=1.0 if gpus else 0.0,
            labels=((NODE_ID_LABEL, node.node_id),),
        ),
    )


def _note(trial: _Trial, outcome: Outcome) -> None:
    if outcome.status is Status.PASS:
        trial.ran += 1
    else:
        trial.failures.append(f"{outcome.status.value}: {outcome.error}")


def _store(results: str) -> Finding:
    try:
        store = Store(results)
        store.check_writable()
        runs = len(store.runs())
    except SweepError as error:
        return Finding(f"store {results}", {}, (str(error),))
    return Finding(f"store {results}", {"runs": str(runs)}, ())

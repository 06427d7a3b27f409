"""What a run may take over from an earlier one: results that passed, of the same task to the digest, on nodes like those that are there.

A task that failed is run again: why it failed may lie in a deadline or in neighbours, which no digest holds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator import schema
from orchestrator.nodes import NodeInfo
from orchestrator.preflight import fits
from orchestrator.store import RunStore
from tasks.probe import NodeProbe
from tasks.spec import Status, TaskSpec

_COLUMNS = ("task_id", "status", "suite", "task_digest", "code_version", "device", *schema.VERSION_COLUMNS)


@dataclass(frozen=True, slots=True)
class Carriable:
    """The tasks to take over; and of those that passed but are to be measured again, how many for which reason."""

    task_ids: tuple[str, ...]
    refused: dict[str, int]


def passes(source: RunStore) -> dict[str, str]:
    """task_id -> digest of what passed there."""
    return {task_id: digest for task_id, (status, digest) in source.terminal().items() if status is Status.PASS}


def carriable(
    source: RunStore, tasks: Sequence[TaskSpec], nodes: Sequence[NodeInfo], probes: Mapping[str, NodeProbe | str], code_version: str
) -> Carriable:
    """Which of ``tasks`` to take over. Every node that could run a task has to be like the one that measured it."""
    rows = {row["task_id"]: row for row in source.rows(_COLUMNS).to_pylist() if row["status"] == Status.PASS}
    found, refused = [], Counter[str]()
    for task in tasks:
        row = rows.get(task.task_id)
        if row is None:
            continue
        there = [probes[node.name] for node in nodes if fits(task.resources, node)]
        if reason := _unlike(row, task, [probe for probe in there if isinstance(probe, NodeProbe)], code_version):
            refused[reason] += 1
        else:
            found.append(task.task_id)
    return Carriable(tuple(found), dict(refused))


def _unlike(row: Mapping[str, Any], task: TaskSpec, probes: Sequence[NodeProbe], code_version: str) -> str | None:
    """Why the row is not what the task would give here; None if it is."""
    if row["task_digest"] != task.digest:
        return "another digest"
    if row["code_version"] != code_version:
        return "another version of this project's code"
    if not probes:
        return "no node to compare with"
    if row["suite"] != "toy" and not (row["torch"] and row["device"]):
        return "an environment that is not known"
    for probe in probes:
        for name, value in _facts(probe).items():
            if name in row and row[name] and value and _public(row[name]) != _public(value):
                return f"{name} {row[name]}, here {value}"
        devices = {gpu.name for gpu in probe.gpus} if task.resources.device == "cuda" else {probe.processor}
        if row["device"] and devices != {row["device"]}:
            return f"device {row['device']}, here {' and '.join(sorted(devices)) or 'none'}"
    return None


def _facts(probe: NodeProbe) -> dict[str, str | None]:
    return probe.versions | {"python": probe.python, "cuda": probe.torch_cuda, "driver": probe.driver}


def _public(version: str) -> str:
    """Without what a build adds, which a package's metadata may leave out: torch's is in the version of CUDA."""
    return version.partition("+")[0]

"""The manifest of ``sweep compare --confirm``: exactly the unclear tasks, each measured in several fresh processes. Pure.

Run it in both environments and compare those two runs: decide on the new measurements alone, since tasks that were chosen because they
looked changed look more changed than they are.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

from orchestrator import source
from tasks.spec import DeadlineSpec, TaskSpec, encode

CONFIRMING_PROCESSES = 4
_LONGER = ("task_s",)
"""The deadline that all processes share; those of phases hold for each process."""


def confirmation(
    specs: Sequence[TaskSpec], name: str, processes: int = CONFIRMING_PROCESSES, sharing: int = 1
) -> dict[tuple[str, str], str]:
    """The text of one manifest per (mode, backend) among ``specs``: every measurement as it was, but in ``processes`` processes.

    ``sharing`` is how many tasks shared a device in the run that they are from.
    """
    groups: dict[tuple[str, str], list[TaskSpec]] = {}
    for spec in specs:
        groups.setdefault((spec.mode, spec.backend), []).append(spec)
    return {key: _manifest(members, name, processes, sharing) for key, members in groups.items()}


def sharing_of(specs: Iterable[TaskSpec]) -> int:
    """How many tasks of a whole plan shared a device: the smallest share of a GPU that one asked for tells."""
    shares = [spec.resources.num_gpus for spec in specs if spec.resources.num_gpus > 0]
    return max(1, int(1 / min(shares))) if shares else 1


def _manifest(specs: Sequence[TaskSpec], name: str, processes: int, sharing: int) -> str:
    first, dtypes = specs[0], sorted({spec.precision.dtype for spec in specs})
    common = _Common(specs, processes)
    backend = {field: value for field, value in encode(first.compile).items() if value is not None}
    autocast = {spec.precision.autocast_dtype for spec in specs} - {None}
    suites: dict[str, list[dict[str, Any]]] = {}
    for (suite, _), members in _by_model(specs).items():
        suites.setdefault(suite, []).append(_model(members, dtypes, common))
    data = {
        "schema_version": 1,
        "name": name,
        "description": f"{len(specs)} tasks that a comparison left unclear, {processes} fresh processes each",
        "seed": first.seed,
        "matrix": {"dtype": dtypes, "mode": [first.mode], "backend": [first.backend]},
        "backends": {first.backend: backend},
        "precision": {"tf32": first.precision.tf32} | ({"autocast_dtype": autocast.pop()} if len(autocast) == 1 else {}),
        "training": {"optimizer": common.optimizer},
        "measurement": common.measure,
        "accuracy": {field: value for field, value in encode(first.accuracy).items() if field != "tolerance"},
        "deadlines": common.deadlines,
        "execution": _execution(first, sharing),
        "suites": suites,
    }
    return source.dump(data)


class _Common:
    """The settings that most tasks share; a model names its own only where it differs."""

    def __init__(self, specs: Sequence[TaskSpec], processes: int) -> None:
        self._processes = processes
        self.optimizer: str = _most(spec.optimizer for spec in specs)
        self.measure = self.measure_of(_most(spec.measure for spec in specs))
        self.deadlines = self.deadlines_of(_most((spec.deadlines, spec.measure.processes) for spec in specs))
        self.num_cpus: float = specs[0].resources.num_cpus

    def measure_of(self, measure: Any) -> dict[str, Any]:
        return {**encode(measure), "processes": self._processes}

    def deadlines_of(self, deadlines_and_processes: tuple[DeadlineSpec, int]) -> dict[str, float]:
        deadlines, processes = deadlines_and_processes
        longer = max(self._processes / processes, 1.0)
        return {field: value * (longer if field in _LONGER else 1.0) for field, value in encode(deadlines).items()}


def _model(members: Sequence[TaskSpec], dtypes: Sequence[str], common: _Common) -> dict[str, Any]:
    first = members[0]
    own = [spec.precision.dtype for spec in members]
    entry: dict[str, Any] = {"name": first.model.name}
    entry |= {field: value for field, value in dataclasses.asdict(first.model).items() if field not in ("suite", "name") and value}
    differing: Iterable[tuple[str, Any, Any]] = (
        ("measurement", common.measure_of(first.measure), common.measure),
        ("deadlines", common.deadlines_of((first.deadlines, first.measure.processes)), common.deadlines),
        ("optimizer", first.optimizer, common.optimizer),
        ("num_cpus", first.resources.num_cpus, common.num_cpus),
    )
    entry |= {field: value for field, value, usual in differing if value != usual}
    if first.accuracy.tolerance is not None:
        entry |= {"tolerance": first.accuracy.tolerance, "tolerance_reason": "as in the run that is to be confirmed"}
    return entry | ({"dtypes": own} if set(own) != set(dtypes) else {})


def _execution(first: TaskSpec, sharing: int) -> dict[str, Any]:
    resources = first.resources
    wanted: Mapping[str, Any] = {
        "device": resources.device,
        "num_gpus": int(resources.num_gpus) if resources.num_gpus > 1 else None,
        "sharing": sharing if sharing > 1 else None,
        "num_cpus": resources.num_cpus,
        "accelerator": resources.accelerator,
        "labels": dict(resources.labels) or None,
        "memory_mib": resources.memory_mib,
        "threads": resources.threads,
        "compile_threads": resources.compile_threads,
        "cache": first.cache,
        "isolation": resources.isolation,
    }
    return {field: value for field, value in wanted.items() if value is not None}


def _by_model(specs: Sequence[TaskSpec]) -> dict[tuple[str, str], list[TaskSpec]]:
    models: dict[tuple[str, str], list[TaskSpec]] = {}
    for spec in specs:
        models.setdefault((spec.model.suite, spec.model.name), []).append(spec)
    return models


def _most(values: Iterable[Hashable]) -> Any:
    return Counter(values).most_common(1)[0][0]

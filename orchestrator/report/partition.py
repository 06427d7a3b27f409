"""A run's tasks in the parts that have means of their own: one for each mode and backend, and for each device where a run mixes them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from orchestrator.report.rows import Planned, Row, Run

MODES_FIRST = ("training", "inference")
NO_DEVICE = "no device known"
"""Where tasks are counted that ended before it was known on what."""


@dataclass(frozen=True, slots=True)
class Part:
    """Planned tasks and rows that belong together. ``device`` is None where the part holds whatever the run had."""

    mode: str
    backend: str
    planned: Sequence[Planned]
    rows: Sequence[Row]
    device: str | None = None


def parts_of(run: Run) -> list[Part]:
    """Every part of ``run``: training first, and of one mode and backend the device with the most rows first."""
    tasks: list[Planned | Row] = [*run.planned, *run.rows]
    names = dict.fromkeys((task.mode, task.backend) for task in tasks)
    order = sorted(names, key=lambda name: MODES_FIRST.index(name[0]) if name[0] in MODES_FIRST else len(MODES_FIRST))
    devices = _devices(run.rows) if run.by_device else {}
    several = len(set(devices.values())) > 1
    found: list[Part] = []
    for mode, backend in order:
        whole = Part(
            *(mode, backend),
            planned=[task for task in run.planned if (task.mode, task.backend) == (mode, backend)],
            rows=[row for row in run.rows if (row.mode, row.backend) == (mode, backend)],
        )
        found += _by_device(whole, devices) if several else [whole]
    return found


def _by_device(whole: Part, devices: Mapping[str, str]) -> Iterator[Part]:
    counts = Counter(devices[row.task_id] for row in whole.rows if row.task_id in devices)
    for device in sorted(counts, key=lambda device: (-counts[device], device)):
        yield _members(whole, device, {task_id for task_id, its in devices.items() if its == device})
    rest = ({task.task_id for task in whole.planned} | {row.task_id for row in whole.rows}) - set(devices)
    if rest:
        yield _members(whole, NO_DEVICE, rest)


def _members(whole: Part, device: str, task_ids: set[str]) -> Part:
    planned = [task for task in whole.planned if task.task_id in task_ids]
    return Part(whole.mode, whole.backend, planned, [row for row in whole.rows if row.task_id in task_ids], device)


def _devices(rows: Sequence[Row]) -> dict[str, str]:
    """task_id -> device. A task that failed before it knew has that of its node, if all others there had the same."""
    by_node: dict[str, set[str]] = {}
    for row in rows:
        if row.node and row.device:
            by_node.setdefault(row.node, set()).add(row.device)
    alike = {node: min(devices) for node, devices in by_node.items() if len(devices) == 1}
    known = {row.task_id: row.device or alike.get(row.node or "") for row in rows}
    return {task_id: device for task_id, device in known.items() if device}

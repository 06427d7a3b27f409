"""Which tasks of two runs can be compared, and what keeps each of the others out. Pure.

A task is matched when it passed in both runs, was defined alike but for how often it is measured, ran at one batch size, was measured anew
and has an interval on both sides.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.plan import identity
from orchestrator.report.rows import Row, Run
from orchestrator.statistics.intervals import standard_errors
from tasks.spec import TaskSpec

NOT_OF_THE_DEFINITION = ("protocol", "measure")
"""How long and in how many processes a task is measured decides how sure its speedup is, not what it is a speedup of."""

Difference = tuple[str, str, str]  # what, in base, in new


@dataclass(frozen=True, slots=True)
class Matched:
    """The tasks of both runs. ``pairs`` are those to compare, base's row first; everything else says why a task is none of them."""

    pairs: tuple[tuple[Row, Row], ...]
    definitions: tuple[Difference, ...]  # in what tasks of both are defined otherwise, and how many
    newly_failing: tuple[Row, ...]  # rows of the new run
    newly_passing: tuple[Row, ...]
    failing_in_both: tuple[str, ...]
    only_in_base: tuple[str, ...]
    only_in_new: tuple[str, ...]
    unlike: tuple[str, ...]  # passed in both, defined otherwise or at another batch size
    carried: tuple[str, ...]  # the new run took the base's own row
    without_interval: tuple[str, ...]


def match(base: Run, new: Run) -> Matched:
    """Sort the tasks of both runs."""
    before, after = ({row.task_id: row for row in run.rows} for run in (base, new))
    both = [name for name in before if name in after]
    passed = [name for name in both if before[name].passed and after[name].passed]
    carried = {name for name in passed if after[name].carried_from and after[name].carried_from in (base.run_id, before[name].carried_from)}
    differing = _definitions(base, new, both)
    unlike = {name for name in passed if name in differing or before[name].batch_size != after[name].batch_size} - carried
    left = [name for name in passed if name not in carried | unlike]
    measured = {name for name in left if all(_has_interval(rows[name]) for rows in (before, after))}
    return Matched(
        pairs=tuple((before[name], after[name]) for name in left if name in measured),
        definitions=_summary(differing),
        newly_failing=tuple(after[name] for name in both if before[name].passed and not after[name].passed),
        newly_passing=tuple(after[name] for name in both if after[name].passed and not before[name].passed),
        failing_in_both=tuple(name for name in both if not before[name].passed and not after[name].passed),
        only_in_base=tuple(name for name in before if name not in after),
        only_in_new=tuple(name for name in after if name not in before),
        unlike=tuple(sorted(unlike)),
        carried=tuple(sorted(carried)),
        without_interval=tuple(sorted(set(left) - measured)),
    )


def definition_differences(base: TaskSpec, new: TaskSpec) -> tuple[Difference, ...]:
    """In what two definitions of one task differ, beyond how it is measured."""
    before, after = (dict(_flat("", {k: v for k, v in identity(spec).items() if k not in NOT_OF_THE_DEFINITION})) for spec in (base, new))
    names = dict.fromkeys([*before, *after])
    found = tuple((name, before.get(name, "none"), after.get(name, "none")) for name in names if before.get(name) != after.get(name))
    if not found and base.measure == new.measure and base.digest != new.digest:
        return (("protocol, by the digest", base.digest, new.digest),)
    return found


def _definitions(base: Run, new: Run, names: Sequence[str]) -> dict[str, tuple[Difference, ...]]:
    """The differences of each task that has any."""
    before, after = ({task.task_id: task.spec for task in run.planned if task.spec} for run in (base, new))
    known = (name for name in names if name in before and name in after)
    found = {name: definition_differences(before[name], after[name]) for name in known}
    return {name: differences for name, differences in found.items() if differences}


def _summary(differing: Mapping[str, Sequence[Difference]]) -> tuple[Difference, ...]:
    """One line per setting, with the values that it has in any task and with the number of tasks."""
    tasks: Counter[str] = Counter()
    sides: dict[str, tuple[set[str], set[str]]] = defaultdict(lambda: (set(), set()))
    for differences in differing.values():
        for name, *values in differences:
            tasks[name] += 1
            for side, value in zip(sides[name], values, strict=True):
                side.add(value)
    return tuple(
        (f"{name} ({tasks[name]} task{'s' if tasks[name] > 1 else ''})", _listed(before), _listed(after))
        for name, (before, after) in sides.items()
    )


def _listed(values: set[str], most: int = 3) -> str:
    return " + ".join(sorted(values)[:most]) + (" + ..." if len(values) > most else "")


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _flat(f"{prefix}.{name}" if prefix else name, inner)
    else:
        yield prefix, "none" if value is None else str(value)


def _has_interval(row: Row) -> bool:
    return math.isfinite(standard_errors([row.speedup_low], [row.speedup_high])[0])

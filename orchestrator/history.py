"""Many runs over time: how the score, the suites and each task went, and where a level changed. Pure.

A mean over runs in which other models passed would move with the models. The series of a group is therefore that of its tasks'
deviations from their own medians: each run's value is the group's level if every task were there. GPU models are never mixed.
"""

from __future__ import annotations

import fnmatch
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np

from orchestrator.errors import UsageError
from orchestrator.report.observations import Observations, RunInfo, Task
from orchestrator.statistics.changepoints import ChangePoint, change_points
from orchestrator.statistics.means import FloatArray, normalised

Key = tuple[str, str, str]  # device, mode, backend


class Kind(StrEnum):
    """What a series is about."""

    SCORE = "score"
    DTYPE = "dtype"
    SUITE = "suite"
    TASK = "task"


@dataclass(frozen=True, slots=True)
class Change:
    """A new level from ``run_id`` on, with what else is different between that run and the one before it."""

    run_id: str
    index: int  # in the runs of the series
    ratio: float
    low: float
    high: float
    environment: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True, slots=True)
class Series:
    """Speedups over the runs of one device; NaN where there is none."""

    kind: Kind
    name: str
    device: str
    runs: tuple[RunInfo, ...]
    values: FloatArray
    tasks: int
    changes: tuple[Change, ...]

    @property
    def latest(self) -> float | None:
        """The newest value there is."""
        known = self.values[np.isfinite(self.values)]
        return float(known[-1]) if known.size else None


@dataclass(frozen=True, slots=True)
class History:
    """All series, groups before tasks, and the runs that were left out because they mixed devices."""

    runs: tuple[RunInfo, ...]
    series: tuple[Series, ...]
    mixed: tuple[str, ...]
    remarks: tuple[str, ...] = ()  # what could not be read, and runs that mix library versions

    def of(self, *kinds: Kind) -> tuple[Series, ...]:
        """The series of those kinds."""
        return tuple(series for series in self.series if series.kind in kinds)


def history(seen: Observations, model: str | None = None) -> History:
    """Every series of ``seen``; with ``model`` only the tasks whose model, or SUITE/MODEL, it names or matches with * and ?.

    Raises:
        UsageError: there is no run, or no such model.
    """
    if not seen.runs:
        raise UsageError("there are no runs to look back on")
    chosen = [place for place, task in enumerate(seen.tasks) if model is None or _names(model, task)]
    if model is not None and not chosen:
        known = sorted({f"{task.suite}/{task.model}" for task in seen.tasks})
        raise UsageError(f"no run has a task of model {model!r} that passed; there are: {', '.join(known[:10])}")
    series: list[Series] = []
    devices = dict.fromkeys(run.device for run in seen.runs if " + " not in run.device)
    for device in devices:
        at = [place for place, run in enumerate(seen.runs) if run.device == device]
        runs = tuple(seen.runs[place] for place in at)
        logs = seen.logs[np.ix_(chosen, at)]
        tasks = [seen.tasks[place] for place in chosen]
        present = np.flatnonzero(np.isfinite(logs).any(axis=1))
        found = _of_device(device, runs, [tasks[place] for place in present], logs[present], seen.weights, model)
        series += [_with_environments(each, seen.facts) for each in found]
    order = list(Kind)
    ordered = sorted(series, key=lambda each: (order.index(each.kind), each.name, each.device))
    versions = (f"{run.run_id} mixes versions, and its values are means over them: {run.mixed}" for run in seen.runs if run.mixed)
    mixed = tuple(run.run_id for run in seen.runs if run.device not in devices)
    return History(seen.runs, tuple(ordered), mixed, (*seen.remarks, *versions))


def _names(model: str, task: Task) -> bool:
    return any(fnmatch.fnmatchcase(name, model) for name in (task.model, f"{task.suite}/{task.model}", task.task_id))


def _of_device(
    device: str, runs: tuple[RunInfo, ...], tasks: Sequence[Task], logs: FloatArray, weights: Mapping[str, float], model: str | None
) -> list[Series]:
    named = [(Kind.TASK, _task_name(task, tasks), logs[place], 1) for place, task in enumerate(tasks)]
    if model is None:
        named += _groups(tasks, logs, weights)
    found = change_points(np.stack([values for _, _, values, _ in named])) if named else []
    return [
        Series(kind, name, device, runs, np.exp(values), count, tuple(_change(runs, point) for point in points))
        for (kind, name, values, count), points in zip(named, found, strict=True)
    ]


def _task_name(task: Task, tasks: Sequence[Task]) -> str:
    several = sum(other.task_id == task.task_id for other in tasks) > 1
    return f"{task.task_id} at batch size {task.batch_size}" if several else task.task_id


def _groups(tasks: Sequence[Task], logs: FloatArray, weights: Mapping[str, float]) -> list[tuple[Kind, str, FloatArray, int]]:
    """The levels of each dtype, of each suite in each dtype, and the score of both."""
    members: dict[tuple[str, str, str, str | None], list[int]] = defaultdict(list)
    for place, task in enumerate(tasks):
        for suite in (None, task.suite):
            members[task.mode, task.backend, task.dtype, suite].append(place)
    levels = {key: _level(logs[places]) for key, places in members.items()}
    made = []
    for (mode, backend, dtype, suite), places in members.items():
        kind, name = (Kind.DTYPE, dtype) if suite is None else (Kind.SUITE, f"{suite} {dtype}")
        made.append((kind, f"{name}, {mode}, {backend}", levels[mode, backend, dtype, suite], len(places)))
    for mode, backend in dict.fromkeys((task.mode, task.backend) for task in tasks):
        keys = {dtype: (mode, backend, dtype, None) for dtype, weight in weights.items() if weight}
        if keys and all(key in levels for key in keys.values()):
            parts = [share * np.exp(levels[keys[dtype]]) for dtype, share in normalised(weights).items()]
            count = sum(task.mode == mode and task.backend == backend for task in tasks)
            made.append((Kind.SCORE, f"score, {mode}, {backend}", np.log(np.sum(parts, axis=0)), count))
    return made


def _level(logs: FloatArray) -> FloatArray:
    """Per run, the mean of the tasks' medians plus the mean deviation of the tasks that passed from theirs; NaN where none did."""
    medians = np.nanmedian(logs, axis=1, keepdims=True)
    deviations = logs - medians
    counts = np.isfinite(deviations).sum(axis=0)
    sums = np.nansum(deviations, axis=0)
    return np.where(counts > 0, medians.mean() + sums / np.maximum(counts, 1), np.nan)


def _change(runs: tuple[RunInfo, ...], point: ChangePoint) -> Change:
    return Change(runs[point.index].run_id, point.index, math.exp(point.change), math.exp(point.low), math.exp(point.high), ())


def _with_environments(series: Series, facts: Callable[[str], Mapping[str, str]]) -> Series:
    """``series`` with what else was different at each of its changes."""
    known = np.flatnonzero(np.isfinite(series.values))
    changes = []
    for change in series.changes:
        before = int(known[np.searchsorted(known, change.index) - 1])
        old, new = facts(series.runs[before].run_id), facts(change.run_id)
        names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
        changes.append(replace(change, environment=tuple((name, old.get(name, "none"), new.get(name, "none")) for name in names)))
    return replace(series, changes=tuple(changes))

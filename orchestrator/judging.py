"""Verdicts on matched tasks. How much a fresh process changes is found for each class of model by itself. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from orchestrator.noise import CLASSES, class_of
from orchestrator.report.rows import Row, Run
from orchestrator.statistics.differences import Judgement, judge, margin, pooled_freedom
from orchestrator.statistics.intervals import standard_errors
from orchestrator.statistics.means import FloatArray
from orchestrator.statistics.processes import Scale, process_scale, shared


@dataclass(frozen=True, slots=True)
class Noise:
    """How much the matched tasks of one class vary between processes, and within what margin of ``ln(speedup)`` two are the same."""

    kind: str
    tasks: int
    scale: Scale
    margin: float


def judged(
    base: Run, new: Run, pairs: Sequence[tuple[Row, Row]], effect: float, process_sd: float | None, rate: float
) -> tuple[list[Judgement], tuple[Noise, ...]]:
    """A judgement per pair, and the noise of each class of model."""
    changes = np.array([math.log((after.speedup or math.nan) / (before.speedup or math.nan)) for before, after in pairs])
    sides = [_own(run, [pair[side] for pair in pairs]) for side, run in enumerate((base, new))]
    own = np.sqrt(sum((errors**2 for errors, _ in sides), np.zeros(len(pairs))))
    single = np.sum([np.isinf(freedom) for _, freedom in sides], axis=0)
    kinds = _classes(new, pairs)
    process, freedom, tail, same = (np.zeros(len(pairs)) for _ in range(4))
    noise = []
    for kind in [kind for kind in CLASSES if kind in kinds]:
        members = kinds == kind
        scale = process_scale(changes[members], own[members], single[members]) if process_sd is None else Scale(process_sd, "given")
        process[members], freedom[members] = scale.process_sd, scale.freedom
        tail[members] = np.where(changes[members] < 0, scale.slower_tail, scale.faster_tail)
        within = margin(np.sqrt(own[members] ** 2 + single[members] * scale.process_sd**2), effect)
        same[members] = within
        noise.append(Noise(kind, int(members.sum()), scale, within))
    parts = [(errors**2, freedom_of) for errors, freedom_of in sides]
    between = single * process**2
    variances = own**2 + between
    freedom = pooled_freedom([*parts, (between, freedom)])
    tail = np.minimum(tail, freedom)  # the whole change, own error included, was seen to have that tail
    for kind in set(kinds):
        repeated = (kinds == kind) & (single == 0)
        variances[repeated], freedom[repeated] = shared(variances[repeated], freedom[repeated])
        tail[repeated] = freedom[repeated]
    errors = np.maximum(np.sqrt(variances), np.finfo(np.float64).tiny)  # equal rows of a toy have no error at all
    return judge(changes, errors, effect=effect, freedom=freedom, tail=tail, same=same, rate=rate), tuple(noise)


def _own(run: Run, rows: Sequence[Row]) -> tuple[FloatArray, FloatArray]:
    """Standard errors from the rows' own intervals, with their degrees of freedom."""
    freedom = np.array([run.freedom.get(row.task_id, math.inf) for row in rows], dtype=np.float64)
    return standard_errors([row.speedup_low for row in rows], [row.speedup_high for row in rows], freedom), freedom


def _classes(run: Run, pairs: Sequence[tuple[Row, Row]]) -> np.ndarray[Any, np.dtype[np.str_]]:
    """The class of each pair; the noisier one where its sides are in two."""
    devices = {task.task_id: task.device for task in run.planned}
    found = ([class_of(devices.get(row.task_id, "cuda"), row.launch_bound) for row in pair] for pair in pairs)
    return np.array([min(kinds, key=CLASSES.index) for kinds in found], dtype=np.str_)

"""Where the level of a series changed: optimal partitioning with a penalty per change (Jackson et al. 2005; PELT finds the same optimum).

The partition that is found minimises the squared deviations from the levels of its segments, in units of the noise, plus a penalty for
each change. The noise is taken from the differences of neighbours, which a change of level hardly touches. Many series are treated at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special

from orchestrator.statistics.intervals import LEVEL, Interval
from orchestrator.statistics.means import FloatArray
from tasks.estimator import MAD_TO_SD

MIN_POINTS = 8
MIN_SEGMENT = 3
"""A single run that is off, or two, are no new level."""
PENALTY_PER_LOG = 4.0
SHORT_PENALTY = 150.0
"""The penalty is 4 ln n + 150 / n; the second part pays for a noise that is known from few points. Of simulated series of 10 to 1,000 equal
runs 2 % or fewer then show a change, while one of five noise units is found within a run of where it is."""
ROWS_AT_ONCE = 64  # their costs stay in the processor's cache
OUTLIER = 3.0
WINDOW = 2
"""A point further than 3 noise units from the median of its five nearest is drawn in to there (a Hampel filter)."""
LEAST_NOISE = 0.005


@dataclass(frozen=True, slots=True)
class ChangePoint:
    """The level of ``ln(speedup)`` changed at ``index``, the first point of the new level; ``change`` is new less old with its interval."""

    index: int
    change: float
    low: float
    high: float


def change_points(series: FloatArray) -> list[list[ChangePoint]]:
    """The change points of every row of ``series``, shape (series, times); NaN marks a time without a value.

    Rows with fewer than 8 values have none.
    """
    found: list[list[ChangePoint]] = [[] for _ in series]
    long = np.flatnonzero(np.isfinite(series).sum(axis=1) >= MIN_POINTS)
    if not long.size:
        return found
    # Values moved to the front: the search sees no gaps, and rows of equal length are searched together.
    for row, values in zip(long, _without_gaps(series[long]), strict=True):
        found[row] = values
    return found


def _without_gaps(series: FloatArray) -> list[list[ChangePoint]]:
    results: list[list[ChangePoint]] = [[] for _ in series]
    lengths = np.isfinite(series).sum(axis=1)
    for length in np.unique(lengths):
        rows = np.flatnonzero(lengths == length)
        places = np.stack([np.flatnonzero(np.isfinite(series[row])) for row in rows])
        values = np.take_along_axis(series[rows], places, axis=1)
        for row, at, own, starts in zip(rows, places, values, _partitions(values), strict=True):
            results[row] = _described(own, at, starts)
    return results


def noise(values: FloatArray) -> FloatArray:
    """Standard deviation of the noise of each row, from the differences of neighbours."""
    steps = np.diff(values, axis=1)
    spread = MAD_TO_SD * np.median(np.abs(steps - np.median(steps, axis=1, keepdims=True)), axis=1) / math.sqrt(2)
    return np.asarray(np.maximum(spread, LEAST_NOISE))


def _partitions(values: FloatArray) -> list[list[int]]:
    """For each row, where its segments but the first begin."""
    spread = noise(values)[:, None]
    scaled = _drawn_in(values, spread) / spread
    scaled -= scaled.mean(axis=1, keepdims=True)
    count = values.shape[1]
    penalty = PENALTY_PER_LOG * math.log(count) + SHORT_PENALTY / count
    chunks = (scaled[first : first + ROWS_AT_ONCE] for first in range(0, len(scaled), ROWS_AT_ONCE))
    return [_walk_back(row) for chunk in chunks for row in _origins(chunk, penalty)]


def _origins(scaled: FloatArray, penalty: float) -> npt.NDArray[np.int64]:
    """Entry [row, end]: where the last segment of the best partition of the first ``end`` values begins. Time O(rows * n^2)."""
    rows, count = scaled.shape
    sums = np.concatenate([np.zeros((rows, 1)), np.cumsum(scaled, axis=1)], axis=1)
    best = np.full((rows, count + 1), np.inf)
    best[:, 0] = -penalty
    origins = np.zeros((rows, count + 1), dtype=np.int64)
    inverse, buffer, every_row = 1 / np.arange(1, count + 1), np.empty((rows, count + 1)), np.arange(rows)
    for end in range(MIN_SEGMENT, count + 1):
        starts = end - MIN_SEGMENT + 1
        costs = buffer[:, :starts]
        # The squares of the points are the same in every partition: a segment costs what its level saves of them, -sum^2 / length.
        np.subtract(sums[:, end, None], sums[:, :starts], out=costs)
        np.multiply(costs, costs, out=costs)
        np.multiply(costs, inverse[end - 1 : MIN_SEGMENT - 2 : -1], out=costs)
        np.subtract(best[:, :starts], costs, out=costs)
        origins[:, end] = costs.argmin(axis=1)
        best[:, end] = costs[every_row, origins[:, end]] + penalty
    return origins


def _walk_back(origin: npt.NDArray[np.int64]) -> list[int]:
    end, starts = origin.size - 1, []
    while (start := int(origin[end])) > 0:
        starts.append(start)
        end = start
    return starts[::-1]


def _drawn_in(values: FloatArray, spread: FloatArray) -> FloatArray:
    padded = np.pad(values, ((0, 0), (WINDOW, WINDOW)), mode="reflect")
    middle = np.median(np.lib.stride_tricks.sliding_window_view(padded, 2 * WINDOW + 1, axis=1), axis=-1)
    return np.asarray(np.clip(values, middle - OUTLIER * spread, middle + OUTLIER * spread))


def _described(values: FloatArray, places: npt.NDArray[np.int64], starts: list[int]) -> list[ChangePoint]:
    """Each change with Welch's interval between the two segments that it divides."""
    borders = [0, *starts, values.size]
    described = []
    for before, start, after in zip(borders, borders[1:], borders[2:], strict=False):
        old, new = values[before:start], values[start:after]
        interval = _welch(old, new)
        described.append(ChangePoint(int(places[start]), float(new.mean() - old.mean()), interval.low, interval.high))
    return described


def _welch(old: FloatArray, new: FloatArray) -> Interval:
    parts = [max(float(side.var(ddof=1)), LEAST_NOISE**2) / side.size for side in (old, new)]
    freedom = sum(parts) ** 2 / sum(part**2 / (side.size - 1) for part, side in zip(parts, (old, new), strict=True))
    middle, half = float(new.mean() - old.mean()), float(special.stdtrit(freedom, 0.5 + LEVEL / 2)) * math.sqrt(sum(parts))
    return Interval(middle - half, middle + half)

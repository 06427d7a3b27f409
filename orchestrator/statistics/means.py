"""Geometric means of speedups, the weighted score and the variants of it that are in use elsewhere.

Everything here is a plain function of its arguments. A speedup that is not positive and finite is a ``ValueError``: such rows are
set aside, with a remark, before any mean is taken.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


def logs_of(speedups: Sequence[float] | FloatArray) -> FloatArray:
    """Natural logarithms of ``speedups``.

    Raises:
        ValueError: a speedup is zero, negative, infinite or not a number.
    """
    values = np.asarray(speedups, dtype=np.float64)
    if not np.all(np.isfinite(values) & (values > 0)):
        raise ValueError("a speedup must be positive and finite")
    return np.log(values)


def geomean(speedups: Sequence[float] | FloatArray) -> float:
    """``exp(mean(ln s))``; a ``ValueError`` for an empty sequence."""
    logs = logs_of(speedups)
    if not logs.size:
        raise ValueError("the geometric mean of nothing is not defined")
    return float(np.exp(logs.mean()))


def clipped(speedups: Sequence[float] | FloatArray) -> list[float]:
    """Slowdowns count as 1.0: "one can use eager instead". Upstream's summary of 2022."""
    return [max(float(speedup), 1.0) for speedup in speedups]


def with_failures_as_one(speedups: Sequence[float] | FloatArray, planned: int) -> list[float]:
    """``speedups`` of the tasks that passed, padded with 1.0 to ``planned`` tasks."""
    if planned < len(speedups):
        raise ValueError(f"{len(speedups)} speedups of {planned} planned tasks")
    return [*map(float, speedups), *([1.0] * (planned - len(speedups)))]


def suite_balanced(speedups_by_suite: Mapping[str, Sequence[float]]) -> float:
    """Geometric mean of the suites' geometric means: each suite counts the same, however many models it has."""
    return geomean([geomean(speedups) for speedups in speedups_by_suite.values() if len(speedups)])


def weighted_score(by_dtype: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """``sum(w * G)`` over the dtypes, weights scaled to sum to one: 0.75 * 1.51 + 0.25 * 1.21 = 1.435."""
    shares = normalised(weights)
    return math.fsum(share * by_dtype[dtype] for dtype, share in shares.items())


def weighted_score_in_logs(by_dtype: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """``prod(G ** w)``: the weights applied to logarithms; 1.51 and 1.21 give 1.429."""
    shares = normalised(weights)
    return math.exp(math.fsum(share * math.log(by_dtype[dtype]) for dtype, share in shares.items()))


def normalised(weights: Mapping[str, float]) -> dict[str, float]:
    """``weights`` scaled to sum to one, without those that are zero.

    Raises:
        ValueError: a weight is negative, or all are zero.
    """
    total = math.fsum(weights.values())
    if total <= 0 or any(weight < 0 for weight in weights.values()):
        raise ValueError(f"weights must be at least zero, and one of them above: {dict(weights)}")
    return {dtype: weight / total for dtype, weight in weights.items() if weight}


def quantiles(speedups: Sequence[float] | FloatArray, shares: Sequence[float] = (0.1, 0.5, 0.9)) -> list[float]:
    """Quantiles, interpolated on the log scale so that 2x and 0.5x are equally far from 1x."""
    return [float(value) for value in np.exp(np.quantile(logs_of(speedups), shares))]


def total_time_ratio(eager_ms: Sequence[float], compiled_ms: Sequence[float]) -> float:
    """Sum of eager times over sum of compiled times: what a user who runs every model once would see. Long models decide it."""
    return math.fsum(eager_ms) / math.fsum(compiled_ms)

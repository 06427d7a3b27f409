"""The comparison of two runs: is a task faster, slower, the same, or is that unclear?

A change is the difference of ``ln(speedup)`` between the runs. Its error has two parts: what the intervals of the two rows say, and what a
fresh process changes (``processes``), which no interval from inside one process can show.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from scipy import special

from orchestrator.statistics.intervals import LEVEL, SEED, Interval
from orchestrator.statistics.means import FloatArray

FALSE_DISCOVERY_RATE = 0.05
MIN_EFFECT = 0.02
ERRORS_PER_MARGIN = 3.0
MOST_MARGIN = 0.085
"""Changes below 2 % are never called faster or slower. "Same" means within 2 %, or within three usual errors where that is more: where
the noise is larger than the effect, nothing could be shown to be the same otherwise. But never within more than three errors of two
rows that vary by 2 % between processes."""
RESAMPLES = 1999


class Verdict(StrEnum):
    """What can be said of one task."""

    FASTER = "faster"
    SLOWER = "slower"
    SAME = "same"  # the 90 % interval of the change lies within the margin: an equivalence test (TOST)
    UNCLEAR = "unclear"  # neither; more processes would tell


@dataclass(frozen=True, slots=True)
class Judgement:
    """One change: its standard error, the 95 % interval of the ratio of the speedups, p, and q (p after Benjamini & Hochberg)."""

    change: float
    error: float
    interval: Interval
    p: float
    q: float
    verdict: Verdict


def margin(errors: FloatArray, effect: float) -> float:
    """Within how much two speedups are the same, for these whole standard errors of changes of ``ln(speedup)``."""
    if not errors.size:
        return effect
    return max(effect, min(ERRORS_PER_MARGIN * float(np.median(errors)), MOST_MARGIN))


def judge(
    changes: FloatArray,
    errors: FloatArray,
    *,
    effect: float = MIN_EFFECT,
    freedom: FloatArray | float = math.inf,
    tail: FloatArray | float | None = None,
    same: FloatArray | float | None = None,
    rate: float = FALSE_DISCOVERY_RATE,
) -> list[Judgement]:
    """A verdict per change.

    Args:
        changes: differences of ``ln(speedup)``.
        errors: their whole standard errors, process part included.
        effect: below it nothing is faster or slower.
        freedom: degrees of freedom with which the errors are known, for the intervals.
        tail: those of the law of each change, for its p; those of ``freedom`` if not given.
        same: within how much a change is none; ``margin`` of all errors if not given.
        rate: bounds the false share of faster and slower ones.
    """
    if not changes.size:
        return []
    from scipy import stats  # takes most of a second to import

    ps = np.asarray(2 * special.stdtr(freedom if tail is None else tail, -np.abs(changes) / errors))
    qs = stats.false_discovery_control(ps, method="bh")
    wide, narrow = (special.stdtrit(freedom, share) * errors for share in (0.5 + LEVEL / 2, 0.95))
    margins = np.broadcast_to(margin(errors, effect) if same is None else same, changes.shape)
    columns = (changes, errors, wide, ps, qs, narrow, margins)
    return [_judgement(*map(float, values), effect=effect, rate=rate) for values in zip(*columns, strict=True)]


def _judgement(
    change: float, error: float, wide: float, p: float, q: float, narrow: float, same: float, *, effect: float, rate: float
) -> Judgement:
    interval = Interval(math.exp(change - wide), math.exp(change + wide))
    return Judgement(change, error, interval, p, q, _verdict(change, narrow, effect if q <= rate else math.inf, same))


def _verdict(change: float, half: float, effect: float, same: float) -> Verdict:
    if abs(change) >= effect:
        return Verdict.FASTER if change > 0 else Verdict.SLOWER
    return Verdict.SAME if abs(change) + half < same else Verdict.UNCLEAR


def pooled_freedom(parts: Sequence[tuple[FloatArray, FloatArray]]) -> FloatArray:
    """Degrees of freedom of the sum of variances, each known with its own (Welch & Satterthwaite): pairs of variances and freedoms."""
    total = np.sum([variances for variances, _ in parts], axis=0)
    uncertain = np.sum([variances**2 / freedom for variances, freedom in parts], axis=0)
    return np.asarray(np.divide(total**2, uncertain, out=np.full(total.shape, math.inf), where=uncertain > 0))


def mean_half_width(errors: Sequence[float] | FloatArray) -> float:
    """Half the 95 % measurement interval of the mean of changes with these whole standard errors."""
    spread = np.asarray(errors, dtype=np.float64)
    return float(special.ndtri(0.5 + LEVEL / 2)) * float(np.sqrt(np.sum(spread**2))) / spread.size


def sign_flip_p(changes: Sequence[float] | FloatArray) -> float | None:
    """P of the mean of ``changes`` being zero, by a permutation test on their signs; None for fewer than two."""
    if len(changes) < 2:
        return None
    from scipy import stats

    values = np.asarray(changes, dtype=np.float64)
    rng = np.random.default_rng(SEED)
    test = stats.permutation_test((values,), np.mean, permutation_type="samples", vectorized=True, n_resamples=RESAMPLES, rng=rng)
    return float(test.pvalue)

"""The comparison of two runs: is a task faster, slower, the same, or is that unclear?

A change is the difference of ``ln(speedup)`` between the runs. Its error has two parts: what the intervals of the two rows say, and what a
fresh process changes, which no interval from inside one process can show. The second is estimated from the spread of all the changes, on
the ground that most tasks have not changed; where too few tasks match for that, it is assumed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt
from scipy import special

from orchestrator.statistics.intervals import LEVEL, SEED, Interval
from orchestrator.statistics.means import FloatArray

FALSE_DISCOVERY_RATE = 0.05
MIN_EFFECT = 0.02
ERRORS_PER_MARGIN = 3.0
"""Changes below 2 % are never called faster or slower. "Same" means within 2 %, or within three usual errors where that is more: where
the noise is larger than the effect, nothing could be shown to be the same otherwise."""
ENOUGH_TO_ESTIMATE = 20
ASSUMED_PROCESS_SD = 0.02
LEAST_PROCESS_SD = 0.005
"""Between fresh processes ln(speedup) was seen to vary by 0.5 to 2 %, by more for models that are bound by launches."""
MAD_TO_SD = 1.482602218505602
CUTOFF = 2.5
KEPT_TO_SD = 1.0475619455  # standard deviation of a normal law over that of the part of it within CUTOFF standard deviations
ROUNDS = 3
EFFICIENCY = 0.4
"""The robust scale of n normal values is as good as the standard deviation of at least 0.4 n; 0.6 n in simulations."""
RESAMPLES = 1999


class Verdict(StrEnum):
    """What can be said of one task."""

    FASTER = "faster"
    SLOWER = "slower"
    SAME = "same"  # the 90 % interval of the change lies within the margin: an equivalence test (TOST)
    UNCLEAR = "unclear"  # neither; more processes would tell


@dataclass(frozen=True, slots=True)
class Scale:
    """How much ``ln(speedup)`` varies between processes, where that is from, and with how many degrees of freedom it is known."""

    process_sd: float
    source: str  # "estimated", "assumed" or "given"
    freedom: float = math.inf


@dataclass(frozen=True, slots=True)
class Judgement:
    """One change: its standard error, the 95 % interval of the ratio of the speedups, p, and q (p after Benjamini & Hochberg)."""

    change: float
    error: float
    interval: Interval
    p: float
    q: float
    verdict: Verdict


def process_scale(changes: FloatArray, errors: FloatArray, single: npt.NDArray[np.int64]) -> Scale:
    """The process sd that explains the spread of ``changes`` beyond their ``errors``.

    ``single`` says for each change how many of its two sides come from one process (0 to 2); only changes with 2 of them are used.
    """
    used = single == 2
    if used.sum() < ENOUGH_TO_ESTIMATE:
        return Scale(ASSUMED_PROCESS_SD, "assumed")
    variance = max((robust_sd(changes[used]) ** 2 - float(np.median(errors[used] ** 2))) / 2, 0.0)
    return Scale(max(math.sqrt(variance), LEAST_PROCESS_SD), "estimated", EFFICIENCY * float(used.sum()))


def robust_sd(values: FloatArray) -> float:
    """Standard deviation of the bulk of ``values``: that of those within 2.5 of it from the median, from the median absolute deviation on
    (the reweighted scale of Rousseeuw & Leroy 1987, section 4.4). A few tasks that have really changed do not move it.
    """
    distances = np.abs(values - np.median(values))
    scale = MAD_TO_SD * float(np.median(distances))
    for _ in range(ROUNDS):
        kept = distances[distances < CUTOFF * scale]
        scale = KEPT_TO_SD * float(np.sqrt(np.mean(kept**2))) if kept.size else scale
    return scale


def margin(errors: FloatArray, effect: float) -> float:
    """Within how much two speedups are the same, for these whole standard errors of changes of ``ln(speedup)``."""
    return max(effect, ERRORS_PER_MARGIN * float(np.median(errors))) if errors.size else effect


def judge(
    changes: FloatArray,
    errors: FloatArray,
    *,
    effect: float = MIN_EFFECT,
    freedom: float = math.inf,
    rate: float = FALSE_DISCOVERY_RATE,
) -> list[Judgement]:
    """A verdict per change. ``errors`` are whole, process part included; ``rate`` bounds the false share of faster and slower ones."""
    if not changes.size:
        return []
    from scipy import stats  # takes most of a second to import

    ps = np.asarray(2 * special.stdtr(freedom, -np.abs(changes) / errors))
    qs = stats.false_discovery_control(ps, method="bh")
    same = margin(errors, effect)
    wide, narrow = (float(special.stdtrit(freedom, share)) for share in (0.5 + LEVEL / 2, 0.95))
    return [
        Judgement(
            change=float(change),
            error=float(error),
            interval=Interval(math.exp(change - wide * error), math.exp(change + wide * error)),
            p=float(p),
            q=float(q),
            verdict=_verdict(float(change), narrow * float(error), effect if q <= rate else math.inf, same),
        )
        for change, error, p, q in zip(changes, errors, ps, qs, strict=True)
    ]


def _verdict(change: float, half: float, effect: float, same: float) -> Verdict:
    if abs(change) >= effect:
        return Verdict.FASTER if change > 0 else Verdict.SLOWER
    return Verdict.SAME if abs(change) + half < same else Verdict.UNCLEAR


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

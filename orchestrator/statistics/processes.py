"""How much ``ln(speedup)`` varies between fresh processes, from the changes between two runs: its scale, and how heavy its tails are.

Most tasks have not changed, so the bulk of the changes shows the scale. Tasks differ in their noise, though, by a factor of four and
more: against a normal law of the usual scale the noisier ones look changed in every comparison of equal runs. A change is therefore judged
by Student's law with the fewest degrees of freedom that the changes in the other direction allow. Noise is symmetric and a regression
is not: what is slower is compared with how far the noise alone reached on the faster side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import optimize, special

from orchestrator.statistics.means import FloatArray
from tasks.estimator import MAD_TO_SD

ENOUGH_TO_ESTIMATE = 20
ASSUMED_PROCESS_SD = 0.02
ASSUMED_TAIL = 10.0
LEAST_PROCESS_SD, MOST_PROCESS_SD = 0.005, 0.03
"""Between fresh processes ln(speedup) was seen to vary by 0.5 to 2 %, by more for models that are bound by launches. A wider spread of the
changes is one of changes, not of noise."""
CUTOFF = 2.5
KEPT_TO_SD = 1.0475619455  # standard deviation of a normal law over that of the part of it within CUTOFF standard deviations
ROUNDS = 3
EFFICIENCY = 0.4
"""The robust scale of n normal values is as good as the standard deviation of at least 0.4 n; 0.6 n in simulations."""
TAILS = np.array([3.5, 4, 5, 6, 7, 8, 10, 12, 15, 20, 30])
TAIL_SUPPORT = 3.0
"""A tail is possible when its log likelihood is within this of the best one's: a 99 % bound to either side."""
ENOUGH_TO_SHARE = 8
MOST_SHARED_FREEDOM = 500.0


@dataclass(frozen=True, slots=True)
class Scale:
    """How much ``ln(speedup)`` varies between processes, where that is from, and with how many degrees of freedom it is known.

    ``slower_tail`` and ``faster_tail`` are the degrees of freedom of the laws that changes in that direction are judged by. ``spread`` is
    what the changes themselves would say, if that is more than noise can explain.
    """

    process_sd: float
    source: str  # "estimated", "capped", "assumed" or "given"
    freedom: float = math.inf
    slower_tail: float = math.inf
    faster_tail: float = math.inf
    spread: float | None = None


def process_scale(changes: FloatArray, errors: FloatArray, single: npt.NDArray[np.int64]) -> Scale:
    """The process sd that explains the spread of ``changes`` beyond their ``errors``, at most ``MOST_PROCESS_SD``.

    ``single`` says for each change how many of its two sides come from one process (0 to 2); only changes with 2 of them are used.
    """
    used = single == 2
    if used.sum() < ENOUGH_TO_ESTIMATE:
        return Scale(ASSUMED_PROCESS_SD, "assumed", math.inf, ASSUMED_TAIL, ASSUMED_TAIL)
    own = errors[used] ** 2
    spread = math.sqrt(max((robust_sd(changes[used]) ** 2 - float(np.median(own))) / 2, 0.0))
    if spread > MOST_PROCESS_SD:  # most tasks have changed: their distances say nothing of the noise
        return Scale(MOST_PROCESS_SD, "capped", math.inf, ASSUMED_TAIL, ASSUMED_TAIL, spread)
    sd = max(spread, LEAST_PROCESS_SD)
    scaled = (changes[used] - np.median(changes[used])) / np.sqrt(own + 2 * sd**2)
    return Scale(
        sd,
        "estimated",
        EFFICIENCY * float(used.sum()),
        slower_tail=heaviest_tail(scaled[scaled > 0]),
        faster_tail=heaviest_tail(scaled[scaled < 0]),
    )


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


def heaviest_tail(scaled: FloatArray) -> float:
    """The fewest degrees of freedom, of ``TAILS``, with which Student's law may have given the distances ``scaled``."""
    constant = special.gammaln((TAILS + 1) / 2) - special.gammaln(TAILS / 2) - np.log(TAILS * math.pi) / 2
    densities = constant[:, None] - (TAILS[:, None] + 1) / 2 * np.log1p(scaled**2 / TAILS[:, None])
    likelihoods = densities.sum(axis=1)
    return float(TAILS[np.flatnonzero(likelihoods >= likelihoods.max() - TAIL_SUPPORT)[0]])


def shared(variances: FloatArray, freedom: FloatArray) -> tuple[FloatArray, FloatArray]:
    """``variances`` of tasks that were measured in several processes each, drawn towards what is usual among them, and their ``freedom``.

    Four processes say little of how much a task varies, many tasks say a lot of how much tasks do: the variances are taken as drawn from a
    scaled inverse chi-square law, whose scale and freedom are found from their logarithms (Smyth 2004, Statistical Applications in Genetics
    and Molecular Biology 3(1), section 6). The more the tasks differ, the less they are drawn together.
    """
    known = variances > 0
    if known.sum() < ENOUGH_TO_SHARE:
        return variances, freedom
    half = freedom[known] / 2
    logs = np.log(variances[known]) - special.digamma(half) + np.log(half)
    differing = float(logs.var(ddof=1) - special.polygamma(1, half).mean())
    if differing <= 1 / MOST_SHARED_FREEDOM:
        usual, weight = math.exp(logs.mean()), 2 * MOST_SHARED_FREEDOM
    else:
        inner = float(optimize.brentq(lambda x: float(special.polygamma(1, x)) - differing, 1e-3, 2 * MOST_SHARED_FREEDOM))
        usual, weight = math.exp(logs.mean() + special.digamma(inner) - math.log(inner)), 2 * inner
    drawn = np.where(known, (weight * usual + freedom * variances) / (weight + freedom), variances)
    return drawn, np.where(known, weight + freedom, freedom)

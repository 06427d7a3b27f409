"""From samples to a speedup and its interval: pure functions, numpy only.

The worker calls them after every pair to decide whether to stop, and the analysis calls them again on the stored samples: one
implementation, the same result. The speedup is the Hodges-Lehmann estimate on the log-ratios of the pairs; its interval inverts
Wilcoxon's signed-rank test. The inverted test is the 97 % one, and the interval is reported as a 95 % interval: looking at the width
after every pair, and stopping when it is small, costs some of the nominal coverage (docs/method.md has the figures).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from statistics import median
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tasks.spec import AA_PHASES, Arm, Blocks, Samples, beside

Table = TypeVar("Table", Samples, Blocks)
FloatArray: TypeAlias = NDArray[np.float64]

NOMINAL_LEVEL = 0.97
MIN_PAIRS_FOR_INTERVAL = 7  # 2 / 2**7 is the first two-sided tail below 1 - NOMINAL_LEVEL
_EXACT_UP_TO = 100  # pairs; beyond, the normal approximation is off by less than one Walsh average
_NORMAL_QUANTILE = 2.1700903775845606  # of 1 - (1 - NOMINAL_LEVEL) / 2
_TREND_QUANTILE = 2.5758293035489004  # of 0.995
_LOPSIDED = 2.0  # standard errors; beyond, an excess of one arm's mean is no chance
_T_QUANTILES = (  # 97.5 % points of Student's t for 1, 2, ... 30 degrees of freedom
    *(12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281),
    *(2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860),
    *(2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423),
)


MAD_TO_SD = 1.482602218505602  # standard deviations in a median absolute deviation, of normal values
LAUNCH_BOUND = 0.9  # of an eager iteration's time; a device that is busy for less waits for its host


@dataclass(frozen=True, slots=True)
class Estimate:
    """A speedup; its interval is None below ``MIN_PAIRS_FOR_INTERVAL`` pairs. ``half_width`` is that of ln(speedup)."""

    speedup: float
    low: float | None
    high: float | None
    half_width: float | None
    pairs: int


@dataclass(frozen=True, slots=True)
class Pairs:
    """One entry per valid pair, in the order taken: ln(eager / compiled) of the block medians, and the process it comes from."""

    log_ratios: FloatArray
    processes: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Summary:
    """What the samples of one task say. All None when they hold no valid pair."""

    speedup: float | None = None
    speedup_low: float | None = None
    speedup_high: float | None = None
    speedup_of_medians: float | None = None
    pairs: int = 0
    eager_ms: float | None = None
    compiled_ms: float | None = None
    eager_device_ms: float | None = None
    compiled_device_ms: float | None = None
    eager_event_ms: float | None = None
    compiled_event_ms: float | None = None
    launch_bound: bool | None = None
    half_width: float | None = None  # of ln(speedup)
    process_speedups: tuple[float, ...] = ()  # each process's own estimate
    aa_eager: float | None = None  # of an A/A measurement, which has no speedup: the ratio of each arm to itself
    aa_eager_low: float | None = None
    aa_eager_high: float | None = None
    aa_compiled: float | None = None
    aa_compiled_low: float | None = None
    aa_compiled_high: float | None = None


def estimate(log_ratios: ArrayLike) -> Estimate:
    """Speedup and interval from independent log-ratios, one per pair.

    Raises:
        ValueError: no log-ratio, or one that is not finite.
    """
    values = np.asarray(log_ratios, dtype=np.float64)
    if values.ndim != 1 or values.size == 0 or not np.all(np.isfinite(values)):
        raise ValueError(f"expected finite log-ratios of one dimension, got {values!r}")
    center, low, high = signed_rank_interval(values)
    if np.isnan(low):
        return Estimate(_stable(math.exp(center)), None, None, None, values.size)
    return _bounded(float(center), float(low), float(high), values.size)


def signed_rank_interval(values: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Hodges-Lehmann estimate and signed-rank interval along the last axis: shape (..., n) gives three arrays of shape (...).

    The bounds are NaN for fewer than ``MIN_PAIRS_FOR_INTERVAL`` values. With the n (n + 1) / 2 Walsh averages W in order and c the
    largest rank sum with P(T <= c) <= (1 - level) / 2, the interval runs from W[c] to the same place from the end
    (Hollander, Wolfe and Chicken, Nonparametric Statistical Methods, section 3.3).
    """
    count = values.shape[-1]
    rows, columns = np.triu_indices(count)
    walsh = np.sort((values[..., rows] + values[..., columns]) / 2.0, axis=-1)
    center = np.median(walsh, axis=-1)
    critical = critical_rank_sum(count)
    if critical is None:
        nothing = np.full_like(center, np.nan)
        return center, nothing, nothing
    return center, walsh[..., critical], walsh[..., walsh.shape[-1] - 1 - critical]


@cache
def critical_rank_sum(count: int) -> int | None:
    """The largest c with P(T <= c) <= (1 - level) / 2 for the signed-rank sum T of ``count`` values; None: there is none."""
    tail = (1.0 - NOMINAL_LEVEL) / 2.0
    if count < MIN_PAIRS_FOR_INTERVAL:
        return None
    if count > _EXACT_UP_TO:
        mean = count * (count + 1) / 4.0
        deviation = math.sqrt(count * (count + 1) * (2 * count + 1) / 24.0)
        return math.floor(mean - _NORMAL_QUANTILE * deviation - 0.5)
    below = np.cumsum(_rank_sum_probabilities(count))
    return int(np.searchsorted(below, tail, side="right")) - 1


def _rank_sum_probabilities(count: int) -> FloatArray:
    """P(T = t) for t = 0 ... count (count + 1) / 2: every rank is in the sum or not, with even odds."""
    chances = np.zeros(count * (count + 1) // 2 + 1)
    chances[0] = 1.0
    for rank in range(1, count + 1):
        shifted = np.zeros_like(chances)
        shifted[rank:] = chances[:-rank]
        chances = (chances + shifted) / 2.0
    return chances


def log_ratio(eager_ns: Sequence[int], compiled_ns: Sequence[int]) -> float:
    """The value of a pair: ln of the eager block's median over the compiled block's."""
    return _log_median(eager_ns) - _log_median(compiled_ns)


def pairs_from(samples: Samples, phase: str = "timed") -> Pairs:
    """The valid pairs of ``phase``: both arms there, every sample valid; a block's value is the median of its iterations."""
    blocks: dict[tuple[int, int], dict[str, list[int]]] = {}
    spoilt: set[tuple[int, int]] = set()
    columns = zip(
        *(samples.phase, samples.process, samples.pair, samples.arm, samples.washout, samples.host_ns, samples.valid),
        strict=True,
    )
    for its_phase, process, pair, arm, washout, host_ns, valid in columns:
        if its_phase != phase or pair < 0:
            continue
        if not valid:
            spoilt.add((process, pair))
        elif not washout:
            blocks.setdefault((process, pair), {}).setdefault(arm, []).append(host_ns)
    found = {key: arms for key, arms in blocks.items() if key not in spoilt and len(arms) == len(Arm)}
    ordered = sorted(found)
    ratios = [log_ratio(found[key][Arm.EAGER], found[key][Arm.COMPILED]) for key in ordered]
    return Pairs(np.asarray(ratios, dtype=np.float64), np.asarray([process for process, _ in ordered], dtype=np.int64))


def summarise(samples: Samples, phase: str = "timed") -> Summary:
    """Everything a row says about speed, as a pure function of the stored samples; of an A/A measurement if they hold only that."""
    pairs = pairs_from(samples, phase)
    if pairs.log_ratios.size == 0:
        return _summarise_aa(samples) if phase == "timed" else Summary()
    found = estimate_pairs(pairs)
    eager_ns, compiled_ns = (_arm_ns(samples, arm, phase) for arm in (Arm.EAGER, Arm.COMPILED))
    on_device = {arm: _on_device(samples, arm, arm, phase) for arm in Arm}
    return Summary(
        speedup=found.speedup,
        speedup_low=found.low,
        speedup_high=found.high,
        speedup_of_medians=_stable(eager_ns / compiled_ns),
        pairs=found.pairs,
        eager_ms=eager_ns / 1e6,
        compiled_ms=compiled_ns / 1e6,
        launch_bound=launch_bound(on_device[Arm.EAGER]["eager_device_ms"], eager_ns / 1e6),
        **on_device[Arm.EAGER],
        **on_device[Arm.COMPILED],
        half_width=found.half_width,
        process_speedups=tuple(estimate(part).speedup for part in _by_process(pairs)),
    )


def _summarise_aa(samples: Samples) -> Summary:
    found: dict[str, Any] = {}
    pairs, half_widths = 0, []
    for arm, phase in AA_PHASES.items():
        its_pairs = pairs_from(samples, phase)
        if its_pairs.log_ratios.size == 0:
            continue
        ratio = estimate_pairs(its_pairs)
        pairs += ratio.pairs
        half_widths += [math.inf if ratio.half_width is None else ratio.half_width]
        found |= {f"aa_{arm}": ratio.speedup, f"aa_{arm}_low": ratio.low, f"aa_{arm}_high": ratio.high}
        found |= {f"{arm}_ms": _arm_ns(samples, None, phase) / 1e6, **_on_device(samples, arm, None, phase)}
    widest = max(half_widths, default=math.inf)
    found["launch_bound"] = launch_bound(found.get("eager_device_ms"), found.get("eager_ms"))
    return Summary(**found, pairs=pairs, half_width=widest if math.isfinite(widest) else None)


def estimate_pairs(pairs: Pairs) -> Estimate:
    """The estimate from all pairs.

    From one process the interval is the signed-rank one and covers what varies inside a process. From several it also covers what
    varies between processes: the centre is the mean of the processes' own estimates and the interval Student's t on them, or the
    pooled signed-rank interval about the same centre where that is the wider one.
    """
    parts = _by_process(pairs)
    return estimate(parts[0]) if len(parts) == 1 else _across_processes(parts)


def launch_bound(eager_device_ms: float | None, eager_ms: float | None) -> bool | None:
    """Whether the device waits for its host for much of an eager iteration; None where its busy time is not known."""
    return eager_device_ms < LAUNCH_BOUND * eager_ms if eager_device_ms is not None and eager_ms else None


def trend(log_ratios: Sequence[float]) -> float | None:
    """How far the log-ratios moved from the first pair to the last; None where a Mann-Kendall test at 1 % finds no trend.

    The slope is Theil and Sen's, the median of the slopes between any two pairs.
    """
    values = np.asarray(log_ratios, dtype=np.float64)
    count = values.size
    if count < MIN_PAIRS_FOR_INTERVAL:
        return None
    earlier, later = np.triu_indices(count, k=1)
    rises = values[later] - values[earlier]
    score = abs(float(np.sum(np.sign(rises)))) - 1.0
    if score / math.sqrt(count * (count - 1) * (2 * count + 5) / 18.0) <= _TREND_QUANTILE:
        return None
    return float(np.median(rises / (later - earlier))) * (count - 1)


def lopsided(samples: Samples, phase: str = "timed") -> float | None:
    """By how much more the arms' means differ than their medians say, as a logarithm; None where that may be chance.

    Spikes that both arms have cancel in the means as in the medians. Those that only one has do not, and shift the estimate as well.
    """
    columns = zip(
        *(samples.phase, samples.process, samples.pair, samples.arm, samples.washout, samples.valid, samples.host_ns), strict=True
    )
    blocks: dict[tuple[int, int], dict[str, list[float]]] = {}
    for its_phase, process, pair, arm, washout, valid, host_ns in columns:
        if its_phase == phase and pair >= 0 and valid and not washout:
            blocks.setdefault((process, pair), {}).setdefault(arm, []).append(math.log(max(host_ns, 1)))
    means = [float(np.mean(arms[Arm.EAGER]) - np.mean(arms[Arm.COMPILED])) for arms in blocks.values() if len(arms) == len(Arm)]
    if len(means) < MIN_PAIRS_FOR_INTERVAL:
        return None
    excess = float(np.mean(means)) - math.log(estimate_pairs(pairs_from(samples, phase)).speedup)
    noise = float(np.std(means, ddof=1)) / math.sqrt(len(means))
    return excess if abs(excess) > _LOPSIDED * noise else None


def concatenate(parts: Sequence[Table]) -> Table:
    """The samples, or the blocks, of one task's processes as one table; ``process`` becomes the position in ``parts``."""
    return joined([replace(part, process=(number,) * len(part.process)) for number, part in enumerate(parts)])


def joined(parts: Sequence[Table]) -> Table:
    """The rows of ``parts``, at least one, one after the other as one table."""
    names = type(parts[0]).__dataclass_fields__
    return type(parts[0])(**{name: tuple(value for part in parts for value in getattr(part, name)) for name in names})


def _across_processes(parts: list[FloatArray]) -> Estimate:
    centers = np.asarray([float(signed_rank_interval(part)[0]) for part in parts])
    center = float(np.mean(centers))
    freedom = len(parts) - 1
    quantile = _T_QUANTILES[min(freedom, len(_T_QUANTILES)) - 1]
    reach = quantile * float(np.std(centers, ddof=1)) / math.sqrt(len(parts))
    pooled = np.concatenate([part - own for part, own in zip(parts, centers, strict=True)])
    _, low, high = signed_rank_interval(pooled)
    below, above = (0.0, 0.0) if np.isnan(low) else (float(low), float(high))
    return _bounded(center, center + min(below, -reach), center + max(above, reach), pooled.size)


def _by_process(pairs: Pairs) -> list[FloatArray]:
    return [pairs.log_ratios[pairs.processes == process] for process in sorted(set(pairs.processes.tolist()))]


def _arm_ns(samples: Samples, arm: Arm | None, phase: str) -> float:
    """Median of all iterations of ``arm`` (None: of both) that count, in ns."""
    columns = zip(samples.phase, samples.arm, samples.washout, samples.valid, samples.pair, samples.host_ns, strict=True)
    times = [
        host_ns
        for its_phase, its_arm, washout, valid, pair, host_ns in columns
        if its_phase == phase and arm in (None, its_arm) and valid and not washout and pair >= 0
    ]
    return max(float(np.median(np.asarray(times, dtype=np.float64))), 1.0)


def _on_device(samples: Samples, arm: Arm, its_side: Arm | None, phase: str) -> dict[str, float | None]:
    """The device's times of one iteration of ``arm``, which is ``its_side`` of the samples (None: both sides), by their names in a row."""
    clocks = ("device", "event")
    found: dict[tuple[str, int], list[float]] = {}
    for its_phase, side, process, device_ms in zip(samples.phase, samples.arm, samples.process, samples.device_ms, strict=True):
        if its_side in (None, side) and device_ms is not None:
            found.setdefault((its_phase, process), []).append(device_ms)
    named = {clock: [times for (its_phase, _), times in found.items() if its_phase == beside(phase, clock)] for clock in clocks}
    return {f"{arm}_{clock}_ms": _median_of_medians(parts) for clock, parts in named.items()}


def _median_of_medians(parts: list[list[float]]) -> float | None:
    return float(median([float(np.median(times)) for times in parts])) if parts else None


def _log_median(times_ns: Sequence[int]) -> float:
    """The logarithm of the median; a clock that did not move counts as one nanosecond."""
    return math.log(max(float(np.median(np.asarray(times_ns, dtype=np.float64))), 1.0))


def _bounded(center: float, low: float, high: float, pairs: int) -> Estimate:
    half_width = max(high - center, center - low)
    return Estimate(_stable(math.exp(center)), _stable(math.exp(low)), _stable(math.exp(high)), _stable(half_width), pairs)


def _stable(value: float) -> float:
    """``value`` to twelve digits: logarithms differ in their last bit between machines, published numbers must not."""
    return float(f"{value:.12g}")

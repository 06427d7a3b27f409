from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks import estimator
from tasks.estimator import (
    Pairs,
    concatenate,
    critical_rank_sum,
    estimate,
    estimate_pairs,
    lopsided,
    pairs_from,
    signed_rank_interval,
    summarise,
    trend,
)
from tasks.spec import Samples, decode, encode

log_ratios = st.lists(st.floats(-2, 2, allow_nan=False, width=32).map(float), min_size=1, max_size=30)


def samples_of(*rows, **columns):
    """Rows are (phase, arm, process, pair, washout, host_ns, valid)."""
    names = ("phase", "arm", "process", "pair", "washout", "host_ns", "valid")
    table = dict(zip(names, zip(*rows, strict=True), strict=True)) if rows else {}
    blank = {"block": 0, "order": 0, "iteration": 0, "device_ms": None, "started_ns": 0, "reason": None}
    return Samples(**table, **{name: (value,) * len(rows) for name, value in (blank | columns).items()})


def pair(number, eager_ns, compiled_ns, process=0, phase="timed", valid=True, washout_ns=10**9):
    for arm, times in (("eager", eager_ns), ("compiled", compiled_ns)):
        yield phase, arm, process, number, True, washout_ns, valid
        for host_ns in times:
            yield phase, arm, process, number, False, host_ns, valid


def brute_force_interval(values):
    """All shifts that a two-sided signed-rank test at NOMINAL_LEVEL does not reject, by trying the sign patterns."""
    count = len(values)
    sums = [
        sum(rank for rank, sign in zip(range(1, count + 1), signs, strict=True) if sign)
        for signs in itertools.product((0, 1), repeat=count)
    ]
    walsh = sorted((values[i] + values[j]) / 2 for i in range(count) for j in range(i, count))

    def accepted(shift):
        differences = np.asarray(values) - shift
        order = np.argsort(np.argsort(np.abs(differences))) + 1
        observed = order[differences > 0].sum()
        tail = min(sum(total <= observed for total in sums), sum(total >= observed for total in sums)) / len(sums)
        return tail > (1 - estimator.NOMINAL_LEVEL) / 2

    between = [walsh[0] - 1, *((a + b) / 2 for a, b in itertools.pairwise(walsh)), walsh[-1] + 1]
    kept = [number for number, shift in enumerate(between) if accepted(shift)]
    return walsh[kept[0] - 1], walsh[kept[-1]]


@pytest.mark.parametrize("count", [7, 8, 10, 12])
def test_the_interval_is_what_the_test_does_not_reject(count):
    values = np.random.default_rng(count).normal(0.2, 1.0, count)
    _, low, high = signed_rank_interval(values)
    assert (float(low), float(high)) == pytest.approx(brute_force_interval(values.tolist()))


@pytest.mark.parametrize("count", [7, 9, 15, 40])
def test_the_critical_sum_agrees_with_scipy(count):
    from scipy.stats import wilcoxon

    critical = critical_rank_sum(count)
    tail = (1 - estimator.NOMINAL_LEVEL) / 2

    def chance(rank_sum):
        """P(T <= rank_sum), from values with just that sum of positive ranks."""
        values, rest = -np.arange(1.0, count + 1), rank_sum
        for rank in range(count, 0, -1):
            if rank <= rest:
                values[rank - 1], rest = rank, rest - rank
        assert rest == 0
        return wilcoxon(values, alternative="less", method="exact").pvalue

    assert chance(critical) <= tail < chance(critical + 1)


def test_the_normal_approximation_meets_the_exact_one(monkeypatch):
    exact = [critical_rank_sum.__wrapped__(count) for count in (60, 80, 100)]
    monkeypatch.setattr(estimator, "_EXACT_UP_TO", 10)
    assert [critical_rank_sum.__wrapped__(count) for count in (60, 80, 100)] == pytest.approx(exact, abs=2)


def test_quantiles_are_those_of_scipy():
    from scipy.stats import norm, t

    assert list(estimator._T_QUANTILES) == pytest.approx([t.ppf(0.975, freedom) for freedom in range(1, 31)], abs=5e-5)
    assert pytest.approx(norm.ppf(1 - (1 - estimator.NOMINAL_LEVEL) / 2)) == estimator._NORMAL_QUANTILE
    assert pytest.approx(norm.ppf(0.995)) == estimator._TREND_QUANTILE


def test_the_estimate_is_the_median_of_walsh_averages():
    found = estimate([0.0, 0.1, 0.5])
    assert found.speedup == pytest.approx(math.exp(0.175))  # of 0, 0.05, 0.1, 0.25, 0.3, 0.5
    assert (found.low, found.high, found.half_width, found.pairs) == (None, None, None, 3)


def test_seven_pairs_are_the_first_with_an_interval():
    assert estimate([0.1] * 6).low is None
    found = estimate(np.arange(7) / 100)
    assert (found.low, found.high) == (1.0, pytest.approx(math.exp(0.06)))


@pytest.mark.parametrize("values", [[], [math.nan], [1.0, math.inf], [[1.0, 2.0]]])
def test_what_is_no_list_of_numbers_is_refused(values):
    with pytest.raises(ValueError, match="finite log-ratios"):
        estimate(values)


@settings(max_examples=40)
@given(log_ratios)
def test_swapping_the_arms_inverts_the_speedup(values):
    one, other = estimate(values), estimate([-value for value in values])
    assert one.speedup * other.speedup == pytest.approx(1.0, rel=1e-10)
    if one.low is not None:
        assert one.low * other.high == pytest.approx(1.0, rel=1e-10)


@settings(max_examples=40)
@given(log_ratios, st.randoms())
def test_the_order_of_pairs_does_not_matter(values, chance):
    shuffled = list(values)
    chance.shuffle(shuffled)
    assert estimate(shuffled) == estimate(values)


@settings(max_examples=40)
@given(log_ratios)
def test_the_interval_holds_the_estimate(values):
    found = estimate(values)
    if found.low is not None:
        assert found.low <= found.speedup <= found.high
        assert found.half_width >= 0


@settings(max_examples=20)
@given(st.integers(1, 1000))
def test_slower_clocks_change_nothing(factor):
    rows = [row for number in range(8) for row in pair(number, [110 + number, 120, 130], [100, 101, 99 + number])]
    scaled = [(*row[:5], row[5] * factor, row[6]) for row in rows]
    assert summarise(samples_of(*scaled)).speedup == pytest.approx(summarise(samples_of(*rows)).speedup)


def test_only_valid_timed_iterations_of_whole_pairs_count():
    rows = [
        *(("warmup", arm, 0, -1, False, 10**6, True) for arm in ("eager", "compiled")),
        *pair(0, [200, 210, 190], [100, 100, 100]),
        *pair(1, [900], [1], valid=False),
        *pair(2, [400], [100]),
        *(row for row in pair(3, [100], [100]) if row[1] == "eager"),
        *pair(4, [100], [100], phase="aa"),
    ]
    found = pairs_from(samples_of(*rows))
    assert found.log_ratios.tolist() == pytest.approx([math.log(2), math.log(4)])
    assert summarise(samples_of(*rows)).pairs == 2
    assert summarise(samples_of(*rows), "aa").speedup == 1.0


def test_one_invalid_iteration_spoils_its_pair():
    rows = list(pair(0, [200, 200], [100, 100]))
    rows[1] = (*rows[1][:6], False)
    assert summarise(samples_of(*rows)) == estimator.Summary()


def test_the_medians_are_those_of_all_iterations():
    rows = [row for number in range(3) for row in pair(number, [2_000_000 + number], [1_000_000])]
    found = summarise(samples_of(*rows))
    assert (found.eager_ms, found.compiled_ms, found.speedup_of_medians) == (2.000001, 1.0, 2.000001)


def test_a_clock_that_does_not_move_is_survived():
    assert summarise(samples_of(*pair(0, [0], [0]))).speedup == 1.0


def test_no_samples_say_nothing():
    assert summarise(Samples()) == estimator.Summary()


def test_stored_samples_give_the_same_summary():
    chance = np.random.default_rng(3)
    rows = [
        row for number in range(12) for row in pair(number, chance.integers(900, 1100, 5).tolist(), chance.integers(700, 800, 5).tolist())
    ]
    samples = samples_of(*rows)
    stored = decode(Samples, json.loads(json.dumps(encode(samples))))
    assert summarise(stored) == summarise(samples)


def many(parts):
    return Pairs(np.concatenate(parts), np.repeat(np.arange(len(parts)), [len(part) for part in parts]))


def test_several_processes_are_judged_by_their_spread():
    from scipy.stats import t

    centers = np.array([0.10, 0.12, 0.17])
    found = estimate_pairs(many([np.full(10, center) for center in centers]))
    low, high = t.interval(0.95, 2, loc=centers.mean(), scale=centers.std(ddof=1) / math.sqrt(3))
    assert (math.log(found.low), math.log(found.high)) == pytest.approx((low, high), rel=1e-4)
    assert (math.log(found.speedup), found.pairs) == (pytest.approx(0.13), 30)


def test_processes_that_agree_by_chance_keep_the_interval_of_their_pairs():
    part = np.linspace(-0.05, 0.05, 9)
    assert estimate_pairs(many([part, part])).half_width > 0.01


def test_intervals_of_processes_cover_what_pairs_alone_do_not():
    chance = np.random.default_rng(5)
    runs, covered, covered_by_pairs = 300, 0, 0
    for _ in range(runs):
        parts = [chance.normal(chance.normal(0.0, 0.02), 0.005, 10) for _ in range(3)]
        low, high = (math.log(bound) for bound in (estimate_pairs(many(parts)).low, estimate_pairs(many(parts)).high))
        covered += low <= 0.0 <= high
        _, low, high = signed_rank_interval(np.concatenate(parts))
        covered_by_pairs += low <= 0.0 <= high
    assert covered >= 275  # 99.5 % binomial band of 95 %
    assert covered_by_pairs < 255


def test_processes_are_put_into_one_table():
    one = samples_of(*pair(0, [200], [100]))
    both = concatenate([one, one])
    assert both.process == (0,) * 4 + (1,) * 4
    assert summarise(both).pairs == 2


def test_batches_of_rows_are_estimated_at_once():
    values = np.random.default_rng(1).normal(size=(5, 11))
    together = np.array(signed_rank_interval(values))
    assert together.T.tolist() == [[float(part) for part in signed_rank_interval(row)] for row in values]


def test_the_interval_covers_at_its_rate():
    values = np.random.default_rng(2).standard_t(3, size=(4000, 12))
    _, low, high = signed_rank_interval(values)
    assert 0.96 <= np.mean((low <= 0) & (high >= 0)) <= 0.985


def test_an_excess_of_one_arms_mean_is_told_from_chance():
    rng = np.random.default_rng(4)

    def excess(spikes_of_eager, spikes_of_compiled):
        rows = []
        for number in range(20):
            times = [
                rng.lognormal(0, 0.01, 5) * np.where(rng.random(5) < share, 1.4, 1.0) for share in (spikes_of_eager, spikes_of_compiled)
            ]
            rows += pair(number, *([int(1e6 * time) for time in part] for part in times))
        return lopsided(samples_of(*rows))

    assert excess(0.25, 0.0) == pytest.approx(0.25 * np.log(1.4), abs=0.05)
    assert excess(0.0, 0.25) == pytest.approx(-0.25 * np.log(1.4), abs=0.05)
    assert [excess(0.25, 0.25), excess(0.0, 0.0)].count(None) >= 1
    assert lopsided(samples_of(*pair(0, [10**6], [10**6]))) is None


def test_a_trend_is_found_and_measured():
    from scipy.stats import theilslopes

    noise = np.random.default_rng(6).normal(0, 0.002, 20)
    rising = noise + np.linspace(0, 0.05, 20)
    assert trend(rising.tolist()) == pytest.approx(theilslopes(rising).slope * 19)
    assert trend(rising[::-1].tolist()) == pytest.approx(-trend(rising.tolist()))
    assert trend(noise.tolist()) is None
    assert trend([0.0, 0.1, 0.2]) is None


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_noise_is_rarely_a_trend(seed):
    rows = np.random.default_rng(seed).normal(size=(60, 10))
    assert sum(trend(row.tolist()) is not None for row in rows) <= 6

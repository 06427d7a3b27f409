"""The statistics against hand values, scipy, slow references and simulated truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from orchestrator.statistics import intervals, means

WEIGHTS = {"amp": 0.75, "float32": 0.25}
speedup_lists = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=40)


# Means ------------------------------------------------------------------------------------------------------------------------------


def test_the_published_figures_give_the_published_score():
    published = {"amp": 1.51, "float32": 1.21}
    assert means.weighted_score(published, WEIGHTS) == pytest.approx(1.435, abs=1e-12)
    assert means.weighted_score_in_logs(published, WEIGHTS) == pytest.approx(1.4287, abs=5e-5)


@given(speedup_lists)
def test_geomean_equals_scipy(speedups):
    assert means.geomean(speedups) == pytest.approx(stats.gmean(speedups), rel=1e-12)


@given(speedup_lists)
def test_geomean_of_inverses_is_the_inverse(speedups):
    assert means.geomean([1 / speedup for speedup in speedups]) * means.geomean(speedups) == pytest.approx(1, rel=1e-9)


def test_geomean_does_not_overflow():
    assert means.geomean([1e300] * 5000) == pytest.approx(1e300)
    assert means.geomean([1e-300] * 5000) == pytest.approx(1e-300)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.inf, math.nan])
def test_what_has_no_logarithm_is_refused(bad):
    with pytest.raises(ValueError, match="positive and finite"):
        means.geomean([1.2, bad])


def test_the_mean_of_nothing_is_refused():
    with pytest.raises(ValueError, match="not defined"):
        means.geomean([])


def test_variants_by_hand():
    assert means.clipped([0.5, 2.0]) == [1.0, 2.0]
    assert means.with_failures_as_one([4.0], 2) == [4.0, 1.0]
    assert means.geomean(means.with_failures_as_one([4.0], 2)) == pytest.approx(2.0)
    assert means.suite_balanced({"a": [2.0, 2.0, 2.0], "b": [8.0]}) == pytest.approx(4.0)
    assert means.total_time_ratio([10.0, 90.0], [5.0, 45.0]) == pytest.approx(2.0)
    assert means.quantiles([0.25, 1.0, 4.0]) == pytest.approx([0.25 * 4**0.2, 1.0, 4 / 4**0.2])
    with pytest.raises(ValueError, match="2 speedups of 1 planned"):
        means.with_failures_as_one([1.0, 2.0], 1)


def test_weights_are_scaled_and_checked():
    assert means.normalised({"amp": 3, "float32": 1, "float16": 0}) == WEIGHTS
    for bad in ({}, {"amp": 0.0}, {"amp": -1.0, "float32": 2.0}):
        with pytest.raises(ValueError, match="weights"):
            means.normalised(bad)


# Rates ------------------------------------------------------------------------------------------------------------------------------


def test_wilson_by_hand():
    interval = intervals.wilson(151, 163)
    assert (round(interval.low, 3), round(interval.high, 3)) == (0.876, 0.957)
    assert intervals.wilson(0, 0) is None


@given(st.integers(1, 500), st.data())
def test_wilson_equals_its_formula(planned, data):
    passed = data.draw(st.integers(0, planned))
    z, rate = 1.959963984540054, passed / planned
    centre = (rate + z * z / (2 * planned)) / (1 + z * z / planned)
    half = z * math.sqrt(rate * (1 - rate) / planned + z * z / (4 * planned**2)) / (1 + z * z / planned)
    interval = intervals.wilson(passed, planned)
    assert interval.low == pytest.approx(max(centre - half, 0), abs=1e-9)
    assert interval.high == pytest.approx(min(centre + half, 1), abs=1e-9)


# Intervals --------------------------------------------------------------------------------------------------------------------------


def test_standard_errors_come_back_from_the_interval_they_made():
    log, error = math.log(1.4), 0.01
    ends = [math.exp(log - 1.959963984540054 * error)], [math.exp(log + 1.959963984540054 * error)]
    assert intervals.standard_errors(*ends)[0] == pytest.approx(error, rel=1e-9)


@pytest.mark.parametrize(("low", "high"), [(None, 1.1), (1.0, None), (0.0, 1.1), (1.0, math.inf), (1.2, 1.1), (math.nan, 1.0)])
def test_a_broken_interval_has_no_standard_error(low, high):
    assert math.isnan(intervals.standard_errors([low], [high])[0])


def test_measurement_interval_of_one_task_is_its_own():
    error = np.array([0.02])
    found = intervals.measurement_interval({"amp": np.array([math.log(1.5)])}, {"amp": error}, {"amp": 1.0})
    assert found.low == pytest.approx(1.5 * math.exp(-1.959963984540054 * 0.02), rel=1e-12)
    assert found.high == pytest.approx(1.5 * math.exp(1.959963984540054 * 0.02), rel=1e-12)


def test_measurement_interval_equals_simulated_errors():
    """The delta method against drawing the errors and looking at the scores."""
    rng = np.random.default_rng(5)
    logs = {dtype: rng.normal(0.3, 0.35, 40) for dtype in WEIGHTS}
    errors = {dtype: rng.uniform(0.005, 0.03, 40) for dtype in WEIGHTS}
    drawn = sum(
        weight * np.exp((logs[dtype] + rng.normal(0, 1, (40_000, 40)) * errors[dtype]).mean(axis=1)) for dtype, weight in WEIGHTS.items()
    )
    found = intervals.measurement_interval(logs, errors, WEIGHTS)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])), rel=4e-4)


def test_measurement_interval_needs_every_task_to_have_one():
    logs = {"amp": np.array([0.1, 0.2, math.nan])}
    assert intervals.measurement_interval(logs, {"amp": np.array([0.01, math.nan, 0.01])}, {"amp": 1.0}) is None
    assert intervals.measurement_interval(logs, {"amp": np.array([0.01, 0.01, math.nan])}, {"amp": 1.0}) is not None
    assert intervals.measurement_interval({"amp": np.array([math.nan])}, {"amp": np.array([0.1])}, {"amp": 1.0}) is None


def test_generalisation_of_few_models_equals_students_t():
    logs = np.random.default_rng(3).normal(0.3, 0.35, 11)
    found = intervals.generalisation_interval({"amp": logs}, {"amp": 1.0})
    expected = stats.t.interval(0.95, 10, loc=logs.mean(), scale=stats.sem(logs))
    assert (math.log(found.low), math.log(found.high)) == pytest.approx(expected, rel=1e-9)


def test_generalisation_of_many_models_agrees_with_scipys_bootstrap():
    logs = np.random.default_rng(4).gamma(2, 0.2, 163)
    found = intervals.generalisation_interval({"amp": logs}, {"amp": 1.0}, resamples=20_000)
    expected = stats.bootstrap((logs,), np.mean, n_resamples=20_000, method="BCa", rng=np.random.default_rng(1)).confidence_interval
    assert math.log(found.low) == pytest.approx(expected.low, abs=0.004)
    assert math.log(found.high) == pytest.approx(expected.high, abs=0.004)


def test_the_same_seed_gives_the_same_interval():
    logs = {"amp": np.random.default_rng(4).normal(0.3, 0.2, 50)}
    assert intervals.generalisation_interval(logs, {"amp": 1.0}) == intervals.generalisation_interval(logs, {"amp": 1.0})


def test_one_model_does_not_generalise():
    assert intervals.generalisation_interval({"amp": np.array([0.3, math.nan])}, {"amp": 1.0}) is None


@pytest.mark.parametrize("models", [2, 5, 40])
def test_equal_models_have_no_spread(models):
    found = intervals.generalisation_interval({"amp": np.full(models, 0.3)}, {"amp": 1.0})
    assert (found.low, found.high) == pytest.approx((math.exp(0.3), math.exp(0.3)))


def _slow_studentised(matrix: list[list[float]], weights: list[float], drawn: np.ndarray) -> tuple[float, float]:
    """The studentised bootstrap of the log score, one loop at a time, given which models each replicate draws."""

    def score_and_error(models) -> tuple[float, float]:
        means, parts = [], []
        for row, weight in zip(matrix, weights, strict=True):
            values = [row[model] for model in models if not math.isnan(row[model])]
            means.append((sum(values) / len(values), len(values)))
            parts.append(weight * math.exp(means[-1][0]))
        variance = 0.0
        for model in models:
            influence = 0.0
            for row, (mean, count), part in zip(matrix, means, parts, strict=True):
                if not math.isnan(row[model]):
                    influence += part / sum(parts) * (row[model] - mean) / math.sqrt(count * (count - 1))
            variance += influence**2
        return math.log(sum(parts)), math.sqrt(variance)

    centre, error = score_and_error(range(len(matrix[0])))
    ratios = [(score - centre) / spread for score, spread in map(score_and_error, drawn)]
    return math.exp(centre - np.quantile(ratios, 0.975) * error), math.exp(centre - np.quantile(ratios, 0.025) * error)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(12, 40), st.integers(0, 6))
def test_vectorised_bootstrap_equals_the_slow_one(seed, models, lacking):
    rng = np.random.default_rng(seed)
    common = rng.normal(0.2, 0.3, models + lacking)
    logs = {dtype: common + rng.normal(0, 0.1, models + lacking) for dtype in WEIGHTS}
    logs["float32"][:lacking] = math.nan  # these passed in amp only
    found = intervals.generalisation_interval(logs, WEIGHTS, resamples=60, seed=seed)
    drawn = np.random.default_rng(seed).integers(models + lacking, size=(60, models + lacking))
    expected = _slow_studentised([list(logs[dtype]) for dtype in WEIGHTS], list(WEIGHTS.values()), drawn)
    assert (found.low, found.high) == pytest.approx(expected, rel=1e-9)


# Coverage of simulated truth ----------------------------------------------------------------------------------------------------------


def _covered(rng: np.random.Generator, models: int, correlation: float, process_sd: float) -> tuple[bool, bool]:
    """Whether the two intervals of one simulated sweep hold the two truths that they are about."""
    between = 0.35
    base = {"amp": math.log(1.5), "float32": math.log(1.2)}
    common = rng.normal(0, between, models)
    own = {dtype: rng.normal(0, between, models) for dtype in base}
    truth = {dtype: base[dtype] + correlation * common + math.sqrt(1 - correlation**2) * own[dtype] for dtype in base}
    errors = {dtype: np.hypot(rng.uniform(0.002, 0.02, models), process_sd) for dtype in base}
    logs = {dtype: truth[dtype] + rng.normal(0, 1, models) * errors[dtype] for dtype in base}
    here = intervals.measurement_interval(logs, errors, WEIGHTS)
    elsewhere = intervals.generalisation_interval(logs, WEIGHTS, resamples=500)
    these = sum(weight * math.exp(truth[dtype].mean()) for dtype, weight in WEIGHTS.items())
    all_models = sum(weight * math.exp(base[dtype]) for dtype, weight in WEIGHTS.items())
    return here.low <= these <= here.high, elsewhere.low <= all_models <= elsewhere.high


def _check_coverage(runs: int, models: int, seed: int, slack: float = 0.0) -> None:
    rng = np.random.default_rng(seed)
    covered = np.sum([_covered(rng, models, correlation=0.9, process_sd=0.01) for _ in range(runs)], axis=0)
    lowest, highest = stats.binom.ppf([0.0025, 0.9975], runs, 0.95)
    assert lowest <= covered[0] <= highest
    assert lowest - slack * runs <= covered[1] <= highest


@pytest.mark.parametrize("models", [14, 60])
def test_intervals_cover_the_truth(models):
    _check_coverage(300, models, seed=models)


@pytest.mark.slow
@pytest.mark.parametrize("models", [8, 14, 45, 163])
def test_intervals_cover_the_truth_often_enough(models):
    # The bootstrap is a large-sample method; its own 500 resamples cost some more.
    _check_coverage(3000, models, seed=models, slack=0.01)


def test_ignoring_processes_would_not_cover():
    """The mutant: without the process sd the measurement interval is far too narrow, and this simulation sees it."""
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(100):
        truth = rng.normal(0.3, 0.35, 40)
        logs = truth + rng.normal(0, 0.02, 40)
        found = intervals.measurement_interval({"amp": logs}, {"amp": np.full(40, 0.005)}, {"amp": 1.0})
        hits += found.low <= math.exp(truth.mean()) <= found.high
    assert hits < 60

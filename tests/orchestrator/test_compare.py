"""Two runs, matched: simulated sweeps with known truth, what is compared and what is not, and the plan that settles the unclear ones."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from orchestrator.compare import COLUMNS, Moved, compare
from orchestrator.confirm import confirmation
from orchestrator.errors import UsageError
from orchestrator.manifest import load_manifest
from orchestrator.plan import digest, plan_tasks
from orchestrator.report.comparison import as_data, render_comparison
from orchestrator.report.present import printed
from orchestrator.report.rows import load
from orchestrator.report.synthetic import failed, store_run, synthetic_run, true_logs
from orchestrator.statistics import differences
from orchestrator.statistics.differences import Verdict
from orchestrator.store import Store

TRUTH = true_logs({"toy": 60})
SURE = {"process_sd": 0.002}


def changed(run, change):
    return replace(run, rows=tuple(change(place, row) for place, row in enumerate(run.rows)))


def equal_pair(seed, truth=TRUTH, process_sd=0.01):
    return (synthetic_run(truth, seed=2 * seed + side, process_sd=process_sd, run_id=name) for side, name in ((1, "base"), (2, "new")))


# Judging, by itself -----------------------------------------------------------------------------------------------------------------


def test_verdicts_by_hand():
    changes, errors = np.array([-0.2, 0.2, 0.001, 0.05]), np.array([0.01, 0.01, 0.002, 0.04])
    verdicts = [judgement.verdict for judgement in differences.judge(changes, errors)]
    assert verdicts == [Verdict.SLOWER, Verdict.FASTER, Verdict.SAME, Verdict.UNCLEAR]


def test_sure_but_small_is_not_slower():
    (judgement,) = differences.judge(np.array([-0.01]), np.array([0.0001]))
    assert judgement.q < 1e-9
    assert judgement.verdict is Verdict.SAME


@given(st.lists(st.floats(-0.2, 0.2), min_size=1, max_size=30))
def test_q_values_equal_a_slow_benjamini_hochberg(changes):
    judged = differences.judge(np.array(changes), np.full(len(changes), 0.02))
    ps = [math.erfc(abs(change) / 0.02 / math.sqrt(2)) for change in changes]
    for judgement, p in zip(judged, ps, strict=True):
        slow = min(len(ps) * other / sum(each <= other for each in ps) for other in ps if other >= p)
        assert judgement.q == pytest.approx(min(slow, 1.0), abs=1e-12)


@given(st.lists(st.floats(-0.2, 0.2), min_size=1, max_size=30))
def test_swapping_the_runs_swaps_the_verdicts(changes):
    forth, back = (differences.judge(sign * np.array(changes), np.full(len(changes), 0.02)) for sign in (1, -1))
    other = {Verdict.FASTER: Verdict.SLOWER, Verdict.SLOWER: Verdict.FASTER}
    assert [other.get(judgement.verdict, judgement.verdict) for judgement in forth] == [judgement.verdict for judgement in back]


def test_the_robust_scale_is_the_sd_and_bears_with_outliers():
    values = np.random.default_rng(1).normal(0.3, 0.02, 200_000)
    assert differences.robust_sd(values) == pytest.approx(0.02, rel=0.01)
    values[:10_000] += 1.0
    assert differences.robust_sd(values) == pytest.approx(0.02, rel=0.03)
    assert differences.robust_sd(np.zeros(30)) == 0.0


def test_few_tasks_say_nothing_of_processes():
    few = differences.process_scale(np.zeros(5), np.zeros(5), np.full(5, 2))
    assert (few.source, few.process_sd) == ("assumed", differences.ASSUMED_PROCESS_SD)
    many = differences.process_scale(np.zeros(50), np.zeros(50), np.full(50, 2))
    assert (many.source, many.process_sd) == ("estimated", differences.LEAST_PROCESS_SD)


def test_sign_flips_equal_scipys_exact_test():
    changes = np.array([0.01, 0.02, -0.005, 0.03, 0.01])
    exact = stats.permutation_test((changes,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert differences.sign_flip_p(changes) == pytest.approx(exact.pvalue)
    assert differences.sign_flip_p([0.1]) is None


# Simulated sweeps -------------------------------------------------------------------------------------------------------------------


def alarms(sweeps, truth):
    found = (compare(*equal_pair(seed, truth)) for seed in range(sweeps))
    return sum(bool(comparison.of(Verdict.SLOWER) or comparison.of(Verdict.FASTER)) for comparison in found)


def test_equal_sweeps_raise_few_alarms():
    assert alarms(40, TRUTH) <= stats.binom.ppf(0.995, 40, 0.05)


@pytest.mark.slow
def test_equal_sweeps_of_the_whole_size_raise_at_most_five_percent_alarms():
    assert alarms(200, true_logs()) <= 10


def planted(sweeps, effect, process_sd, truth, known):
    """Power, and false verdicts per sweep, when 5 % of the tasks become slower by ``effect``."""
    hits = false = 0
    slow = round(0.05 * len(truth))
    for seed in range(sweeps):
        keys = np.random.default_rng(seed).permutation(len(truth))[:slow]
        places = {list(truth)[key] for key in keys}
        after = {key: log + (math.log1p(-effect) if key in places else 0.0) for key, log in truth.items()}
        base = synthetic_run(truth, seed=2 * seed + 1, process_sd=process_sd)
        new = synthetic_run(after, seed=2 * seed + 2, process_sd=process_sd)
        found = compare(base, new, process_sd=process_sd if known else None)
        named = [(change.new.suite, change.new.model, change.new.dtype) in places for change in found.of(Verdict.SLOWER)]
        hits += sum(named)
        false += len(named) - sum(named) + len(found.of(Verdict.FASTER))
    return hits / (sweeps * slow), false / sweeps


def test_a_planted_regression_is_found():
    power, false = planted(8, effect=0.08, process_sd=0.01, truth=true_logs({"toy": 80}), known=False)
    assert power > 0.9
    assert false < 1.5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("effect", "process_sd", "known", "least", "most"),
    [(0.05, 0.005, False, 0.98, 1.0), (0.05, 0.01, True, 0.55, 0.8), (0.05, 0.01, False, 0.45, 0.75), (0.03, 0.01, True, 0.03, 0.25)],
)
def test_power_is_what_one_process_per_side_allows(effect, process_sd, known, least, most):
    """At 1 % between processes one run per side finds about two thirds of the 5 % regressions and hardly any of 3 %."""
    power, false = planted(40, effect, process_sd, true_logs(), known)
    assert least <= power <= most
    assert false <= 1.0


def test_four_processes_per_side_find_what_one_leaves_unclear():
    """The second stage: fresh measurements of the unclear tasks only, 4 processes each, so a quarter of the variance in their intervals."""
    truth = true_logs({"toy": 6})
    after = {key: log + (math.log(0.95) if place < 4 else 0.0) for place, (key, log) in enumerate(truth.items())}
    found = 0
    for seed in range(20):
        sides = [synthetic_run(logs, seed=2 * seed + side, process_sd=0.0, pair_sd=0.01 / 2) for side, logs in enumerate((truth, after))]
        sides = [replace(run, planned=tuple(replace(task, processes=4) for task in run.planned)) for run in sides]
        found += len(compare(*sides).of(Verdict.SLOWER))
    assert found / (20 * 4) > 0.95


# What is compared, and what is not -----------------------------------------------------------------------------------------------------


def test_a_run_against_itself_is_the_same_everywhere():
    run = synthetic_run(TRUTH)
    found = compare(run, run)
    assert len(found.of(Verdict.SAME)) == len(run.rows)
    assert found.environment == ()
    assert all(score.ratio == 1 for score in found.scores)


def test_a_faster_baseline_is_not_the_compilers_fault():
    run = synthetic_run(TRUTH)

    def faster_eager(place, row):
        if place != 7:
            return row
        return replace(
            row, eager_ms=row.eager_ms * 0.8, **{name: getattr(row, name) * 0.8 for name in ("speedup", "speedup_low", "speedup_high")}
        )

    (slower,) = compare(run, changed(run, faster_eager)).of(Verdict.SLOWER)
    assert (slower.moved, slower.eager, slower.compiled) == (Moved.EAGER, pytest.approx(0.8), pytest.approx(1.0))

    def slower_compiled(place, row):
        if place != 7:
            return row
        halved = {name: getattr(row, name) / 1.25 for name in ("speedup", "speedup_low", "speedup_high")}
        return replace(row, compiled_ms=row.compiled_ms * 1.25, **halved)

    (slower,) = compare(run, changed(run, slower_compiled)).of(Verdict.SLOWER)
    assert slower.moved is Moved.COMPILED
    assert math.log(slower.eager) - math.log(slower.compiled) == pytest.approx(slower.judgement.change)


def test_on_another_gpu_nobody_says_which_side_moved():
    run = synthetic_run(TRUTH)
    found = compare(run, changed(run, lambda place, row: replace(row, device="NVIDIA A100")))
    assert ("device", "NVIDIA H200", "NVIDIA A100") in found.environment
    assert {change.moved for change in found.changes} == {None}
    text = printed(lambda console: render_comparison(found, console))
    assert text.index("NVIDIA A100") < text.index("matched tasks")


def test_tasks_that_cannot_be_compared_are_told_apart():
    base = synthetic_run(TRUTH, run_id="base")
    names = [row.task_id for row in base.rows]
    new = replace(base, run_id="new")
    base = changed(base, lambda place, row: failed(row) if place in (1, 2) else row)

    def spoil(place, row):
        spoilt = {0: failed(row), 1: failed(row), 3: replace(row, batch_size=64), 4: replace(row, carried_from="base")}
        return spoilt.get(place, row)

    new = changed(new, spoil)
    new = replace(new, rows=(*new.rows[:5], *new.rows[6:], replace(new.rows[6], task_id="toy/extra/amp/training/inductor")))
    found = compare(base, new)
    assert [row.task_id for row in found.newly_failing] == [names[0]]
    assert [row.task_id for row in found.newly_passing] == [names[2]]
    assert found.failing_in_both == (names[1],)
    assert found.unlike == (names[3],)
    assert found.carried == (names[4],)
    assert found.only_in_base == (names[5],)
    assert found.only_in_new == ("toy/extra/amp/training/inductor",)
    assert not {change.task_id for change in found.changes} & set(names[:6])
    text = printed(lambda console: render_comparison(found, console))
    assert "newly failing: 1 tasks" in text
    assert "1 only in the base" in text


def test_scores_are_over_matched_tasks_only():
    base = synthetic_run({("toy", "a", "amp"): 0.0, ("toy", "b", "amp"): 2.0, ("toy", "a", "float32"): 0.0}, process_sd=0, pair_sd=0)
    new = changed(base, lambda place, row: failed(row) if place == 1 else row)
    (score,) = compare(base, new, **SURE).scores
    assert (score.base, score.new, score.tasks) == (pytest.approx(1.0), pytest.approx(1.0), 2)


def test_the_interval_of_the_score_ratio_covers():
    pairs = (equal_pair(seed, true_logs({"toy": 12})) for seed in range(60))
    hits = sum(score.low <= 1 <= score.high for pair in pairs for score in compare(*pair, process_sd=0.01).scores)
    assert stats.binom.ppf(0.001, 60, 0.95) <= hits


def test_json_says_it_all():
    base, new = equal_pair(3)
    data = json.loads(json.dumps(as_data(compare(base, new)), allow_nan=False))
    assert sum(data["counts"].values()) == len(data["changes"]) == 120
    assert {"verdict", "ratio", "low", "high", "q", "eager_ratio", "compiled_ratio", "moved", "base", "new"} <= set(data["changes"][0])


# Bad input --------------------------------------------------------------------------------------------------------------------------


def test_runs_without_a_common_task_are_refused():
    with pytest.raises(UsageError, match="no task in common"):
        compare(synthetic_run({("toy", "a", "amp"): 0.1}), synthetic_run({("toy", "b", "amp"): 0.1}))


def test_nothing_passed_in_both_is_a_comparison_without_changes():
    run = synthetic_run({("toy", "a", "amp"): 0.1})
    found = compare(run, changed(run, lambda place, row: failed(row)))
    assert (found.changes, found.scores, found.groups) == ((), (), ())
    assert printed(lambda console: render_comparison(found, console))
    json.dumps(as_data(found), allow_nan=False)


def test_a_mixed_run_is_refused_by_name():
    run = synthetic_run(TRUTH)
    two = changed(run, lambda place, row: replace(row, device="NVIDIA A100") if place else row)
    with pytest.raises(UsageError, match="NVIDIA A100"):
        compare(run, two)
    assert compare(run, two, allow_mixed=True).changes


def test_rows_without_intervals_get_no_verdict():
    run = synthetic_run(TRUTH)
    found = compare(run, changed(run, lambda place, row: replace(row, speedup_high=None) if place == 0 else row))
    assert len(found.changes) == len(run.rows) - 1
    assert any("1 tasks passed in both runs but have no interval" in remark for remark in found.remarks)


def test_incomplete_runs_and_other_weights_are_said():
    run = synthetic_run(TRUTH)
    found = compare(run, replace(run, rows=run.rows[2:], weights={"amp": 1.0}))
    assert any("2 of 120 planned tasks have no row" in remark for remark in found.remarks)
    assert any("weigh" in remark for remark in found.remarks)


def test_what_is_read_suffices(tmp_path):
    base, new = equal_pair(5)
    for run in (base, new):
        store_run(str(tmp_path), run)
    store = Store(str(tmp_path))
    pruned, whole = (compare(*(load(store.resolve(name), *columns) for name in ("base", "new"))) for columns in ((COLUMNS,), ()))
    assert as_data(pruned) == as_data(whole)


# The plan that settles the unclear ones ---------------------------------------------------------------------------------------------

MANIFEST = """
schema_version: 1
name: original
seed: 7
matrix: {dtype: [float32, amp], mode: [training, inference], backend: [inductor, tuned]}
backends: {tuned: {mode: max-autotune-no-cudagraphs}}
precision: {tf32: false, autocast_dtype: bfloat16}
training: {optimizer: sgd}
measurement: {half_width: 0.02, min_pairs: 9}
accuracy: {iterations: 3}
execution: {device: cpu, num_cpus: 2, threads: 1}
suites:
  timm:
    - {name: lcnet_050, batch_size: 4}
    - {name: resnet18, batch_size: 2, eval_batch_size: 8, optimizer: none, tolerance: 0.02, tolerance_reason: a test}
  huggingface:
    - {name: DistilBertForMaskedLM, batch_size: 1, options: {seq_len: 64}, measurement: {max_pairs: 20}, num_cpus: 1}
"""


def specs_of(path, text):
    path.write_text(text)
    return {task.spec.task_id: task.spec for task in plan_tasks(load_manifest(path), "cpu").tasks if task.skip is None}


def test_the_confirming_manifest_measures_the_same_thing_in_more_processes(tmp_path):
    specs = specs_of(tmp_path / "original.yaml", MANIFEST)
    unclear = [spec for place, spec in enumerate(specs.values()) if place % 3 != 1]
    texts = confirmation(unclear, "confirm", processes=5)
    assert set(texts) == {(spec.mode, spec.backend) for spec in unclear}
    planned = {}
    for place, text in enumerate(texts.values()):
        planned |= specs_of(tmp_path / f"confirm{place}.yaml", text)
    assert set(planned) == {spec.task_id for spec in unclear}
    for task_id, spec in planned.items():
        assert spec.measure.processes == 5
        assert digest(replace(spec, measure=specs[task_id].measure)) == specs[task_id].digest
        assert spec.deadlines.task_s == 5 * specs[task_id].deadlines.task_s


def test_nothing_unclear_plans_nothing():
    assert confirmation([], "confirm") == {}

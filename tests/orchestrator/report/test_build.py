"""Rows to answers: the numbers against DuckDB and by hand, the counts, and every kind of run that has no answer."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import duckdb
import numpy as np
import pytest

from orchestrator.errors import ExitCode, UsageError
from orchestrator.report.build import build
from orchestrator.report.data import as_json
from orchestrator.report.html import render_html
from orchestrator.report.present import as_text
from orchestrator.report.rows import COLUMNS, Run, load, rows_of
from orchestrator.report.synthetic import WEIGHTS, failed, store_run, synthetic_run, true_logs
from orchestrator.store import Store

FORMS = ("text", "json", "markdown")


def small(**logs: float) -> Run:
    """One suite, models m0, m1, ...; ``amp=[...]`` and ``float32=[...]`` are speedups."""
    truth = {("toy", f"m{place}", dtype): math.log(speedup) for dtype, speedups in logs.items() for place, speedup in enumerate(speedups)}
    return synthetic_run(truth, process_sd=0.0, pair_sd=0.0)


def with_rows(run: Run, change) -> Run:
    return replace(run, rows=tuple(change(place, row) for place, row in enumerate(run.rows)))


def test_the_score_by_hand():
    answers = build(small(amp=[1.51, 1.51], float32=[1.21, 1.21]))
    (configuration,) = answers.configurations
    assert configuration.score.value == pytest.approx(1.435)
    assert {variant.name: round(variant.weighted, 4) for variant in configuration.variants} == {
        "passing only": 1.435,
        "failures as 1.0": 1.435,
        "clipped at 1.0": 1.435,
        "weights in logs": 1.4287,
        "suite-balanced": 1.435,
    }
    assert answers.exit_code is ExitCode.PASSED


def test_variants_differ_where_their_definitions_do():
    run = small(amp=[0.5, 2.0, 4.0], float32=[1.0, 1.0, 1.0])
    run = with_rows(run, lambda place, row: failed(row) if place == 2 else row)
    variants = {variant.name: variant.by_dtype["amp"] for variant in build(run).configurations[0].variants}
    assert variants["passing only"] == pytest.approx(1.0)
    assert variants["failures as 1.0"] == pytest.approx(1.0)
    assert variants["clipped at 1.0"] == pytest.approx(math.sqrt(2))


def test_a_missing_row_counts_as_planned_in_every_variant():
    run = small(amp=[4.0, 4.0], float32=[1.0, 1.0])
    run = replace(run, rows=run.rows[1:])
    answers = build(run)
    (configuration,) = answers.configurations
    assert {variant.name: variant.by_dtype["amp"] for variant in configuration.variants}["failures as 1.0"] == pytest.approx(2.0)
    assert (answers.rate.passed, answers.rate.planned, answers.rate.missing) == (3, 4, 1)
    assert answers.missing == ("toy/m0/amp/training/inductor",)
    assert answers.exit_code is ExitCode.INFRASTRUCTURE


def test_suite_geomeans_equal_duckdb(tmp_path):
    store_run(str(tmp_path), synthetic_run(failing=range(3, 320, 25)))
    query = "SELECT suite, dtype, exp(avg(ln(speedup))), count(*) FROM '{}/*/tasks/*.parquet' WHERE status = 'pass' GROUP BY ALL"
    expected = duckdb.sql(query.format(tmp_path)).fetchall()
    found = as_json(build(load(Store(str(tmp_path)).resolve("latest"))))["suites"]
    assert len(expected) == len(found) == 6
    for suite, dtype, mean, count in expected:
        (answer,) = [answer for answer in found if (answer["suite"], answer["dtype"]) == (suite, dtype)]
        assert answer["geomean"] == pytest.approx(mean, rel=1e-14)
        assert answer["passed"] == count


def test_a_stored_run_gives_the_answers_of_the_rows_it_was_made_from(tmp_path):
    run = synthetic_run(failing=(1, 2, 3))
    stored = load(store_run(str(tmp_path), run))
    assert stored.planned == run.planned
    one, other = (as_json(build(which)) for which in (run, stored))
    for name in ("score", "suites", "configurations", "passed", "planned", "statuses", "quality", "graph_break_reasons", "environment"):
        assert one[name] == other[name], name


def test_only_the_wanted_columns_are_read(tmp_path):
    store = store_run(str(tmp_path), synthetic_run({("toy", "m", "amp"): 0.1}))
    (row,) = rows_of(store.rows(("task_id", "suite", "model", "dtype", "mode", "backend", "status", "speedup")))
    assert row.speedup is not None
    assert row.device is None
    assert set(COLUMNS) <= set(store.rows().column_names)


def test_json_keeps_the_contract_and_full_precision():
    answers = build(synthetic_run(failing=(5,)))
    data = json.loads(as_text(answers, "json"))
    assert set(data["score"]) >= {"weighted", "low", "high", "by_dtype"}
    assert set(data["score"]["by_dtype"]) == {"amp", "float32"}
    assert (data["planned"], data["passed"], data["pass_rate"]["passed"]) == (326, 325, 325)
    assert data["score"]["weighted"] == answers.configurations[0].score.value
    assert data["score"]["low"] < data["score"]["weighted"] < data["score"]["high"]
    assert data["score"]["generalisation"]["low"] < data["score"]["low"]
    assert len(data["tasks"]) == 326


def test_a_process_sd_widens_the_measurement_interval_only():
    run = synthetic_run()
    narrow, wide = (build(run, process_sd=sd).configurations[0].score for sd in (0.0, 0.02))
    assert wide.measurement.high - wide.measurement.low > 2 * (narrow.measurement.high - narrow.measurement.low)
    assert wide.generalisation == narrow.generalisation


def test_modes_and_backends_are_never_mixed():
    run = small(amp=[2.0], float32=[2.0])
    other = [replace(row, task_id=row.task_id.replace("training", "inference"), mode="inference", speedup=8.0) for row in run.rows]
    answers = build(replace(run, rows=(*other, *run.rows)))
    assert [(c.mode, round(c.score.value, 9)) for c in answers.configurations] == [("training", 2.0), ("inference", 8.0)]


def test_a_process_sd_is_not_added_to_tasks_that_ran_in_several_processes():
    run = synthetic_run()
    repeated = replace(run, planned=tuple(replace(task, processes=4) for task in run.planned))
    plain, asked = (build(repeated, process_sd=sd) for sd in (0.0, 0.02))
    assert plain.configurations == asked.configurations
    assert plain.processes_covered
    assert build(run).processes_covered
    assert not build(run, process_sd=0.0).processes_covered


SMALL_TRUTH = true_logs({"toy": 16})
SMALL_SCORE = sum(
    weight * math.exp(np.mean([log for key, log in SMALL_TRUTH.items() if key[2] == dtype])) for dtype, weight in WEIGHTS.items()
)


def calibrated(seed):
    """A run of which every fourth task is measured in five processes."""
    once, often = (synthetic_run(SMALL_TRUTH, seed=2 * seed + part, processes=count) for part, count in enumerate((1, 5)))
    rows, planned = (
        tuple(
            two if place % 4 == 0 else one for place, (one, two) in enumerate(zip(getattr(once, name), getattr(often, name), strict=True))
        )
        for name in ("rows", "planned")
    )
    return replace(once, rows=rows, planned=planned)


@pytest.mark.parametrize(
    ("made", "process_sd", "least", "most"),
    [
        (lambda seed: synthetic_run(SMALL_TRUTH, seed=seed), 0.0, 0, 65),  # the interval of one process alone misses
        (lambda seed: synthetic_run(SMALL_TRUTH, seed=seed), 0.01, 90, 100),
        (lambda seed: synthetic_run(SMALL_TRUTH, seed=seed), None, 98, 100),  # twice the truth is assumed
        (lambda seed: synthetic_run(SMALL_TRUTH, seed=seed, processes=4), None, 90, 100),
        (calibrated, None, 90, 100),
    ],
)
def test_the_interval_of_the_score_covers_what_fresh_processes_change(monkeypatch, made, process_sd, least, most):
    monkeypatch.setattr("orchestrator.report.build.generalisation_interval", lambda *_: None)
    scores = (build(made(seed), process_sd=process_sd).configurations[0].score for seed in range(100))
    assert least <= sum(score.measurement.low <= SMALL_SCORE <= score.measurement.high for score in scores) <= most


def test_a_calibration_set_is_used_for_its_class_and_named():
    (error,) = build(calibrated(1)).process_errors
    assert (error.kind, error.tasks) == ("unknown on CUDA", 24)
    assert error.source == "as measured by the tasks with several processes"
    assert error.sd == pytest.approx(0.01, rel=0.5)
    few = replace(calibrated(1), rows=calibrated(1).rows[:2])
    (error,) = build(few).process_errors
    assert (error.sd, error.tasks) == (0.02, 1)
    assert "assumed" in error.source


def test_how_long_a_run_took_is_what_its_own_tasks_took():
    run = replace(synthetic_run(SMALL_TRUTH), ended=9e9)
    assert build(run).took_s == 31 * 10 + 60
    old = with_rows(run, lambda place, row: replace(row, carried_from="x", started=1.0) if place == 0 else row)
    assert build(old).took_s == 30 * 10 + 60
    assert build(replace(run, rows=())).took_s is None


def test_every_mean_says_how_many_tasks_it_is_over():
    run = with_rows(small(amp=[2.0, 4.0, 8.0], float32=[1.0, 1.0, 1.0]), lambda place, row: failed(row) if place == 2 else row)
    variants = {variant.name: (variant.tasks["amp"], variant.planned["amp"]) for variant in build(run).configurations[0].variants}
    assert variants == {name: (3 if name == "failures as 1.0" else 2, 3) for name in variants}
    for form in FORMS:
        text = as_text(build(run), form)
        assert '"tasks": {' in text if form == "json" else "2 of 3" in text


# Bad input --------------------------------------------------------------------------------------------------------------------------


def undefined() -> dict[str, Run]:
    both = small(amp=[2.0, 2.0], float32=[1.5, 1.5])
    return {
        "nothing planned": replace(both, planned=(), rows=()),
        "no row": replace(both, rows=()),
        "one dtype": small(amp=[2.0, 2.0]),
        "nothing passed": with_rows(both, lambda place, row: failed(row, place)),
        "no weights": replace(both, weights={}),
        "one dtype passed": with_rows(both, lambda place, row: failed(row) if row.dtype == "amp" else row),
    }


@pytest.mark.parametrize("name", undefined())
def test_a_score_that_is_not_defined_says_so_in_every_form(name):
    answers = build(undefined()[name])
    assert all(configuration.score.value is None and configuration.score.why_not for configuration in answers.configurations)
    assert json.loads(as_text(answers, "json"))["planned"] == answers.rate.planned
    if answers.configurations:
        assert "not defined" in as_text(answers, "text")
    assert as_text(answers, "markdown")


def test_what_a_single_dtype_does_say_is_said():
    (configuration,) = build(small(amp=[2.0, 2.0])).configurations
    assert configuration.dtypes[0].geomean.value == pytest.approx(2.0)
    assert "float32" in configuration.score.why_not


def test_one_model_has_a_score_and_no_generalisation():
    score = build(small(amp=[2.0], float32=[2.0])).configurations[0].score
    assert score.value == pytest.approx(2.0)
    assert score.generalisation is None


@pytest.mark.parametrize("speedup", [0.0, math.inf, math.nan, -1.0, None])
def test_a_pass_without_a_usable_speedup_is_in_no_mean(speedup):
    run = small(amp=[2.0, 3.0], float32=[1.5, 1.5])
    run = with_rows(run, lambda place, row: replace(row, speedup=speedup) if place == 1 else row)
    answers = build(run)
    assert answers.configurations[0].dtypes[0].geomean.value == pytest.approx(2.0)
    assert (answers.rate.passed, answers.rate.failed) == (3, 1)
    assert answers.exit_code is ExitCode.SOME_FAILED
    assert any("in no mean" in remark for remark in answers.remarks)
    assert all(as_text(answers, form) for form in FORMS)


def test_a_row_without_an_interval_leaves_the_mean_without_one_and_says_so():
    run = with_rows(small(amp=[2.0, 2.0], float32=[2.0, 2.0]), lambda place, row: replace(row, speedup_low=None) if place == 0 else row)
    score = build(run).configurations[0].score
    assert score.value == pytest.approx(2.0)
    assert score.measurement is None
    assert "1 of the tasks that passed have no interval" in score.why_not


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"device": "NVIDIA A100-SXM4-40GB"}, "NVIDIA A100-SXM4-40GB (1 tasks)"),
        ({"versions": {"torch": "2.12.0"}}, "torch: 2.11.0+cu129 (3 tasks), 2.12.0 (1 tasks)"),
    ],
)
def test_mixed_environments_are_refused_by_name(change, named):
    run = with_rows(small(amp=[2.0, 2.0], float32=[2.0, 2.0]), lambda place, row: replace(row, **change) if place == 0 else row)
    with pytest.raises(UsageError, match="--allow-mixed") as refusal:
        build(run)
    assert named in str(refusal.value)
    allowed = build(run, allow_mixed=True)
    assert allowed.configurations[0].score.value == pytest.approx(2.0)
    assert any(named in remark for remark in allowed.remarks)


def test_two_nodes_and_two_gpus_of_one_model_are_one_environment():
    run = with_rows(small(amp=[2.0, 2.0], float32=[2.0, 2.0]), lambda place, row: replace(row, node=f"n{place}", gpu_uuid=f"g{place}"))
    assert build(run).configurations[0].score.value == pytest.approx(2.0)


def test_a_failed_row_elsewhere_mixes_nothing():
    run = with_rows(
        small(amp=[2.0, 2.0], float32=[2.0, 2.0]), lambda place, row: failed(replace(row, device="other")) if place == 0 else row
    )
    assert build(run).configurations[0].score.value == pytest.approx(2.0)


def test_exit_codes():
    run = small(amp=[2.0, 2.0], float32=[2.0, 2.0])

    def code(status):
        return build(with_rows(run, lambda place, row: replace(failed(row), status=status) if place == 0 else row)).exit_code

    assert code("fail_compile") is ExitCode.SOME_FAILED
    assert code("unsupported") is ExitCode.SOME_FAILED
    assert code("skipped") is ExitCode.PASSED
    assert code("infra_error") is ExitCode.INFRASTRUCTURE
    assert build(with_rows(run, lambda place, row: replace(failed(row), status="skipped"))).exit_code is ExitCode.SOME_FAILED
    assert build(replace(run, rows=(), planned=())).exit_code is ExitCode.INFRASTRUCTURE


def test_a_damaged_file_is_named_in_the_report(tmp_path):
    store_run(str(tmp_path), small(amp=[2.0], float32=[2.0]))
    (part,) = tmp_path.glob("*/tasks/*.parquet")
    part.write_bytes(part.read_bytes()[:-20])
    answers = build(load(Store(str(tmp_path)).resolve("latest")))
    assert any(part.name in remark for remark in answers.remarks)
    assert answers.exit_code is ExitCode.INFRASTRUCTURE


def test_fallbacks_to_eager_are_said():
    run = with_rows(small(amp=[2.0], float32=[2.0]), lambda place, row: replace(row, fell_back=True))
    assert any("fell back to eager in 2 tasks" in remark for remark in build(run).remarks)


class TestPassRate:
    def rate(self, change):
        run = with_rows(small(amp=[1.5] * 4), change)
        (suite,) = build(run).configurations[0].suites
        return suite.rate

    def test_every_suite_has_its_interval_in_every_form(self):
        answers = build(small(amp=[1.5] * 4, float32=[1.2] * 4))
        suites = as_json(answers)["suites"]
        assert [round(suite["pass_rate"]["low"], 3) for suite in suites] == [0.51, 0.51]  # Wilson, 4 of 4
        for form in ("text", "markdown"):
            assert as_text(answers, form).replace("\\", "").count("100.0 % [51.0, 100.0]") >= 2

    @pytest.mark.parametrize(
        ("fields", "ours", "upstream"),
        [
            ({}, 4, (4, 4)),
            ({"status": "fail_accuracy", "accuracy": "fail"}, 3, (3, 4)),
            ({"status": "fail_compile", "phase": "compile", "accuracy": None, "speedup": None}, 3, (3, 4)),
            ({"status": "timeout", "phase": "time", "speedup": None}, 3, (4, 4)),  # upstream looks at accuracy in a run of its own
            ({"status": "fail_eager", "phase": "eager", "accuracy": None, "speedup": None}, 3, (3, 3)),
            ({"status": "skipped", "phase": "start", "accuracy": None, "speedup": None}, 3, (3, 3)),
            ({"accuracy": "skipped"}, 3, (4, 4)),
        ],
    )
    def test_beside_upstreams_definition(self, fields, ours, upstream):
        rate = self.rate(lambda place, row: replace(row, **fields) if place == 0 else row)
        assert (rate.passed, rate.planned) == (ours, 4)
        assert (rate.upstream_passed, rate.upstream_counted) == upstream

    def test_a_task_that_was_not_judged_enters_the_means_and_did_not_pass(self):
        run = with_rows(small(amp=[1.5] * 4, float32=[1.5] * 4), lambda place, row: replace(row, accuracy="skipped") if place < 2 else row)
        answers = build(run)
        assert (answers.rate.passed, answers.rate.unjudged, answers.rate.failed, answers.rate.value) == (6, 2, 0, 0.75)
        assert answers.configurations[0].score.value == pytest.approx(1.5)
        assert answers.exit_code is ExitCode.PASSED
        for form in ("text", "markdown"):
            assert "accuracy was not checked in 2 of the 8 tasks" in as_text(answers, form)
        assert "2 timed without a verdict on accuracy" in as_text(answers, "text")
        data = as_json(answers)
        assert (data["passed"], data["pass_rate"]["unjudged"], data["score"]["tasks"]) == (6, 2, 8)

    def test_a_run_that_judged_nothing_says_so(self):
        run = with_rows(small(amp=[1.5] * 4, float32=[1.5] * 4), lambda place, row: replace(row, accuracy="skipped"))
        answers = build(run)
        assert (answers.rate.passed, answers.rate.value) == (0, 0.0)
        assert "nothing was judged" in as_text(answers, "text")
        assert "nothing was judged" in render_html(answers)

    def test_exclusions_did_not_pass_and_are_counted(self):
        rate = self.rate(lambda place, row: replace(failed(row), status="skipped") if place < 2 else row)
        assert (rate.passed, rate.planned, rate.skipped) == (2, 4, 2)
        run = with_rows(small(amp=[1.5] * 4), lambda place, row: replace(failed(row), status="skipped") if place < 2 else row)
        assert "2 of 4, 50.0 % [15.0, 85.0]; 2 excluded by the manifest" in as_text(build(run), "text")


def test_rows_without_a_usable_speedup_are_told_apart():
    values = {0: 0.0, 1: math.inf, 2: math.nan}
    run = with_rows(small(amp=[2.0] * 4, float32=[1.5] * 4), lambda place, row: replace(row, speedup=values.get(place, row.speedup)))
    answers = build(run)
    assert {group.signature for group in answers.failures} == {f"no usable speedup ({value})" for value in values.values()}
    assert answers.statuses == {"pass": 5, "pass without a usable speedup": 3}


def test_a_dtype_that_nobody_planned_did_not_fail():
    assert build(small(amp=[2.0])).configurations[0].score.why_not == "no task was planned in float32"
    run = with_rows(small(amp=[2.0], float32=[2.0]), lambda place, row: failed(row) if row.dtype == "float32" else row)
    assert build(run).configurations[0].score.why_not == "no task passed in float32"


def test_devices_that_are_mixed_on_purpose_have_tables_of_their_own():
    run = small(amp=[2.0, 2.0, 4.0, 1.0], float32=[2.0, 2.0, 4.0, 1.0])
    new = "NVIDIA H200"
    run = with_rows(run, lambda _, row: replace(row, device=new, node="b") if row.model == "m2" else replace(row, device="A100", node="a"))
    run = with_rows(run, lambda _, row: failed(replace(row, device=None)) if row.model == "m1" else row)  # it never knew its device
    run = replace(run, by_device=True, rows=tuple(row for row in run.rows if row.model != "m3"))
    answers = build(run)
    assert [part.title for part in answers.configurations] == [
        ("training", "inductor", "A100"),
        ("training", "inductor", new),
        ("training", "inductor", "no device known"),
    ]
    assert [part.score.value for part in answers.configurations] == [pytest.approx(2.0), pytest.approx(4.0), None]
    assert [(part.rate.passed, part.rate.planned) for part in answers.configurations] == [(2, 4), (2, 2), (0, 2)]
    assert as_json(answers)["score"]["device"] == "A100"
    for form in ("text", "markdown"):
        assert f"training, inductor, {new}" in as_text(answers, form)
    assert f"Training with inductor on {new}" in render_html(answers)
    alike = build(with_rows(run, lambda _, row: replace(row, device=new, node="b")))
    assert [part.device for part in alike.configurations] == [None]  # it might have mixed them, and did not

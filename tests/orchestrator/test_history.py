"""Change points against a slow reference and simulations; series over runs: what enters them and what splits them."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.errors import UsageError
from orchestrator.history import Kind, history
from orchestrator.report.observations import observe
from orchestrator.report.present import printed
from orchestrator.report.synthetic import LIBRARIES, STARTED_S, failed, store_run, synthetic_run, true_logs
from orchestrator.report.timeline import as_data, render_history, render_page, sparkline
from orchestrator.statistics import changepoints
from orchestrator.statistics.changepoints import MIN_SEGMENT, change_points
from orchestrator.store import Store

DAY_S = 86_400.0


def test_a_planted_step_is_found_where_it_is():
    series = np.random.default_rng(2).normal(0.3, 0.01, (200, 40))
    series[:, 25:] -= 0.06
    found = change_points(series)
    exact = [points for points in found if [point.index for point in points] == [25]]
    assert len(exact) > 170
    covered = [points[0].low <= -0.06 <= points[0].high for points in exact]
    assert np.mean(covered) > 0.88


def test_equal_runs_rarely_show_a_change():
    rng = np.random.default_rng(3)
    for length, most in ((10, 0.03), (30, 0.03), (120, 0.01)):
        found = change_points(rng.normal(0, 0.02, (600, length)))
        assert np.mean([bool(points) for points in found]) <= most


def test_one_bad_night_is_no_new_level():
    series = np.random.default_rng(4).normal(0, 0.01, (100, 60))
    series[:, 30] -= 0.5
    assert np.mean([bool(points) for points in change_points(series)]) <= 0.05


def test_gaps_keep_their_place():
    series = np.random.default_rng(5).normal(0, 0.005, (1, 60))
    series[0, 40:] += 0.1
    series[0, [3, 7, 8, 20, 39]] = math.nan
    (points,) = change_points(series)
    assert [point.index for point in points] == [40]


def test_short_and_empty_series_have_no_changes():
    assert change_points(np.array([[0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0]])) == [[]]
    assert change_points(np.empty((0, 10))) == []
    assert change_points(np.full((2, 10), math.nan)) == [[], []]
    assert change_points(np.zeros((1, 500))) == [[]]


def _slow_partition(values, penalty):
    """Optimal partitioning by its recursion, with no cleverness at all."""
    best, origin = {0: -penalty}, {}
    for end in range(MIN_SEGMENT, len(values) + 1):
        choices = []
        for start in range(end - MIN_SEGMENT + 1):
            if start in best:
                segment = values[start:end]
                level = sum(segment) / len(segment)
                choices.append((best[start] + sum((value - level) ** 2 for value in segment) + penalty, start))
        best[end], origin[end] = min(choices)
    end, starts = len(values), []
    while origin[end] > 0:
        end = origin[end]
        starts.append(end)
    return starts[::-1]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(8, 30))
def test_the_search_equals_a_slow_one(seed, length):
    rng = np.random.default_rng(seed)
    scaled = rng.normal(0, 1, length) + np.repeat(rng.normal(0, 5, length), 5)[:length]
    scaled -= scaled.mean()
    origins = changepoints._origins(scaled[None], 9.0)
    assert changepoints._walk_back(origins[0]) == _slow_partition(list(scaled), 9.0)


# Series over stored runs ---------------------------------------------------------------------------------------------------------------


def nightly(root, nights=14, change=lambda night, run: run, truth=None):
    """A store of runs, a night apart; from night 8 on torch is newer and model_001 slower by a fifth."""
    truth = truth or true_logs({"timm": 3, "huggingface": 2})
    for night in range(nights):
        new = night >= 8
        logs = {key: log + (math.log(0.8) if new and key[1] == "model_001" else 0.0) for key, log in truth.items()}
        versions = {**LIBRARIES, "torch": "2.12.0" if new else "2.11.0"}
        run = synthetic_run(
            logs, run_id=f"night-{night:02d}", seed=night, started=STARTED_S + DAY_S * night, versions=versions, process_sd=0.005
        )
        store_run(str(root), change(night, run))
    return Store(str(root))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return nightly(tmp_path_factory.mktemp("history"))


def test_changes_name_their_run_and_what_else_changed(store):
    found = history(observe(store))
    changed = {series.name: series.changes for series in found.of(Kind.TASK) if series.changes}
    assert {name.split("/")[1] for name in changed} == {"model_001"}
    assert len(changed) == 4
    for (change,) in changed.values():
        assert change.run_id == "night-08"
        assert change.ratio == pytest.approx(0.8, rel=0.03)
        assert change.environment == (("torch", "2.11.0", "2.12.0"),)
    (score,) = found.of(Kind.SCORE)
    assert [change.run_id for change in score.changes] == ["night-08"]
    assert len(found.of(Kind.SUITE)) == 4


def test_the_group_level_does_not_move_with_who_passed(tmp_path):
    truth = {("toy", "slow", "amp"): 0.0, ("toy", "fast", "amp"): math.log(4.0)}

    def without_the_fast_one(night, run):
        return replace(run, rows=tuple(failed(row) if row.model == "fast" and night % 2 else row for row in run.rows), weights={"amp": 1.0})

    found = history(observe(nightly(tmp_path, 10, without_the_fast_one, truth)))
    (score,) = found.of(Kind.SCORE)
    assert score.values == pytest.approx(np.full(10, 2.0), rel=0.02)


def test_a_model_can_be_named_in_every_way(store):
    seen = observe(store)
    for name, count in (("model_001", 4), ("timm/model_001", 2), ("timm/*", 6), ("*/model_00[01]", 8), ("timm/model_000/amp/*", 1)):
        found = history(seen, name)
        assert (len(found.series), {series.kind for series in found.series}) == (count, {Kind.TASK}), name
    with pytest.raises(UsageError, match="timm/model_000"):
        history(seen, "resnet")


def test_gpus_and_batch_sizes_are_never_one_series(tmp_path):
    def vary(night, run):
        device = "NVIDIA A100" if night % 2 else "NVIDIA H200"
        return replace(run, rows=tuple(replace(row, device=device, batch_size=64 if night >= 10 else 32) for row in run.rows))

    found = history(observe(nightly(tmp_path, 14, vary, {("toy", "m", "amp"): 0.1})))
    tasks = found.of(Kind.TASK)
    assert {(series.device, series.name.split(" at ")[-1]) for series in tasks} == {
        (device, f"batch size {size}") for device in ("NVIDIA A100", "NVIDIA H200") for size in (32, 64)
    }
    assert all(len(series.runs) == 7 for series in tasks)


def test_mixed_failed_and_damaged_runs(tmp_path):
    def spoil(night, run):
        if night == 2:
            return replace(run, rows=tuple(replace(row, device=f"GPU {place}") for place, row in enumerate(run.rows)))
        if night == 3:
            rows = (replace(row, versions={**row.versions, "timm": "1.0.30"}) if place % 2 else row for place, row in enumerate(run.rows))
            return replace(run, rows=tuple(rows))
        return replace(run, rows=tuple(map(failed, run.rows))) if night == 4 else run

    store = nightly(tmp_path, 10, spoil)
    (tmp_path / "night-05" / "run.json").write_text("{")
    (part,) = (tmp_path / "night-06" / "tasks").glob("*.parquet")
    part.write_bytes(part.read_bytes()[:-20])
    found = history(observe(store))
    assert found.mixed == ("night-02",)
    assert [run.run_id for run in found.runs if run.mixed] == ["night-03"]
    record, rows, versions = found.remarks
    assert "night-05" in record
    assert part.name in rows
    assert "night-03 mixes versions" in versions
    assert "timm 1.0.29 + 1.0.30" in versions
    (score,) = found.of(Kind.SCORE)
    assert len(score.runs) == 6
    (text, html, data) = (
        printed(lambda console: render_history(found, console)),
        render_page(found),
        json.dumps(as_data(found), allow_nan=False),
    )
    for said in ("night-02", "night-05", part.name, "timm 1.0.29 + 1.0.30"):
        assert all(said in form for form in (text, html, data))
    assert "10 of 10 passed" in html


def test_only_the_newest_runs(store):
    assert [run.run_id for run in observe(store, newest=3).runs] == ["night-11", "night-12", "night-13"]


def test_no_runs_is_a_clear_message(tmp_path):
    with pytest.raises(UsageError, match="no runs"):
        history(observe(Store(str(tmp_path))))


def test_nothing_ever_passed(tmp_path):
    found = history(observe(nightly(tmp_path, 3, lambda night, run: replace(run, rows=tuple(map(failed, run.rows))))))
    assert found.series == ()
    assert "no change of level" in printed(lambda console: render_history(found, console))


def test_the_forms(store):
    found = history(observe(store))
    text = printed(lambda console: render_history(found, console))
    assert "torch 2.11.0 to 2.12.0" in text
    assert render_page(found).count('class="figure"') == 2
    data = json.loads(json.dumps(as_data(found), allow_nan=False))
    assert len(data["runs"]) == 14
    assert {len(series["values"]) for series in data["series"]} == {14}


def test_a_sparkline_leaves_gaps(store):
    series = history(observe(store)).series[0]
    drawn = sparkline(replace(series, values=np.array([1.0, math.nan, 2.0])))
    assert drawn == "▁ █"
    assert sparkline(replace(series, values=np.array([1.0, 1.0]))) == "▄▄"

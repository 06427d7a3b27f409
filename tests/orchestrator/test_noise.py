from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from orchestrator import history as core_history
from orchestrator.compare import compare
from orchestrator.errors import ExitCode, UsageError
from orchestrator.export import Format, export
from orchestrator.noise import class_of, noise, process_spread
from orchestrator.report.build import build
from orchestrator.report.data import as_json
from orchestrator.report.floors import as_data, render
from orchestrator.report.observations import observe
from orchestrator.report.present import as_text, printed
from orchestrator.report.rows import Planned, Row, Run, load
from orchestrator.report.synthetic import store_run, synthetic_run
from orchestrator.store import Store, finished_tasks
from tests.orchestrator.stored import a_plan, a_record, a_task, against_itself, passed


def a_row(name, eager=(1.0, 0.99, 1.01), compiled=(1.0, 0.99, 1.01), device="cuda", status="pass", **fields):
    columns = dict(zip(("aa_eager", "aa_eager_low", "aa_eager_high"), eager, strict=True))
    columns |= dict(zip(("aa_compiled", "aa_compiled_low", "aa_compiled_high"), compiled, strict=True))
    identity = (name, "toy", name, "amp", "training", "inductor")
    return Planned(*identity, device=device), Row(*identity, status, **columns | fields)


def a_run(*pairs, **fields):
    planned, rows = zip(*pairs, strict=True)
    return Run("r", planned, {"amp": 1.0}, rows, **{"aa": True} | fields)


NOTHING = (None, None, None)


def test_intervals_that_hold_one_are_counted_by_class_and_arm():
    found = noise(
        a_run(
            a_row("a", launch_bound=True),
            a_row("b", eager=(1.05, 1.02, 1.08), launch_bound=True),
            a_row("c", compiled=(0.99, 0.98, 0.999), launch_bound=False),
            a_row("d", device="cpu"),
            a_row("e"),
        )
    )
    counts = {(floor.kind, floor.arm): (floor.holding, floor.intervals) for floor in found.floors}
    assert counts["launch-bound", "eager"] == (1, 2)
    assert counts["launch-bound", "all"] == (3, 4)
    assert counts["device-bound", "compiled"] == (0, 1)
    assert counts["CPU", "all"] == counts["unknown on CUDA", "all"] == (2, 2)
    assert counts["all", "all"] == (8, 10)
    assert [(ratio.task_id, ratio.arm) for ratio in found.missed] == [("b", "eager"), ("c", "compiled")]
    assert found.exit_code is ExitCode.PASSED


def test_the_floor_is_the_distance_within_which_ratios_lie():
    rng = np.random.default_rng(0)
    logs = rng.normal(0, 0.01, 4000)
    rows = [a_row(f"m{place}", (math.exp(log), 0.5, 2.0), NOTHING) for place, log in enumerate(logs)]
    (floor, *_) = noise(a_run(*rows)).floors
    assert floor.sd == pytest.approx(0.01, rel=0.05)
    assert floor.floor == pytest.approx(0.0196, rel=0.05)
    assert floor.half_width == pytest.approx(math.log(2))


def test_tasks_without_a_ratio_are_named_and_set_the_exit_status():
    crashed = a_row("b", NOTHING, NOTHING, status="crash")
    found = noise(a_run(a_row("a"), crashed))
    assert (found.without, found.exit_code) == ((("b", "crash"),), ExitCode.SOME_FAILED)
    run = a_run(a_row("a"), crashed)
    missing = noise(replace(run, rows=run.rows[:1]))
    assert (missing.without, missing.exit_code) == ((("b", "missing"),), ExitCode.INFRASTRUCTURE)
    assert noise(a_run(crashed)).exit_code is ExitCode.SOME_FAILED


def test_text_and_json_say_the_same():
    found = noise(a_run(a_row("a", eager=(1.05, 1.02, 1.08)), a_row("b", NOTHING, NOTHING, status="crash")))
    text = printed(lambda console: render(found, console))
    assert "1 of 2" in text
    assert "missed 1.0: a, eager (unknown on CUDA" in text
    assert "no ratio: b: crash" in text
    data = json.loads(json.dumps(as_data(found), allow_nan=False))
    assert data["coverage"][-1]["intervals"] == 2
    assert data["missed"][0]["ratio"] == 1.05


def aa_store(tmp_path):
    store = Store(str(tmp_path))
    task = replace(a_task(1), aa=True)
    run = store.create(replace(a_record("aa-run"), aa=True), a_plan([task]))
    run.append([(task, against_itself(task))])
    run.close()
    return store, run


def test_nothing_takes_such_a_run_for_one_with_speedups(tmp_path):
    store, run = aa_store(tmp_path)
    loaded = load(run)
    for refused in (lambda: build(loaded), lambda: compare(loaded, loaded), lambda: export(run, Format.UPSTREAM_CSV, tmp_path)):
        with pytest.raises(UsageError, match="A/A run"):
            refused()
    assert noise(loaded).floors[-1].intervals == 2
    assert observe(store).runs == ()
    with pytest.raises(UsageError, match="no runs"):
        core_history.history(observe(store))
    assert finished_tasks(str(tmp_path)) == {}
    with pytest.raises(UsageError, match="sweep run --aa"):
        noise(replace(loaded, aa=False))


def test_ordinary_runs_beside_it_are_read_as_ever(tmp_path):
    store, _ = aa_store(tmp_path)
    ordinary = store.create(a_record("b-run"), a_plan([a_task(1)]))
    ordinary.append([(a_task(1), passed(a_task(1)))])
    ordinary.close()
    assert [run.run_id for run in observe(store).runs] == ["b-run"]


@pytest.mark.parametrize(
    ("device", "launch_bound", "kind"),
    [("cpu", None, "CPU"), ("cuda", True, "launch-bound"), ("cuda", False, "device-bound"), ("cuda", None, "unknown on CUDA")],
)
def test_classes(device, launch_bound, kind):
    assert class_of(device, launch_bound) == kind


def repeated(run, sd, count=5, every=3):
    """Every third task measured in several processes."""
    rng = np.random.default_rng(3)
    rows = [
        replace(row, process_speedups=tuple(np.exp(math.log(row.speedup) + rng.normal(0, sd, count)))) if place % every == 0 else row
        for place, row in enumerate(run.rows)
    ]
    return replace(run, rows=tuple(rows))


def test_the_spread_between_processes_is_pooled_within_tasks():
    run = repeated(synthetic_run(process_sd=0.0), sd=0.02)
    (spread,) = process_spread(run)
    assert (spread.kind, spread.tasks, spread.freedom) == ("unknown on CUDA", 109, 4 * 109)
    assert spread.sd == pytest.approx(0.02, rel=0.1)


def test_the_report_says_it_beside_the_score_and_only_where_it_is_known():
    run = synthetic_run(process_sd=0.0)
    known = build(repeated(run, sd=0.02))
    for form in ("text", "markdown"):
        text = " ".join(as_text(known, form).split())
        assert "109 tasks, 436 degrees of freedom" in text
        assert "between processes (as measured by the tasks with several processes; tasks: 326 unknown on CUDA)" in text.replace("\\", "")
        assert "2.00 % between processes (assumed" in as_text(build(run), form).replace("\\", "")
        assert "between processes" not in as_text(build(run, process_sd=0.0), form)
    assert as_json(known)["process_spread"][0]["freedom"] == 436
    covered = replace(repeated(run, 0.02, every=1), planned=tuple(replace(task, processes=5) for task in run.planned))
    assert "intervals include" not in as_text(build(covered), "text")


def test_processes_reach_the_report_through_the_store(tmp_path):
    store_run(str(tmp_path), synthetic_run())
    assert process_spread(load(Store(str(tmp_path)).resolve("latest"))) == ()

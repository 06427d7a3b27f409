"""Every snippet of docs/queries.md runs, and those that compute a number compute ours."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path

import duckdb
import pytest

from orchestrator.report.build import build
from orchestrator.report.rows import load
from orchestrator.statistics.means import geomean
from orchestrator.store import Store
from tasks.spec import FailureClass, Status
from tests.orchestrator.stored import STARTED, a_run, a_task, failed, passed

TEXT = (Path(__file__).parents[2] / "docs" / "queries.md").read_text(encoding="utf-8")
SNIPPETS = [(kind, code) for kind, code in re.findall(r"```(sql|python)\n(.*?)```", TEXT, re.DOTALL)]
SQL = [code for kind, code in SNIPPETS if kind == "sql"]
PYTHON = [code for kind, code in SNIPPETS if kind == "python"]
ONE_LINER = "SELECT suite, dtype, exp(avg(ln(speedup))) FROM 'results/*/tasks/*.parquet' WHERE status = 'pass' GROUP BY ALL"
TASKS = [a_task(number, dtype, suite) for suite in ("timm", "toy") for dtype in ("amp", "float32") for number in range(5)]


def an_outcome(task, number, run_number):
    if number % 5 == 4:
        return failed(task)
    outcome = passed(task, seed=number, ratio=0.8 + number / 10 + run_number)
    known = {"accuracy": "skipped" if number % 5 == 3 else "pass", "graph_break_reasons": ("print()",)}
    return dataclasses.replace(outcome, measurement=dataclasses.replace(outcome.measurement, **known))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with two runs in ``results``: in each, one task in five crashed, the others passed; one run compacted."""
    folder = tmp_path_factory.mktemp("queries")
    for run_number, name in enumerate(("nightly-1", "nightly-2")):
        with a_run(Store(str(folder / "results")), TASKS, name, started=STARTED + run_number) as run:
            for start in range(0, len(TASKS), 5):
                run.append([(task, an_outcome(task, n, run_number)) for n, task in enumerate(TASKS[start : start + 5], start)])
            if run_number:
                run.compact()
    return folder


@pytest.fixture(autouse=True)
def there(folder, monkeypatch):
    monkeypatch.chdir(folder)


def expected(name, suite, dtype):
    rows = Store("results").resolve(name).rows().to_pylist()
    return geomean([row["speedup"] for row in rows if (row["suite"], row["dtype"], row["status"]) == (suite, dtype, "pass")])


def equal_to_the_last_digit(found, wanted):
    """Equal but for the order of summation and the library's logarithm: two units in the last place."""
    return abs(found - wanted) <= 2 * math.ulp(wanted)


@pytest.mark.parametrize("code", SQL)
def test_sql_runs_and_finds_rows(code):
    found = duckdb.sql(code).to_arrow_table()
    assert found.column_names
    assert found.num_rows


def result_of(code):
    names = {}
    exec(compile(code, "docs/queries.md", "exec"), names)
    return names["answer"]


@pytest.mark.parametrize("code", PYTHON)
def test_python_runs_and_finds_rows(code):
    answer = result_of(code)
    assert getattr(answer, "num_rows", None) or len(answer)


def test_the_one_liner_of_the_readme_is_in_the_document_and_right():
    assert ONE_LINER in [code.strip() for code in SQL]
    for name in ("nightly-1", "nightly-2"):
        found = duckdb.sql(ONE_LINER.replace("*/tasks", f"{name}/tasks")).fetchall()
        assert len(found) == 4
        assert all(equal_to_the_last_digit(mean, expected(name, suite, dtype)) for suite, dtype, mean in found)


def test_the_pass_rate_is_that_of_the_report(tmp_path, monkeypatch):
    """A run of which one task is excluded, one failed and one was not judged, in every suite and dtype."""
    (code,) = [code for code in SQL if "pass_rate" in code]

    def outcome(task, number):
        skipped = failed(task, status=Status.SKIPPED, failure_class=FailureClass.EXCLUDED, error="known")
        return skipped if number % 5 == 0 else an_outcome(task, number, 0)

    with a_run(Store(str(tmp_path / "results")), TASKS, "run") as run:
        run.append([(task, outcome(task, number)) for number, task in enumerate(TASKS)])
    monkeypatch.chdir(tmp_path)
    found = {(suite, dtype): numbers for _, suite, dtype, *numbers in duckdb.sql(code).fetchall()}
    suites = build(load(Store("results").resolve("run"))).configurations[0].suites
    assert len(found) == len(suites) == 4
    for suite in suites:
        rate = suite.rate
        assert found[suite.suite, suite.dtype] == [rate.value, rate.planned, rate.skipped, rate.unjudged] == [0.4, 5, 1, 1]


def test_the_weighted_score_is_ours():
    (code,) = [code for code in SQL if "0.75 * max(mean)" in code]
    for name, score, count in duckdb.sql(code).fetchall():
        rows = Store("results").resolve(name).rows().to_pylist()
        means = [
            geomean([row["speedup"] for row in rows if (row["dtype"], row["status"]) == (dtype, "pass")]) for dtype in ("amp", "float32")
        ]
        assert equal_to_the_last_digit(score, 0.75 * means[0] + 0.25 * means[1])
        assert count == 16


def test_pandas_and_polars_agree():
    by_pandas = result_of(next(code for code in PYTHON if "np.log" in code)).to_dict()
    by_polars = {(suite, dtype): mean for suite, dtype, mean, _ in result_of(next(code for code in PYTHON if "polars" in code)).rows()}
    assert set(by_pandas) == set(by_polars) == {("timm", "amp"), ("timm", "float32"), ("toy", "amp"), ("toy", "float32")}
    for (suite, dtype), mean in by_pandas.items():
        assert equal_to_the_last_digit(mean, expected("nightly-2", suite, dtype))
        assert equal_to_the_last_digit(by_polars[suite, dtype], mean)


def test_medians_from_samples_are_those_of_the_rows():
    (code,) = [code for code in SQL if "median_ms" in code]
    found = {(task_id, arm): (median, count) for task_id, arm, median, count in duckdb.sql(code).fetchall()}
    rows = [row for row in Store("results").resolve("nightly-2").rows().to_pylist() if row["status"] == "pass"]
    assert len(found) == 2 * len(rows)
    for row in rows:
        assert found[row["task_id"], "eager"] == (pytest.approx(row["eager_ms"], rel=1e-3), 24)


def test_one_row_per_task_leaves_out_the_beaten_attempt():
    (code,) = [code for code in SQL if "QUALIFY" in code]
    run = Store("results").resolve("nightly-1")
    run.acquire()
    run.append([(TASKS[4], passed(TASKS[4], attempt=2))])
    run.close()
    found = duckdb.sql(f"SELECT count(*), count(DISTINCT task_id) FROM ({code}) WHERE run_id = 'nightly-1'").fetchall()
    assert found == [(len(TASKS), len(TASKS))]
    assert duckdb.sql("SELECT count(*) FROM 'results/nightly-1/tasks/*.parquet'").fetchall() == [(len(TASKS) + 1,)]

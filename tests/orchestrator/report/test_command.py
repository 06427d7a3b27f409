"""``sweep report`` and its siblings as a user meets them: streams, forms and exit statuses."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import pytest

from orchestrator.cli import main
from orchestrator.errors import ExitCode
from orchestrator.report.synthetic import failed, store_run, synthetic_run, true_logs
from orchestrator.store import Store
from tests.orchestrator import stored
from tests.orchestrator.stored import a_plan, a_record, a_task, against_itself

RUN = synthetic_run(true_logs({"timm": 3}), run_id="whole")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    root = str(tmp_path_factory.mktemp("results"))
    store_run(root, RUN)
    store_run(root, replace(RUN, run_id="failing", rows=(failed(RUN.rows[0]), *RUN.rows[1:])))
    store_run(root, replace(RUN, run_id="incomplete", rows=RUN.rows[1:]))
    store_run(root, replace(RUN, run_id="lost", rows=(replace(failed(RUN.rows[0]), status="infra_error"), *RUN.rows[1:])))
    store_run(root, replace(RUN, run_id="mixed", rows=(replace(RUN.rows[0], device="NVIDIA A100"), *RUN.rows[1:])))
    return root


@pytest.fixture
def sweep(results, monkeypatch, capsys):
    def run(*arguments, where=results):
        monkeypatch.setattr(sys, "argv", ["sweep", *arguments, "--results", str(where)])
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code, *capsys.readouterr()

    return run


@pytest.mark.parametrize(
    ("run", "code"),
    [
        ("whole", ExitCode.PASSED),
        ("failing", ExitCode.SOME_FAILED),
        ("incomplete", ExitCode.INFRASTRUCTURE),
        ("lost", ExitCode.INFRASTRUCTURE),
        ("mixed", ExitCode.USAGE),
        ("nowhere", ExitCode.USAGE),
    ],
)
def test_the_exit_status_of_a_report(sweep, run, code):
    found, out, error = sweep("report", run)
    assert found == code
    assert bool(out) == (code != ExitCode.USAGE)
    assert bool(error) == (code == ExitCode.USAGE)


def test_every_form_goes_to_stdout_and_the_page_to_its_file(sweep, tmp_path):
    assert json.loads(sweep("report", "failing", "--json")[1])["passed"] == 5
    assert sweep("report", "failing", "--markdown")[1].startswith("# Sweep failing")
    assert RUN.rows[3].task_id in sweep("report", "failing", "--tasks")[1]
    code, out, _ = sweep("report", "whole", "--html", str(tmp_path / "deep" / "page.html"))
    assert (code, "score" in out) == (ExitCode.PASSED, True)
    assert (tmp_path / "deep" / "page.html").read_text().startswith("<!doctype html>")


def test_a_mixed_run_can_be_allowed(sweep):
    code, out, _ = sweep("report", "mixed", "--allow-mixed")
    assert code == ExitCode.PASSED
    assert "NVIDIA A100 (1 tasks)" in out


def test_an_empty_store_is_a_clear_message(sweep, tmp_path):
    for command in (["report"], ["compare", "a", "b"], ["history"], ["export"]):
        code, out, error = sweep(*command, where=tmp_path)
        assert (code, out) == (ExitCode.USAGE, "")
        assert "no runs" in error


def test_a_page_that_cannot_be_written_is_a_clear_message(sweep, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, error = sweep("report", "whole", "--html", str(tmp_path / "file" / "page.html"))
    assert code == ExitCode.INFRASTRUCTURE
    assert "cannot write" in error


def test_history_and_export(sweep, tmp_path):
    assert json.loads(sweep("history", "--json")[1])["mixed"] == ["mixed"]
    assert "model_001" in sweep("history", "--model", "model_001")[1]
    code, out, _ = sweep("export", "whole", "--format", "upstream-csv", "--output", str(tmp_path))
    assert code == ExitCode.PASSED
    assert len(out.splitlines()) == 4
    assert sweep("export", "whole", "--format", "xml")[0] == ExitCode.USAGE


def test_an_aa_run_is_reported_without_a_score_and_compared_with_nothing(sweep, tmp_path):
    task = replace(a_task(1), aa=True)
    for name in ("ab", "aa"):
        with Store(str(tmp_path)).create(replace(a_record(name), aa=True), a_plan([task])) as run:
            run.append([(task, against_itself(task))])
    code, out, _ = sweep("report", "aa", where=tmp_path)
    assert code == ExitCode.PASSED
    assert "2 of 2" in out
    assert "score" not in out
    code, out, _ = sweep("report", "aa", "--json", where=tmp_path)
    assert (code, json.loads(out)["aa"]) == (ExitCode.PASSED, True)
    for refused in (("report", "aa", "--markdown"), ("compare", "aa", "ab"), ("export", "aa", "--format", "hud-json")):
        code, out, errors = sweep(*refused, where=tmp_path)
        assert (code, out) == (ExitCode.USAGE, "")
        assert "A/A run" in errors


def test_a_log_goes_to_stdout_and_its_story_with_it_as_json(sweep, tmp_path):
    task = a_task(1)
    with Store(str(tmp_path)).create(a_record("logged"), a_plan([task, a_task(2)])) as run:
        run.append([(task, stored.failed(task))])
    assert sweep("logs", "model_0001", where=tmp_path) == (0, "boom\n", f"{task.task_id}: crash: the worker died\n")
    code, out, error = sweep("logs", "model_0001", "--json", where=tmp_path)
    assert (code, error) == (0, "")
    assert json.loads(out) == {"task_id": task.task_id, "status": "crash", "error": "the worker died", "log": "boom\n"}
    assert sweep("logs", "model_0002", "--json", where=tmp_path)[0] == ExitCode.USAGE


def test_runs_are_listed_under_a_head(sweep, tmp_path):
    for run_id in ("first", "the-second"):
        Store(str(tmp_path)).create(replace(a_record(run_id), ended=1_800_000_060.0), a_plan([a_task(1)])).close()
    code, out, _ = sweep("list", where=tmp_path)
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == ["run", "the-second", "first"]
    assert len({line.index(word) for line, word in zip(out.splitlines(), ("planned", "1  ", "1  "), strict=True)}) == 1
    assert sweep("list", where=tmp_path / "empty")[1].startswith("no runs in")

"""``sweep status --watch`` and ``sweep logs`` of runs whose store or whose task is not to be seen yet."""

from __future__ import annotations

import itertools

import pytest

from orchestrator.cli import logs, status
from orchestrator.errors import HeadError, InfrastructureError, UsageError
from orchestrator.jobs import Head
from orchestrator.journal import Journal
from orchestrator.store import Store
from orchestrator.sweep import Progress, State
from tasks.spec import Phase
from tests.orchestrator.fake_head import FakeHead, serving
from tests.orchestrator.stored import a_run, a_task, passed

SILENT = {"address": "http://h", "error": "no Ray head answers"}
JOB = {"address": "http://h", "job": "sweep-r", "exit_code": None}


def watched(monkeypatch, clusters, state=None, step_s=1.0):
    clock = itertools.count(0.0, step_s)
    monkeypatch.setattr(status.time, "sleep", lambda _: None)
    monkeypatch.setattr(status.time, "monotonic", lambda: next(clock))
    found = ({"run_id": "r", "state": state, "driver": None, "cluster": cluster} for cluster in clusters)
    return [standing["cluster"].get("status") for standing in status._standings(lambda: next(found), watch=True)]


def test_a_dropped_connection_does_not_end_the_watching_where_only_the_cluster_sees_the_store(monkeypatch):
    clusters = [JOB | {"status": "running"}, SILENT, SILENT, JOB | {"status": "running"}, JOB | {"status": "failed"}]
    assert watched(monkeypatch, clusters) == ["running", None, None, "running", "failed"]
    again = [SILENT, SILENT, JOB | {"status": "running"}] * 2 + [JOB | {"status": "failed"}]
    assert len(watched(monkeypatch, again, step_s=200.0)) == 7  # each silence counts from its own beginning


def test_a_head_that_stays_silent_is_given_up(monkeypatch):
    with pytest.raises(InfrastructureError, match=r"given up after 600 s: no Ray head answers"):
        watched(monkeypatch, itertools.repeat(SILENT), step_s=100.0)


def test_a_run_that_its_store_calls_finished_needs_no_head(monkeypatch):
    assert watched(monkeypatch, [SILENT], state="finished") == [None]


def test_a_token_that_is_refused_is_not_silence():
    head = FakeHead()
    head.answers["/api/jobs/"] = 403
    with serving(head) as address, pytest.raises(HeadError, match="403"):
        status._cluster(Head(address), "r")


def test_a_name_is_looked_for_on_the_cluster_first_and_then_in_the_store(tmp_path):
    with a_run(Store(str(tmp_path)), [a_task(1)], run_id="stored-1"):
        pass
    head = FakeHead()
    head.answers["/api/jobs/"] = [[{"submission_id": "sweep-sent-1", "status": "RUNNING", "metadata": {"run_id": "sent-1"}}]]
    with serving(head) as address:
        for name, expected in (("latest", "sent-1"), ("sent", "sent-1"), ("stored", "stored-1")):
            assert status._run_id(Head(address), name, str(tmp_path)) == expected
        with pytest.raises(UsageError, match="knows no run 'none'"):
            status._run_id(Head(address), "none", str(tmp_path))


def test_a_task_without_a_row_is_said_to_run_or_to_wait(tmp_path, capsys):
    tasks = [a_task(number) for number in range(3)]
    with a_run(Store(str(tmp_path)), tasks) as run:
        run.append([(tasks[0], passed(tasks[0]))])
        Journal(run.files, 0.0).standing([Progress(tasks[1].task_id, State.RUNNING, 2, Phase.COMPILE, "n:1", None, 1.0)])
    with pytest.raises(UsageError, match=r"no row yet.*running compile on n:1, attempt 2"):
        logs.logs("model_0001", "run-1", str(tmp_path))
    with pytest.raises(UsageError, match="waits for its turn"):
        logs.logs("model_0002", "run-1", str(tmp_path))
    logs.logs("model_0000", "run-1", str(tmp_path))
    assert capsys.readouterr().out == "built\ntimed\n"
    with pytest.raises(UsageError, match="which task"):
        logs.logs(None, "run-1", str(tmp_path))

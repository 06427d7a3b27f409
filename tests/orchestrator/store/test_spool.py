"""Outcomes that a dead driver did not store."""

from __future__ import annotations

import logging
import os
import time

from orchestrator.store import Store
from tasks import spool as worker_spool
from tasks.spec import Attempt
from tests.orchestrator.store.harness import TASKS
from tests.orchestrator.stored import a_run, a_task, failed, passed


def spooled(run, outcome):
    path = worker_spool.leave(outcome, Attempt(run.run_id, outcome.attempt, str(run.spool_path)))
    assert path is not None
    return path


def test_outcomes_of_a_dead_driver_are_ingested_once(store):
    with a_run(store, TASKS) as run:
        run.append([(TASKS[0], passed(TASKS[0])), (TASKS[1], failed(TASKS[1]))])
        kept = [passed(TASKS[1], attempt=2), passed(TASKS[2])]
        for outcome in (*kept, passed(TASKS[0]), passed(a_task(99))):
            spooled(run, outcome)
    run = store.resolve("latest")
    run.acquire()
    assert run.ingest_orphans() == kept
    run.append([(TASKS[1], kept[0]), (TASKS[2], kept[1])])
    assert run.ingest_orphans() == []
    run.clear_spool((outcome.task_id, outcome.attempt) for outcome in (*kept, passed(TASKS[5])))
    assert len(list(run.spool_path.glob("*.json"))) == 2


def test_a_stored_attempt_clears_the_earlier_ones_and_what_dead_writers_left(store):
    with a_run(store, TASKS) as run:
        for attempt in (1, 2, 3):
            spooled(run, passed(TASKS[0], attempt))
        assert run.find_spooled(TASKS[0].task_id, 2) == passed(TASKS[0], 2)
        assert run.find_spooled(TASKS[1].task_id, 1) is None
        run.clear_spool([(TASKS[0].task_id, 2)])
        assert [path.name.split(".")[-2] for path in run.spool_path.iterdir()] == ["3"]
        for name, age_s in (("dead.1.json.7.partial", 3600), ("writing.1.json.8.partial", 1)):
            (run.spool_path / name).write_text("{")
            os.utime(run.spool_path / name, (time.time() - age_s,) * 2)
    run = store.resolve("latest")
    run.acquire()
    assert [path.name for path in run.spool_path.glob("*.partial")] == ["writing.1.json.8.partial"]


def test_places_for_other_processes_do_not_depend_on_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = Store("results")
    assert store.bundles_path == tmp_path / "results" / "bundles"
    assert a_run(store, TASKS).spool_path == tmp_path / "results" / "run-1" / "spool"


def test_half_a_spooled_outcome_is_set_aside_and_named(store, caplog):
    run = a_run(store, TASKS)
    whole = spooled(run, passed(TASKS[0]))
    for name, text in {
        "half.json": whole.read_text()[:100],
        "other.json": "[]",
        "deep.json": "[" * 100_000,
        "x.json.77.partial": "{",
    }.items():
        (run.spool_path / name).write_text(text)
    with caplog.at_level(logging.WARNING):
        assert run.ingest_orphans() == [passed(TASKS[0])]
    assert {path.name for path in run.spool_path.glob("*.corrupt")} == {"half.json.corrupt", "other.json.corrupt", "deep.json.corrupt"}
    assert "half.json holds no outcome" in caplog.text

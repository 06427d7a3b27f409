"""Runs of a store: how they are made, found, and what is recorded of them."""

from __future__ import annotations

import dataclasses
import json
import time

import pytest

from orchestrator.costs import recorded
from orchestrator.errors import StoreError, UsageError
from orchestrator.record import PlannedTask, RunState
from orchestrator.store import finished_tasks
from tests.orchestrator.store.harness import TASKS
from tests.orchestrator.stored import STARTED, a_plan, a_record, a_run, a_task


def test_a_run_is_found_by_id_by_prefix_and_as_latest(store):
    for number, name in enumerate(("alpha-1", "beta-1", "beta-2")):
        a_run(store, TASKS, name, started=STARTED - number).close()
    assert store.resolve("latest").run_id == "alpha-1"
    assert store.resolve("al").run_id == "alpha-1"
    assert store.resolve("beta-2").run_id == "beta-2"
    assert [record.run_id for record in store.runs()] == ["beta-2", "beta-1", "alpha-1"]


def test_an_id_wins_over_a_longer_one_that_begins_with_it(store):
    for name in ("beta", "beta-2"):
        a_run(store, TASKS, name).close()
    assert store.resolve("beta").run_id == "beta"


@pytest.mark.parametrize(
    ("name", "told"), [("beta", "beta-1, beta-2"), ("bate-1", "did you mean 'beta-1'"), ("", "alpha-1"), ("../x", "beta-1")]
)
def test_an_unknown_run_is_told_what_there_is(store, name, told):
    for run_id in ("alpha-1", "beta-1", "beta-2"):
        a_run(store, TASKS, run_id).close()
    with pytest.raises(UsageError, match=told):
        store.resolve(name)


def test_an_empty_store_says_so(store):
    with pytest.raises(UsageError, match="there are no runs"):
        store.resolve("latest")
    assert (store.runs(), finished_tasks(store.root), recorded(store.root)) == ([], {}, {})


def test_a_run_is_created_once(store):
    a_run(store, TASKS).close()
    with pytest.raises(UsageError, match="--resume"):
        a_run(store, TASKS)
    store.resolve("run-1").acquire()  # and the refusal left no lock behind


@pytest.mark.parametrize("run_id", ["", "latest", "../evil", "a/b", ".hidden", "x" * 101])
def test_a_run_id_is_a_plain_folder_name(store, run_id):
    with pytest.raises(UsageError, match="run id"):
        a_run(store, TASKS, run_id)


def test_record_and_plan_are_enough_to_resume(store):
    plan = [PlannedTask(TASKS[0]), PlannedTask(TASKS[1], "excluded: too big")]
    store.create(a_record(), plan).close()
    run = store.resolve("latest")
    assert run.plan() == tuple(plan)
    assert run.record == dataclasses.replace(a_record(), planned=2)


def test_the_state_is_recorded(store):
    run = a_run(store, TASKS)
    run.set_state(RunState.INTERRUPTED, 130)
    record = store.resolve("latest").record
    assert (record.state, record.exit_code) == (RunState.INTERRUPTED, 130)
    assert record.ended == pytest.approx(time.time(), abs=60)
    run.set_state(RunState.RUNNING)
    assert (store.resolve("latest").record.ended, run.record.exit_code) == (None, None)


def test_a_record_of_a_later_version_can_be_read_and_a_damaged_one_is_named(store, caplog):
    run = a_run(store, TASKS)
    path = run.files.local("run.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"of_the_future": 1}))
    assert store.resolve("run-1").record.run_id == "run-1"
    path.write_text(path.read_text()[:40])
    with pytest.raises(StoreError, match=r"run\.json is damaged"):
        _ = store.resolve("run-1").record
    assert store.runs() == []
    assert "run.json is damaged" in caplog.text


def test_the_plan_of_a_hundred_tasks_is_small(store):
    run = store.create(a_record(), a_plan([a_task(number) for number in range(100)]))
    assert run.files.local("plan.jsonl.gz").stat().st_size < 10_000

"""Who may write: a driver whose lock was taken over may not."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os

import pytest

from orchestrator.errors import RunLockedError
from orchestrator.files import LocalFiles
from orchestrator.lock import RunLock
from orchestrator.record import RunState
from tasks.spec import encode
from tests.orchestrator.store.harness import NEW, TASKS, parquet_files
from tests.orchestrator.stored import a_run, failed, passed


def test_writing_needs_the_lock(store):
    a_run(store, TASKS).close()
    run = store.resolve("latest")
    for write in (lambda: run.append(NEW), run.compact, lambda: run.set_state(RunState.FINISHED), run.refresh_lock):
        with pytest.raises(RunLockedError, match="does not hold the lock"):
            write()


def test_a_driver_whose_lock_was_taken_over_writes_nothing_more(store):
    old = a_run(store, TASKS)
    old.append([(TASKS[0], passed(TASKS[0]))])
    os.close(old._lock._flock)  # as if the kernel's lock did not reach that far: another machine
    old._lock._flock = None
    silent = dataclasses.replace(old._lock.owner, machine="elsewhere", heartbeat=0.0)
    old.files.write("lock.json", json.dumps(encode(silent)).encode())
    new = store.resolve("latest")
    new.acquire()
    before = {path: path.read_bytes() for path in new.files.local("").rglob("*") if path.is_file()}
    for write in (lambda: old.append(NEW), old.compact, lambda: old.set_state(RunState.FINISHED), old.refresh_lock):
        with pytest.raises(RunLockedError, match="taken over by process"):
            write()
    old.close()
    assert {path: path.read_bytes() for path in new.files.local("").rglob("*") if path.is_file()} == before
    new.append(NEW)


def test_a_takeover_between_the_two_files_of_a_batch_commits_nothing(store, monkeypatch):
    run = a_run(store, TASKS)
    checks = itertools.count()

    def taken_over_at_the_third_look(lock):
        if next(checks) == 2:
            raise RunLockedError("the run was taken over")

    monkeypatch.setattr(RunLock, "check", taken_over_at_the_third_look)
    with pytest.raises(RunLockedError):
        run.append(NEW)
    assert parquet_files(run, "tasks") == []
    assert (run.terminal(), run.samples().num_rows) == ({}, 0)


@pytest.mark.parametrize("compacting", [False, True])
def test_a_takeover_while_the_commit_is_written_takes_rows_back_and_loses_none(store, monkeypatch, compacting):
    run = a_run(store, TASKS)
    for task in TASKS[:2]:
        run.append([(task, passed(task))])
    lost = []
    publish, check = LocalFiles._publish, RunLock.check

    def publish_as_the_other_takes_over(files, partial, path):
        publish(files, partial, path)
        if path.parent.name == "tasks":
            lost.append(path)

    def look(lock):
        if lost:
            raise RunLockedError("the run was taken over")
        check(lock)

    monkeypatch.setattr(LocalFiles, "_publish", publish_as_the_other_takes_over)
    monkeypatch.setattr(RunLock, "check", look)
    with pytest.raises(RunLockedError, match="taken over"):
        run.compact() if compacting else run.append(NEW)
    assert lost
    assert set(run.terminal()) == {task.task_id for task in TASKS[:2]}


def test_a_row_that_another_replaces_is_known(store):
    run = a_run(store, TASKS)
    run.append([(TASKS[0], failed(TASKS[0])), (TASKS[1], failed(TASKS[1]))])
    assert run.beaten() == set()
    run.append([(TASKS[0], passed(TASKS[0], attempt=2))])
    assert run.beaten() == {TASKS[0].task_id}
    run.compact()
    assert run.beaten() == set()

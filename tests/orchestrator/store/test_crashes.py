"""Kills between any two steps of a writer, and disks that fail."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from errno import EACCES, EDQUOT, EIO, ENOSPC

import pytest

from orchestrator.errors import StoreError
from orchestrator.files import LocalFiles
from orchestrator.store import RunStore, Store
from tests.orchestrator.store.harness import NEW, TASKS, content, parquet_files
from tests.orchestrator.stored import a_run, a_task, failed, passed


class Killed(BaseException):
    """The process dies here: nothing cleans up."""


class DyingFiles(LocalFiles):
    """A filesystem on which the process dies, or the disk fails, just before the n-th change."""

    steps = 0
    dies_at = -1
    error: BaseException = Killed()
    seen = staticmethod(lambda: None)

    @classmethod
    def arm(cls, dies_at, error=None, seen=lambda: None):
        cls.steps, cls.dies_at, cls.error, cls.seen = 0, dies_at, error or Killed(), staticmethod(seen)

    def _step(self, kind):
        cls = type(self)
        cls.seen()
        cls.steps += 1
        if cls.steps - 1 == cls.dies_at:
            raise cls.error

    def _fill(self, partial, data, durable):
        self._step("create")
        super()._fill(partial, data[: len(data) // 2], durable=False)
        self._step("fill")
        partial.unlink()
        super()._fill(partial, data, durable)

    def _publish(self, partial, path):
        self._step("rename")
        super()._publish(partial, path)

    def _sync_folder(self, folder):
        self._step("sync")
        super()._sync_folder(folder)

    def remove(self, name):
        self._step("remove")
        super().remove(name)


def dying_run(run):
    """The same run on a filesystem that fails, with the lock of ``run``."""
    twin = RunStore(DyingFiles(run.files.local("")), run.run_id)
    DyingFiles.arm(-1)
    twin.adopt(run._lock)
    return twin


@pytest.fixture(scope="module")
def history(tmp_path_factory):
    """A store with one run of three batches, one of them with a second attempt."""
    folder = tmp_path_factory.mktemp("history")
    run = a_run(Store(str(folder)), TASKS)
    run.append([(TASKS[0], passed(TASKS[0], seed=0)), (TASKS[1], failed(TASKS[1]))])
    run.append([(TASKS[2], passed(TASKS[2], seed=2))])
    run.append([(TASKS[1], passed(TASKS[1], attempt=2, seed=1))])
    run.close()
    return folder


def a_copy(history, folder):
    shutil.copytree(history, folder)
    run = Store(str(folder)).resolve("latest")
    run.acquire()
    return run


@pytest.mark.parametrize("action", ["append", pytest.param("compact", marks=pytest.mark.slow)])
def test_a_kill_between_any_two_steps_leaves_the_old_state_or_the_new(history, tmp_path, action):
    act = (lambda run: run.append(NEW)) if action == "append" else (lambda run: run.compact())
    whole = a_copy(history, tmp_path / "whole")
    old, watcher, seen = content(whole), Store(str(tmp_path / "whole")).resolve("latest"), []
    twin = dying_run(whole)
    DyingFiles.arm(-1, seen=lambda: seen.append(content(watcher)))
    act(twin)
    new, steps = content(whole), DyingFiles.steps
    assert steps > 8
    assert all(state in (old, new) for state in seen)
    assert old in seen
    assert (new == old) is (action == "compact")

    for step in range(steps):
        folder = tmp_path / f"at-{step}"
        run = a_copy(history, folder)
        twin = dying_run(run)
        DyingFiles.arm(step)
        with pytest.raises(Killed):
            act(twin)
        run.close()
        resumed = Store(str(folder)).resolve("latest")
        assert content(resumed) in (old, new)
        assert resumed.acquire() == []
        assert content(resumed) in (old, new)
        names = {path.name for name in ("tasks", "samples", "blocks") for path in resumed.files.local(name).iterdir()}
        assert names == {part.name for part in resumed._reader().parts()}  # nothing half-written, superseded or orphaned is left
        act(resumed)
        assert content(resumed) == new


def error_of(act):
    try:
        act()
    except StoreError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("code", [ENOSPC, EDQUOT, EACCES, EIO])
def test_a_failing_disk_leaves_nothing_visible_and_the_run_can_go_on(history, tmp_path, code):
    run = a_copy(history, tmp_path / "results")
    old, files = content(run), {folder: parquet_files(run, folder) for folder in ("tasks", "samples", "blocks")}
    twin = dying_run(run)
    for step in itertools.count():
        DyingFiles.arm(step, OSError(code, os.strerror(code)))
        if not (error := error_of(lambda: twin.append(NEW))):
            break
        assert str(tmp_path) in error
        assert os.strerror(code) in error
        assert code == EIO or "(" in error  # what to do
        assert content(run) == old
        assert {folder: parquet_files(run, folder) for folder in files} == files
        assert not list(tmp_path.rglob(".*.tmp"))
    assert step > 8
    assert len(run.terminal()) == 5


def test_an_unwritable_store_is_a_clear_message(tmp_path):
    (tmp_path / "results").write_text("a file")
    with pytest.raises(StoreError, match=r"results.*choose another --results"):
        a_run(Store(str(tmp_path / "results")), TASKS)


WRITERS = """
import os, sys
from orchestrator.store import Store
from tests.orchestrator.stored import a_task, passed

def write():
    run = Store(sys.argv[1]).resolve("latest")
    assert run.acquire() == []
    done = run.terminal()
    print("pid", os.getpid(), flush=True)
    for number in range(10_000):
        task = a_task(number)
        if task.task_id not in done:
            run.append([(task, passed(task, seed=number))])
            print(number, flush=True)
        if number % 5 == 4:
            run.compact()

for line in sys.stdin:
    child = os.fork()
    if child == 0:
        write()
    os.waitpid(child, 0)
    print("dead", flush=True)
"""


def test_kill_9_at_any_moment_loses_no_row_that_was_reported(tmp_path):
    """A writer is killed again and again; what it printed as appended is there, whole, and its successor goes on."""
    store, dice, appended = Store(str(tmp_path)), random.Random(7), set()
    a_run(store, [a_task(0)]).close()
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", WRITERS, str(tmp_path)], **pipes) as writers:
        for killed in range(1, 7):
            print("go", file=writers.stdin, flush=True)
            _, pid = writers.stdout.readline().split()
            time.sleep(dice.uniform(0.0, 0.2))
            os.kill(int(pid), signal.SIGKILL)
            appended |= {int(line) for line in iter(writers.stdout.readline, "dead\n")}
            rows, samples, _ = content(store.resolve("latest"))
            assert {a_task(number).task_id for number in appended} <= set(rows)
            assert len(rows) - len(appended) <= killed  # at most one per kill was written and not yet reported
            for number in range(len(rows)):  # one after the other, so without a gap
                assert samples[a_task(number).task_id] == passed(a_task(number), seed=number).samples
        writers.stdin.close()

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from errno import EACCES, EDQUOT, EIO, ENOSPC
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator import schema
from orchestrator.costs import recorded
from orchestrator.errors import RunLockedError, StoreError, UsageError
from orchestrator.files import LocalFiles, ObjectFiles, open_files
from orchestrator.lock import RunLock
from orchestrator.parts import Part, effective
from orchestrator.record import PlannedTask, RunState
from orchestrator.store import RunStore, Store, finished_tasks
from tasks import spool as worker_spool
from tasks.spec import Attempt, Blocks, FailureClass, Status, encode
from tests.orchestrator.stored import STARTED, a_plan, a_record, a_run, a_task, failed, passed

TASKS = [a_task(number) for number in range(6)]


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path / "results"))


def content(run):
    """All that a reader learns of a run, in an order that does not depend on its files."""
    rows = {row.task_id: row for row in sorted(schema.task_rows(run.rows()), key=lambda row: row.task_id)}
    details = []
    for table, made in ((run.samples(), schema.samples_of), (run.blocks(), schema.blocks_of)):
        owners = table.column("task_id").cast(pa.string())
        details.append({task_id: made(table.filter(pc.equal(owners, task_id))) for task_id in rows})
    return rows, *details


def parquet_files(run, folder):
    return sorted(run.files.local(folder).glob("*.parquet"))


# --- runs -------------------------------------------------------------------------------------------------------------------------


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


# --- rows and samples ---------------------------------------------------------------------------------------------------------------


def test_what_is_appended_is_read_back(store):
    outcomes = [passed(TASKS[0], seed=1), failed(TASKS[1]), passed(TASKS[2], seed=2)]
    with a_run(store, TASKS) as run:
        run.append([(TASKS[0], outcomes[0])])
        run.append([(TASKS[1], outcomes[1]), (TASKS[2], outcomes[2])])
    run = store.resolve("latest")
    rows, samples, blocks = content(run)
    for task, outcome in zip(TASKS, outcomes, strict=False):
        log = rows[task.task_id].log
        assert rows[task.task_id] == schema.row_of("run-1", task, outcome, log)
        assert run.read_log(log) == outcome.log
        assert samples[task.task_id] == outcome.samples
        assert blocks[task.task_id] == outcome.blocks
    assert run.terminal() == {
        TASKS[0].task_id: (Status.PASS, TASKS[0].digest),
        TASKS[1].task_id: (Status.CRASH, TASKS[1].digest),
        TASKS[2].task_id: (Status.PASS, TASKS[2].digest),
    }


def test_a_batch_is_one_file_of_each_kind_and_says_what_it_is(store):
    run = a_run(store, TASKS)
    run.append([(task, passed(task)) for task in TASKS[:3]])
    (tasks,), (samples,), (blocks,) = (parquet_files(run, folder) for folder in ("tasks", "samples", "blocks"))
    assert tasks.name == samples.name == blocks.name
    for path in (tasks, samples, blocks):
        metadata = pq.read_schema(path).metadata
        assert metadata[b"sweep.schema_version"] == str(schema.SCHEMA_VERSION).encode()
        assert metadata[b"sweep.manifest_digest"] == run.record.manifest_digest.encode()
        assert metadata[b"sweep.writer"].startswith(b"compile-sweep ")


def test_a_run_without_rows_has_empty_tables_of_the_right_schema(store):
    run = a_run(store, TASKS)
    run.append([])
    assert run.rows().schema.equals(schema.ROWS)
    assert run.samples().schema.equals(schema.SAMPLES)
    assert (run.rows().num_rows, run.samples().num_rows, run.terminal()) == (0, 0, {})


def test_columns_and_tasks_are_chosen(store):
    run = a_run(store, TASKS)
    run.append([(task, passed(task, seed=index, pairs=index + 1)) for index, task in enumerate(TASKS)])
    assert run.rows(("status", "task_id")).column_names == ["task_id", "status"]
    chosen = run.samples([TASKS[1].task_id, TASKS[3].task_id], ("task_id", "host_ns"))
    assert chosen.column_names == ["task_id", "host_ns"]
    assert chosen.num_rows == (2 + 4) * 4
    assert run.samples(["no such task"]).num_rows == 0


def test_of_several_rows_the_latest_attempt_counts_and_brings_its_samples(store):
    run = a_run(store, TASKS)
    first, second = passed(TASKS[0], attempt=1, seed=5), passed(TASKS[0], attempt=2, seed=2)
    assert first.started > second.started  # clocks of two nodes may differ; the attempt decides
    run.append([(TASKS[0], second), (TASKS[1], passed(TASKS[1], seed=3))])
    run.append([(TASKS[0], first)])
    rows, samples, _ = content(run)
    assert (rows[TASKS[0].task_id].attempt, samples[TASKS[0].task_id]) == (2, second.samples)
    assert run.samples().num_rows == sum(len(found.phase) for found in samples.values())
    assert run.attempts() == [(TASKS[0].task_id, 2), (TASKS[1].task_id, 1), (TASKS[0].task_id, 1)]


def test_of_equal_attempts_the_later_start_counts(store):
    run = a_run(store, TASKS)
    early, late = passed(TASKS[0], seed=1), passed(TASKS[0], seed=2)
    for outcome in (late, early):
        run.append([(TASKS[0], outcome)])
    assert content(run)[1] == {TASKS[0].task_id: late.samples}


def test_a_batch_with_a_task_twice_is_a_bug(store):
    run = a_run(store, TASKS)
    with pytest.raises(ValueError, match="twice"):
        run.append([(TASKS[0], passed(TASKS[0])), (TASKS[0], passed(TASKS[0], 2))])


def test_an_outcome_that_fits_no_schema_is_named(store):
    run = a_run(store, TASKS)
    huge = dataclasses.replace(passed(TASKS[0]), measurement=dataclasses.replace(passed(TASKS[0]).measurement, parameters=10**30))
    with pytest.raises(StoreError, match="does not fit the schema"):
        run.append([(TASKS[0], huge)])
    assert run.terminal() == {}


def test_rows_are_carried_with_samples_logs_and_their_origin(store):
    with a_run(store, TASKS, "old") as old:
        old.append([(task, passed(task, seed=index)) for index, task in enumerate(TASKS)])
    middle = a_run(store, TASKS, "middle")
    middle.carry(old, [TASKS[0].task_id, TASKS[1].task_id, "no such task"])
    new = a_run(store, TASKS, "new")
    new.carry(middle, [TASKS[0].task_id])
    new.carry(middle, ["no such task"])
    (row,) = schema.task_rows(new.rows())
    assert (row.run_id, row.carried, row.carried_from) == ("new", True, "old")
    assert new.samples_of(row.task_id) == old.samples_of(row.task_id)
    assert schema.blocks_of(new.blocks([row.task_id])) == schema.blocks_of(old.blocks([row.task_id])) != Blocks()
    assert set(new.samples().column("run_id").to_pylist()) == set(new.blocks().column("run_id").to_pylist()) == {"new"}
    assert new.read_log(row.log) == "built\ntimed\n"


@pytest.mark.parametrize("path", ["../other/run.json", "/etc/passwd", "logs/../run.json", "logs/..", "run.json", "logs/a\n.log"])
def test_a_forged_log_path_leads_nowhere(store, path):
    with pytest.raises(StoreError, match="no log of a run"):
        a_run(store, TASKS).read_log(path)


def test_what_earlier_runs_say_of_a_plan(store):
    with a_run(store, TASKS, "older", started=STARTED - 10) as run:
        run.append([(TASKS[0], passed(TASKS[0])), (TASKS[3], passed(TASKS[3]))])
    with a_run(store, TASKS, "newer") as run:
        slow = dataclasses.replace(passed(TASKS[0]), ended=STARTED + 100)
        lost = failed(TASKS[1], status=Status.INFRA_ERROR, failure_class=FailureClass.NODE_LOST)
        run.append([(TASKS[0], slow), (TASKS[1], lost), (TASKS[2], failed(TASKS[2], status=Status.SKIPPED))])
    with a_run(store, TASKS, "other", manifest="other", started=STARTED + 10):
        pass
    assert finished_tasks(store.root, "toy") == {task.task_id: task.digest for task in (TASKS[0], TASKS[2])}
    assert finished_tasks(store.root, "nothing") == {}
    assert set(recorded(store.root)) == {TASKS[0].task_id, TASKS[3].task_id}


# --- compaction ---------------------------------------------------------------------------------------------------------------------


def test_compaction_keeps_everything_in_one_file_of_each_kind(store):
    run = a_run(store, TASKS)
    for index in (3, 0, 5, 1):
        run.append([(TASKS[index], passed(TASKS[index], seed=index))])
    run.append([(TASKS[0], passed(TASKS[0], attempt=2, seed=9)), (TASKS[4], failed(TASKS[4]))])
    before = content(run)
    assert run.compact()
    assert content(run) == before == content(store.resolve("latest"))
    assert [len(parquet_files(run, folder)) for folder in ("tasks", "samples", "blocks")] == [1, 1, 1]
    assert run.attempts().count((TASKS[0].task_id, 1)) == 0
    bytes_before = [path.read_bytes() for path in parquet_files(run, "tasks")]
    assert not run.compact()
    assert [path.read_bytes() for path in parquet_files(run, "tasks")] == bytes_before


def test_a_run_goes_on_after_compaction(store):
    run = a_run(store, TASKS)
    for task in TASKS[:3]:
        run.append([(task, passed(task))])
    run.compact()
    run.append([(TASKS[3], passed(TASKS[3], seed=3))])
    assert set(run.terminal()) == {task.task_id for task in TASKS[:4]}
    assert run.compact()
    assert run.samples_of(TASKS[3].task_id) == passed(TASKS[3], seed=3).samples


def test_compacted_samples_are_sorted_by_task_in_bounded_memory(store, monkeypatch):
    monkeypatch.setattr("orchestrator.compact.SAMPLES_AT_ONCE", 100)
    run = a_run(store, TASKS)
    for index in (3, 0, 5, 1, 4, 2):
        run.append([(TASKS[index], passed(TASKS[index], seed=index))])
    before = content(run)
    run.compact()
    assert content(run) == before
    file = pq.ParquetFile(parquet_files(run, "samples")[0])
    assert file.num_row_groups == 3  # 48 samples per task, two tasks at a time
    task_ids = run.samples(columns=("task_id",)).column("task_id").to_pylist()
    assert task_ids == sorted(task_ids)


def test_one_tasks_samples_are_read_without_the_rest_of_the_file(store, monkeypatch):
    monkeypatch.setattr("orchestrator.parts.ROW_GROUP_ROWS", 48)
    run = a_run(store, TASKS)
    run.append([(task, passed(task, seed=index)) for index, task in enumerate(TASKS)])
    read = []
    original = pq.ParquetFile.read_row_groups
    monkeypatch.setattr(pq.ParquetFile, "read_row_groups", lambda self, groups, *rest: read.extend(groups) or original(self, groups, *rest))
    assert run.samples_of(TASKS[4].task_id) == passed(TASKS[4], seed=4).samples
    assert read == [4]


def test_a_damaged_part_is_not_compacted_away(store):
    run = a_run(store, TASKS)
    for task in TASKS[:2]:
        run.append([(task, passed(task))])
    parquet_files(run, "samples")[0].write_bytes(b"")
    with pytest.raises(StoreError, match="not compacted"):
        run.compact()
    assert len(parquet_files(run, "tasks")) == 2


parts = st.lists(st.tuples(st.integers(1, 9), st.booleans()), max_size=12)


@given(parts)
def test_a_compacted_part_supersedes_every_smaller_number(numbers):
    made = [Part.new(number, compacted) for number, compacted in numbers]
    alive = effective(made)
    assert alive == sorted(alive)
    for part in made:
        superseded = any(other.compacted and other.number > part.number for other in made)
        assert (part in alive) is not superseded
        assert Part.parse(part.name) == part


# --- crashes and full disks -----------------------------------------------------------------------------------------------------------


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


NEW = [(TASKS[4], passed(TASKS[4], seed=4)), (TASKS[5], failed(TASKS[5]))]


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


# --- damage ---------------------------------------------------------------------------------------------------------------------------


def truncate(path):
    path.write_bytes(path.read_bytes()[:-20])


def flip_a_bit(path):
    """Of a value, not of a header that nobody reads."""
    data = bytearray(path.read_bytes())
    chunk = pq.read_metadata(path).row_group(0).column(0)
    data[(chunk.dictionary_page_offset or chunk.data_page_offset) + chunk.total_compressed_size - 2] ^= 0x10
    path.write_bytes(data)


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("harm", [truncate, flip_a_bit, empty, Path.unlink])
@pytest.mark.parametrize("folder", ["tasks", "samples", "blocks"])
def test_a_damaged_part_is_set_aside_by_name_and_its_tasks_run_again(store, harm, folder, caplog):
    run = a_run(store, TASKS)
    for index in range(0, 6, 2):
        run.append([(task, passed(task)) for task in TASKS[index : index + 2]])
    victim = parquet_files(run, folder)[1]
    harm(victim)
    run.close()
    survivors = {task.task_id for task in (*TASKS[:2], *TASKS[4:])}

    reader = store.resolve("latest")
    table = {"tasks": reader.rows, "samples": reader.samples, "blocks": reader.blocks}[folder]()
    assert set(table.column("task_id").to_pylist()) == survivors
    gone_without_trace = harm is Path.unlink and folder == "tasks"
    assert list(reader.damaged()) == ([] if gone_without_trace else [f"{folder}/{victim.name}"])
    assert len(parquet_files(run, folder)) == 3 - (harm is Path.unlink)  # a reader changes nothing

    resumed = store.resolve("latest")
    set_aside = resumed.acquire()
    assert set_aside == ([] if gone_without_trace else [f"{victim}.corrupt"])
    assert gone_without_trace or f"{victim.name}.corrupt was damaged" in caplog.text
    assert set(resumed.terminal()) == survivors
    for task in TASKS[2:4]:
        resumed.append([(task, passed(task))])
    assert resumed.compact()
    assert set(resumed.terminal()) == {task.task_id for task in TASKS}


class Unreachable(LocalFiles):
    """A place whose files can be named but, while it is down, not read."""

    down = True

    def source(self, name):
        if self.down and name.endswith(".parquet"):
            raise OSError("connection reset")
        return super().source(name)

    def read(self, name):
        if self.down and name.endswith(".parquet"):
            raise StoreError(f"cannot read {self.at(name)}: connection reset")
        return super().read(name)


def test_a_place_that_cannot_be_reached_is_no_damage(store):
    with a_run(store, TASKS) as run:
        run.append([(TASKS[0], passed(TASKS[0]))])
    far = RunStore(Unreachable(run.files.local("")), run.run_id)
    for use in (far.rows, far.samples, far.acquire):
        with pytest.raises(StoreError, match="connection reset"):
            use()
    far.close()
    assert far.damaged() == {}
    Unreachable.down = False
    assert (far.acquire(), set(far.terminal())) == ([], {TASKS[0].task_id})
    far.close()


def test_files_of_others_are_left_alone(store):
    run = a_run(store, TASKS)
    run.append([(TASKS[0], passed(TASKS[0]))])
    strange = run.files.local("tasks/notes.txt")
    strange.write_text("mine")
    run.compact()
    run.close()
    store.resolve("latest").acquire()
    assert strange.read_text() == "mine"
    assert len(store.resolve("latest").terminal()) == 1


def test_an_older_file_without_some_columns_is_read(store):
    run = a_run(store, TASKS)
    run.append([(TASKS[0], passed(TASKS[0]))])
    (path,) = parquet_files(run, "tasks")
    pq.write_table(pq.read_table(path).drop_columns(["code_version", "fidelity"]), path)
    (row,) = schema.task_rows(store.resolve("latest").rows())
    assert (row.code_version, row.status) == (None, Status.PASS)


def as_the_first_version_wrote(run):
    """No blocks, and none of the columns that came later."""
    for path in parquet_files(run, "blocks"):
        path.unlink()
    for path in parquet_files(run, "tasks"):
        table = pq.read_table(path)
        metadata = table.schema.metadata | {b"sweep.schema_version": b"1"}
        pq.write_table(
            table.select(table.column_names[: table.column_names.index("process_speedups")]).replace_schema_metadata(metadata), path
        )


def test_a_run_of_the_first_version_is_whole_without_blocks(store):
    with a_run(store, TASKS) as run:
        run.append([(TASKS[0], passed(TASKS[0]))])
    as_the_first_version_wrote(run)
    run = store.resolve("latest")
    assert run.blocks().num_rows == 0
    assert run.acquire() == []
    assert run.damaged() == {}
    run.append([(TASKS[1], passed(TASKS[1], seed=1))])
    assert run.compact()
    assert set(run.blocks().column("task_id").to_pylist()) == {TASKS[1].task_id}
    assert len(run.samples_of(TASKS[0].task_id).phase) > 0


# --- the fence ------------------------------------------------------------------------------------------------------------------------


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


# --- the spool ------------------------------------------------------------------------------------------------------------------------


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


# --- object stores --------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def in_objects(tmp_path, monkeypatch):
    """A store reached through pyarrow.fs alone, as an object store is: no paths, no flock, no renames of our own."""
    filesystem = pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem())
    monkeypatch.setattr("orchestrator.store.open_files", lambda root: ObjectFiles(filesystem, "bucket/results"))
    return Store("s3://bucket/results")


def test_a_store_works_through_pyarrow_filesystems(in_objects):
    run = a_run(in_objects, TASKS)
    assert run.spool_path is None
    for index, task in enumerate(TASKS[:3]):
        run.append([(task, passed(task, seed=index))])
    before = content(run)
    with pytest.raises(RunLockedError, match="held by process"):
        in_objects.resolve("latest").acquire()
    run.refresh_lock()
    assert run.compact()
    run.set_state(RunState.INTERRUPTED, 130)
    run.close()
    again = in_objects.resolve("latest")
    again.acquire()
    assert content(again) == before
    assert (again.ingest_orphans(), again.record.state) == ([], RunState.INTERRUPTED)
    assert again.plan() == tuple(a_plan(TASKS))
    assert again.read_log(content(again)[0][TASKS[0].task_id].log) == "built\ntimed\n"
    again.append([(TASKS[3], passed(TASKS[3]))])
    assert [record.run_id for record in in_objects.runs()] == ["run-1"]


def test_places_are_told_apart(tmp_path):
    assert isinstance(open_files(str(tmp_path)), LocalFiles)
    assert open_files(f"file://{tmp_path}").at("x") == str(tmp_path / "x")
    with pytest.raises(UsageError, match="nonsense://x"):
        open_files("nonsense://x")


# --- any order of writes ----------------------------------------------------------------------------------------------------------------

steps = st.lists(
    st.one_of(
        st.lists(st.tuples(st.integers(0, 5), st.integers(1, 3)), min_size=1, max_size=3, unique_by=lambda entry: entry[0]),
        st.just("compact"),
        st.just("resume"),
    ),
    max_size=7,
)


@settings(max_examples=15, deadline=None)
@given(steps)
def test_any_order_of_writes_reads_as_a_dictionary_would(tmp_path_factory, steps):
    store = Store(str(tmp_path_factory.mktemp("any")))
    run, expected = a_run(store, TASKS), {}
    for step in steps:
        if step == "compact":
            run.compact()
        elif step == "resume":
            run.close()
            run = store.resolve("latest")
            assert run.acquire() == []
        else:
            batch = [(TASKS[index], passed(TASKS[index], attempt=attempt, seed=index, pairs=attempt)) for index, attempt in step]
            run.append(batch)
            for task, outcome in batch:
                if outcome.attempt >= expected.get(task.task_id, outcome).attempt:
                    expected[task.task_id] = outcome
    _, samples, _ = content(run)
    assert samples == {task_id: outcome.samples for task_id, outcome in sorted(expected.items())}
    assert run.samples().num_rows == sum(len(found.phase) for found in samples.values())
    run.close()


def test_the_plan_of_a_hundred_tasks_is_small(store):
    run = store.create(a_record(), a_plan([a_task(number) for number in range(100)]))
    assert run.files.local("plan.jsonl.gz").stat().st_size < 10_000

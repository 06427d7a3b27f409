"""Parts that are damaged, older, out of reach or of others."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from orchestrator import schema
from orchestrator.errors import StoreError
from orchestrator.files import LocalFiles
from orchestrator.store import RunStore
from tasks.spec import Status
from tests.orchestrator.store.harness import TASKS, parquet_files
from tests.orchestrator.stored import a_run, passed


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

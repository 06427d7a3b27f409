"""Compaction: many parts become one of each kind, and nothing is lost."""

from __future__ import annotations

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import StoreError
from orchestrator.parts import Part, effective
from tests.orchestrator.store.harness import TASKS, content, parquet_files
from tests.orchestrator.stored import a_run, failed, passed


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

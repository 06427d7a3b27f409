"""Rows and samples: what is appended is read back, in whatever order it was written."""

from __future__ import annotations

import dataclasses

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator import schema
from orchestrator.costs import recorded
from orchestrator.errors import StoreError
from orchestrator.store import Store, finished_tasks
from tasks.spec import Blocks, FailureClass, Status
from tests.orchestrator.store.harness import TASKS, content, parquet_files
from tests.orchestrator.stored import STARTED, a_run, failed, passed


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

from __future__ import annotations

import dataclasses
import math
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator import schema
from orchestrator.files import LocalFiles
from orchestrator.parts import Part, Parts
from tasks.spec import Measurement, Outcome, Phase, Samples, Status
from tests.orchestrator.stored import a_task, failed, passed

GOLDEN = Path(__file__).with_name("golden") / "schema.txt"
OPTIONAL = "optional"


def written_out():
    lines = [f"version {schema.SCHEMA_VERSION}"]
    for title, arrow_schema in (("tasks", schema.ROWS), ("samples", schema.SAMPLES), ("blocks", schema.BLOCKS)):
        lines += ["", title, *(f"  {field.name} {field.type} {OPTIONAL if field.nullable else 'required'}" for field in arrow_schema)]
    return "\n".join(lines) + "\n"


def test_the_schema_is_frozen():
    """Only ever add optional columns, raise SCHEMA_VERSION, and write the new text to the golden file."""
    assert written_out() == GOLDEN.read_text()


def test_a_row_has_every_column_and_no_other():
    assert {field.name for field in dataclasses.fields(schema.TaskRow)} == set(schema.ROWS.names)
    assert schema.SAMPLES.names[8:] == list(schema.SAMPLE_COLUMNS)
    assert schema.BLOCKS.names[8:] == list(schema.BLOCK_COLUMNS)


def test_every_measured_field_reaches_the_row():
    values = {}
    for index, field in enumerate(dataclasses.fields(Measurement)):
        kind = field.type
        if "dict" in kind:
            continue
        values[field.name] = f"v{index}" if "str" in kind else bool(index % 2) if "bool" in kind else index
    values |= {"graph_break_reasons": ("a", "b"), "process_speedups": (1.5, 1.25)}
    measured = Measurement(**values, versions={"torch": "2", "numpy": "1"}, machine={"cores": 2})
    row = schema.row_of("r", a_task(1), Outcome("t", 1, Status.PASS, Phase.WRITE, measurement=measured))
    assert {name: getattr(row, name) for name in values} == values
    assert (row.torch, row.other_versions, row.machine) == ("2", '{"numpy": "1"}', '{"cores": 2}')


def test_every_phase_has_its_seconds_apart_from_the_cost_of_compiling():
    seconds = {phase.value: float(index) for index, phase in enumerate(Phase, start=1)}
    outcome = Outcome("t", 1, Status.PASS, Phase.WRITE, phase_s=seconds, measurement=Measurement(compile_s=99.0))
    row = schema.row_of("r", a_task(1), outcome)
    assert {phase: getattr(row, column) for phase, column in schema.PHASE_COLUMNS.items()} == {Phase(k): v for k, v in seconds.items()}
    assert row.compile_s == 99.0


def test_a_skip_has_a_reason_and_no_error():
    row = schema.row_of("r", a_task(1), failed(a_task(1), status=Status.SKIPPED, error="excluded: too big"))
    assert (row.skip_reason, row.error) == ("excluded: too big", None)


def test_what_the_worker_does_not_say_comes_from_the_task():
    task = dataclasses.replace(a_task(1), precision=dataclasses.replace(a_task(1).precision, autocast_dtype="bfloat16"))
    row = schema.row_of("r", task, failed(task))
    assert (row.batch_size, row.autocast_dtype, row.task_digest) == (4, "bfloat16", task.digest)
    assert (row.started, row.ended) == (datetime.fromtimestamp(1_800_000_000, UTC), None)


def test_text_that_utf8_cannot_hold_does_not_stop_a_run(store_folder):
    outcome = dataclasses.replace(failed(a_task(1)), error="bad \ud800 byte", log_tail="\udcff")
    row = schema.row_of("r", a_task(1), outcome)
    assert through_parquet(store_folder, [row]) == [row]
    assert row.error == "bad ? byte"


@pytest.fixture
def store_folder(tmp_path):
    return LocalFiles(tmp_path)


def through_parquet(files, rows):
    parts = Parts(files, schema.file_metadata("m"), fence=lambda: None)
    part = Part.new(parts.next_number())
    parts.commit(part, schema.rows_table(rows), schema.samples_table("r", []), schema.blocks_table("r", []))
    table, _ = parts.rows(), files.remove(f"tasks/{part.name}")
    return schema.task_rows(table)


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
number = st.floats(allow_nan=False)
whole = st.integers(-(2**63), 2**63 - 1)
moment = st.datetimes(datetime(1970, 1, 2), datetime(2200, 1, 1), timezones=st.just(UTC))
BY_TYPE = {
    pa.string(): text,
    pa.float64(): number,
    pa.int64(): whole,
    pa.bool_(): st.booleans(),
    pa.list_(pa.string()): st.lists(text, max_size=3).map(tuple),
    pa.list_(pa.float64()): st.lists(number, max_size=3).map(tuple),
    pa.timestamp("us", tz="UTC"): moment,
}
SPECIAL = {"status": st.sampled_from(Status), "phase": st.sampled_from(Phase)}


def cell(field):
    values = SPECIAL.get(field.name, BY_TYPE[field.type])
    empty = st.just(()) if pa.types.is_list(field.type) else st.none()
    return values | empty if field.nullable else values


a_row = st.fixed_dictionaries({field.name: cell(field) for field in schema.ROWS}).map(lambda columns: schema.TaskRow(**columns))


@settings(max_examples=25, deadline=None)
@given(rows=st.lists(a_row, min_size=1, max_size=4, unique_by=lambda row: row.task_id))
def test_rows_survive_parquet(tmp_path_factory, rows):
    assert through_parquet(LocalFiles(tmp_path_factory.mktemp("rows")), rows) == rows


def test_nan_and_infinity_survive_parquet(store_folder):
    row = dataclasses.replace(schema.row_of("r", a_task(1), passed(a_task(1))), speedup=math.nan, speedup_high=math.inf)
    (back,) = through_parquet(store_folder, [row])
    assert math.isnan(back.speedup)
    assert back.speedup_high == math.inf


def test_samples_survive_in_order_and_know_their_task():
    batch = [(a_task(n), passed(a_task(n), attempt=n, seed=n, pairs=n)) for n in (3, 1, 2)]
    table = schema.samples_table("r", batch)
    assert table.schema.equals(schema.SAMPLES)
    table.validate(full=True)
    for task, outcome in batch:
        mine = table.filter(pa.compute.equal(table.column("task_id").cast(pa.string()), task.task_id))
        assert schema.samples_of(mine) == outcome.samples
        assert set(mine.column("attempt").to_pylist()) == {outcome.attempt}
        assert set(mine.column("model").to_pylist()) == {task.model.name}


def test_samples_of_a_task_that_has_none():
    table = schema.samples_table("r", [(a_task(1), failed(a_task(1)))])
    assert table.num_rows == 0
    assert schema.samples_of(table) == Samples()


def test_ragged_samples_are_refused():
    ragged = dataclasses.replace(passed(a_task(1)), samples=Samples(phase=("timed", "timed"), arm=("eager",)))
    with pytest.raises(pa.ArrowInvalid):
        schema.samples_table("r", [(a_task(1), ragged)])


def test_a_reader_gives_nulls_for_columns_of_the_future_past_and_ignores_unknown_ones():
    older = pa.table({"task_id": ["t"], "attempt": pa.array([1], pa.int32()), "of_the_future": [1]})
    table = schema.conform(older, schema.ROWS)
    assert table.schema.equals(schema.ROWS)
    assert table.column("speedup").to_pylist() == [None]
    assert table.column("attempt").to_pylist() == [1]
    assert schema.conform(older, schema.ROWS, ("speedup", "task_id")).column_names == ["task_id", "speedup"]


def test_a_column_of_another_type_is_an_error():
    with pytest.raises(pa.ArrowInvalid):
        schema.conform(pa.table({"attempt": ["many"]}), schema.ROWS, ["attempt"])

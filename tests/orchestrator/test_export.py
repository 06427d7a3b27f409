"""Exports: upstream's columns and words, the dashboard's records, and a Parquet file without nesting."""

from __future__ import annotations

import csv
import io
import json
import sys
from dataclasses import replace

import duckdb
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from orchestrator.cli import main
from orchestrator.errors import ExitCode, StoreError
from orchestrator.export import ACCURACY, PERFORMANCE, Format, export, flat, hud_json, upstream_files, upstream_status
from orchestrator.report.synthetic import failed, store_run, synthetic_run, true_logs
from tasks.spec import Status

RUN = synthetic_run(true_logs({"timm": 2, "huggingface": 1}), failing=(0,))


def changed(place, **fields):
    return replace(RUN, rows=tuple(replace(row, **fields) if place == at else row for at, row in enumerate(RUN.rows)))


def table(files, name):
    return list(csv.DictReader(io.StringIO(files[name])))


def test_upstream_files_have_upstreams_names_columns_and_order():
    files = upstream_files(RUN)
    assert set(files) == {
        f"inductor_{suite}_{dtype}_training_cuda_{kind}.csv"
        for suite in ("timm_models", "huggingface")
        for dtype in ("amp", "float32")
        for kind in ("performance", "accuracy")
    }
    first = files["inductor_timm_models_amp_training_cuda_performance.csv"].splitlines()[0].split(",")
    assert tuple(first) == PERFORMANCE
    assert first[:9] == [
        *("dev", "name", "batch_size", "speedup", "abs_latency", "compilation_latency"),
        *("compression_ratio", "eager_peak_mem", "dynamo_peak_mem"),
    ]
    assert tuple(files["inductor_timm_models_amp_training_cuda_accuracy.csv"].splitlines()[0].split(",")) == ACCURACY


def test_a_failure_is_zero_in_performance_and_a_word_in_accuracy():
    files = upstream_files(RUN)
    performance, accuracy = (table(files, f"inductor_timm_models_amp_training_cuda_{kind}.csv") for kind in ("performance", "accuracy"))
    assert (performance[0]["batch_size"], performance[0]["speedup"], performance[0]["abs_latency"]) == ("0", "0.000000", "0.000000")
    assert accuracy[0]["accuracy"] == "fail_accuracy"
    assert accuracy[1]["accuracy"] == "pass"


def test_numbers_are_upstreams():
    row = next(row for row in RUN.rows if row.passed and row.suite == "timm" and row.dtype == "float32")
    run = changed(RUN.rows.index(row), speedup_of_medians=1.25, eager_peak_mib=2 * 953.67431640625, compiled_peak_mib=953.67431640625)
    (found,) = [
        line
        for line in table(upstream_files(run), "inductor_timm_models_float32_training_cuda_performance.csv")
        if line["name"] == row.model
    ]
    assert found["speedup"] == "1.250000"
    assert (found["compression_ratio"], found["eager_peak_mem"], found["dynamo_peak_mem"]) == ("2.000000", "2.000000", "1.000000")
    assert float(found["abs_latency"]) == pytest.approx(row.compiled_ms, abs=1e-6)
    assert found["calls_captured"] == "", "what is not measured is not zero"


@pytest.mark.parametrize("status", [status for status in Status if status is not Status.SKIPPED])
def test_every_status_has_a_word(status):
    assert upstream_status(replace(RUN.rows[1], status=status.value))


def test_words_that_depend_on_more_than_the_status():
    row = RUN.rows[1]
    assert upstream_status(replace(row, accuracy="skipped")) == "pass_due_to_skip"
    assert upstream_status(replace(failed(row), status="fail_eager", phase="build")) == "model_fail_to_load"


def test_an_excluded_task_has_no_row():
    run = changed(1, status="skipped")
    assert sum(text.count("\n") - 1 for text in upstream_files(run).values()) == 2 * (len(RUN.rows) - 1)
    assert all(record["benchmark"]["extra_info"]["task_id"] != RUN.rows[1].task_id for record in json.loads(hud_json(run)))


def test_hostile_names_stay_in_their_cell_and_folder():
    run = changed(1, suite="../../etc", model='a,"b"\n=1+1')
    files = upstream_files(run)
    assert not any("/" in name for name in files)
    (name,) = [name for name in files if "etc" in name and "performance" in name]
    assert table(files, name)[0]["name"] == 'a,"b"\n=1+1'


def test_hud_records():
    records = json.loads(hud_json(RUN))
    assert {record["schema_version"] for record in records} == {"v3"}
    mine = [record for record in records if record["benchmark"]["extra_info"]["task_id"] == RUN.rows[1].task_id]
    metrics = {record["metric"]["name"]: record["metric"] for record in mine}
    row = RUN.rows[1]
    assert metrics["speedup"] == {"name": "speedup", "benchmark_values": [pytest.approx(row.eager_ms / row.compiled_ms)]}
    assert metrics["accuracy"] == {"name": "accuracy", "extra_info": {"benchmark_values": ["pass"]}}
    assert {tuple(record["model"]["origins"]) for record in records} == {("timm_models",), ("huggingface",)}
    values = [value for record in records for value in record["metric"].get("benchmark_values", ())]
    assert all(isinstance(value, (int, float)) for value in values)
    assert mine[0]["dependencies"]["torch"] == {"version": "2.11.0+cu129"}
    failure = [record for record in records if record["benchmark"]["extra_info"]["task_id"] == RUN.rows[0].task_id]
    assert [record["metric"]["name"] for record in failure] == ["accuracy"]


def test_the_flat_parquet_is_flat_and_readable_everywhere(tmp_path):
    store = store_run(str(tmp_path / "results"), RUN)
    (path,) = export(store, Format.PARQUET, tmp_path / "out")
    stored = pq.read_table(path)
    assert not any(pa.types.is_nested(field.type) for field in stored.schema)
    assert stored.num_rows == len(RUN.rows)
    query = f"SELECT avg(log_speedup) FROM '{path}' WHERE status = 'pass'"
    mean = polars.read_parquet(path).filter(polars.col("status") == "pass")["log_speedup"].mean()
    assert duckdb.sql(query).fetchall()[0][0] == pytest.approx(mean)


def test_flat_bears_zeros_and_nulls(tmp_path):
    store = store_run(str(tmp_path), changed(1, speedup=0.0, compiled_peak_mib=0.0, eager_peak_mib=None))
    found = flat(store.rows()).filter(pa.compute.field("task_id") == RUN.rows[1].task_id).to_pylist()[0]
    assert (found["log_speedup"], found["memory_ratio"]) == (None, None)


@pytest.mark.parametrize("form", list(Format))
def test_every_format_writes_its_files_whole(tmp_path, form):
    store = store_run(str(tmp_path / "results"), RUN)
    for _ in range(2):
        paths = export(store, form, tmp_path / "out")
    assert paths
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(path.name for path in paths)


def test_an_unwritable_folder_is_a_clear_message(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot write"):
        export(store_run(str(tmp_path / "results"), RUN), Format.HUD_JSON, tmp_path / "file" / "out")


@pytest.mark.parametrize("form", list(Format))
def test_what_is_not_whole_is_told_and_sets_the_status(tmp_path, monkeypatch, capsys, form):
    def sweep(run):
        monkeypatch.setattr(sys, "argv", ["sweep", "export", run, "--format", form, "--output", str(tmp_path), "--results", str(tmp_path)])
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code, capsys.readouterr().err

    for name in ("damaged", "planless"):
        store_run(str(tmp_path), replace(RUN, run_id=name))
    (part,) = (tmp_path / "damaged" / "tasks").glob("*.parquet")
    part.write_bytes(part.read_bytes()[:-20])
    (tmp_path / "planless" / "plan.jsonl.gz").write_bytes(b"\x1f\x8b")
    code, errors = sweep("damaged")
    assert code == ExitCode.INFRASTRUCTURE
    assert part.name in errors
    assert "6 planned tasks have no row" in errors
    code, errors = sweep("planless")
    assert code == ExitCode.INFRASTRUCTURE
    assert "plan.jsonl.gz" in errors

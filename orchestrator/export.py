"""A stored run in other formats: PyTorch's benchmark CSV files, the records its dashboard ingests, and one flat Parquet file.

``upstream-csv`` has the columns of ``benchmarks/dynamo``, in their order, one performance and one accuracy file per suite, dtype, mode and
backend. ``speedup`` there is upstream's own statistic, the ratio of the medians, and not the estimate of the report. Counters that are not
measured here stay empty; zero would be a claim.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.report.data import plain_data
from orchestrator.report.present import write_file
from orchestrator.report.rows import Row, Run, load
from tasks.spec import Accuracy, Phase, Status, slug

if TYPE_CHECKING:
    import pyarrow as pa

    from orchestrator.store import RunStore


class Format(StrEnum):
    """What can be written."""

    UPSTREAM_CSV = "upstream-csv"
    HUD_JSON = "hud-json"
    PARQUET = "parquet"


_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
MIB_PER_GB = 1_000_000_000 / 1_048_576
UPSTREAM_SUITES = {"timm": "timm_models"}
COUNTERS = (
    "calls_captured",
    "unique_graphs",
    "fallbacks_to_eager",
    "graph_breaks",
    "unique_graph_breaks",
    "autograd_captures",
    "autograd_compiles",
    "cudagraph_skips",
)
PERFORMANCE = (
    *("dev", "name", "batch_size", "speedup", "abs_latency", "compilation_latency"),
    *("compression_ratio", "eager_peak_mem", "dynamo_peak_mem"),
    *COUNTERS,
)
ACCURACY = ("dev", "name", "batch_size", "accuracy", *COUNTERS, "compilation_latency")
UPSTREAM_STATUS = {
    Status.PASS: "pass",
    Status.FAIL_ACCURACY: "fail_accuracy",
    Status.FAIL_EAGER: "eager_fail_to_run",
    Status.FAIL_COMPILE: "fail_to_run",
    Status.FAIL_RUN: "fail_to_run",
    Status.OOM: "OOM",
    Status.TIMEOUT: "timeout",
    Status.CRASH: "fail_to_run",
    Status.UNSUPPORTED: "model_fail_to_load",
    Status.INFRA_ERROR: "infra_error",
}
"""Status -> upstream's word. A task that the manifest excludes has no row there, as it has none upstream."""
HUD_METRICS: Mapping[str, Callable[[Row], float | None]] = {
    "speedup": lambda row: row.ratio_of_medians,
    "abs_latency": lambda row: row.compiled_ms,
    "compilation_latency": lambda row: row.compile_s,
    "compression_ratio": lambda row: row.memory_ratio,
    "eager_peak_mem": lambda row: _gigabytes(row.eager_peak_mib),
    "dynamo_peak_mem": lambda row: _gigabytes(row.compiled_peak_mib),
    "unique_graphs": lambda row: row.graphs,
    "graph_breaks": lambda row: row.graph_breaks,
}


def export(store: RunStore, form: Format, folder: Path) -> list[Path]:
    """Write the run in ``form`` into ``folder``; the paths of the files, which are replaced if they exist. Damaged parts are left out.

    Raises:
        StoreError: a file cannot be written.
        UsageError: an A/A run, for any format but Parquet.
    """
    if form is Format.PARQUET:
        import pyarrow.parquet as pq

        store.plan()  # a run whose plan is damaged is none that another format could be made of
        sink = io.BytesIO()
        pq.write_table(flat(store.rows()), sink, compression="zstd")
        files = {f"{store.run_id}.parquet": sink.getvalue()}
    else:
        run = load(store)
        run.refuse_aa(f"the format {form}")
        made = upstream_files(run) if form is Format.UPSTREAM_CSV else {f"{run.run_id}.json": hud_json(run)}
        files = {name: text.encode() for name, text in made.items()}
    return [write_file(folder / name, data) for name, data in files.items()]


def upstream_files(run: Run) -> dict[str, str]:
    """File name -> CSV text."""
    devices = {task.task_id: task.device for task in run.planned}
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in run.rows:
        if row.status != Status.SKIPPED:
            suite = UPSTREAM_SUITES.get(row.suite, row.suite)
            parts = (row.backend, suite, row.dtype, row.mode, devices.get(row.task_id, "cuda"))
            groups["_".join(part if _FILE_NAME.fullmatch(part) else slug(part) for part in parts)].append(row)
    files = {}
    for name, rows in groups.items():
        files[f"{name}_performance.csv"] = _csv(PERFORMANCE, [_performance(row, devices) for row in rows])
        files[f"{name}_accuracy.csv"] = _csv(ACCURACY, [_accuracy(row, devices) for row in rows])
    return files


def _performance(row: Row, devices: Mapping[str, str]) -> dict[str, Any]:
    common = {"dev": devices.get(row.task_id, "cuda"), "name": row.model}
    if not row.passed:
        return {**common, "batch_size": 0, "speedup": 0.0, "abs_latency": 0.0}
    return {
        **common,
        "batch_size": row.batch_size,
        "speedup": row.ratio_of_medians,
        "abs_latency": row.compiled_ms,
        "compilation_latency": row.compile_s,
        "compression_ratio": row.memory_ratio,
        "eager_peak_mem": _gigabytes(row.eager_peak_mib),
        "dynamo_peak_mem": _gigabytes(row.compiled_peak_mib),
        **_counters(row),
    }


def _accuracy(row: Row, devices: Mapping[str, str]) -> dict[str, Any]:
    return {
        "dev": devices.get(row.task_id, "cuda"),
        "name": row.model,
        "batch_size": row.batch_size,
        "accuracy": upstream_status(row),
        **_counters(row),
        "compilation_latency": row.compile_s,
    }


def upstream_status(row: Row) -> str:
    """How upstream would call the end of this task."""
    if row.status == Status.PASS and row.accuracy == Accuracy.SKIPPED:
        return "pass_due_to_skip"
    if row.status == Status.FAIL_EAGER and row.phase == Phase.BUILD:
        return "model_fail_to_load"
    return UPSTREAM_STATUS[Status(row.status)]


def _counters(row: Row) -> dict[str, int | None]:
    distinct = len(set(row.graph_break_reasons)) if row.graph_breaks is not None else None
    return {"unique_graphs": row.graphs, "graph_breaks": row.graph_breaks, "unique_graph_breaks": distinct}


def _csv(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        cells = [row.get(column) for column in columns]
        writer.writerow([f"{cell:.6f}" if isinstance(cell, float) else cell for cell in cells])
    return text.getvalue()


def _gigabytes(mib: float | None) -> float | None:
    return mib / MIB_PER_GB if mib is not None else None


def hud_json(run: Run) -> str:
    """The records of the benchmark database's version 3, one per task and metric. What its uploader adds (repository, commit, job) is not
    known here.
    """
    return json.dumps(list(_records(run)), indent=1, allow_nan=False) + "\n"


def _records(run: Run) -> Iterator[dict[str, Any]]:
    devices = {task.task_id: task.device for task in run.planned}
    for row in run.rows:
        if row.status == Status.SKIPPED:
            continue
        for name, value_of in HUD_METRICS.items():
            if row.passed and (value := value_of(row)) is not None:
                yield _record(run, row, devices, {"name": name, "benchmark_values": [value]})
        # The database's values are numbers, so upstream puts words where words can go.
        yield _record(run, row, devices, {"name": "accuracy", "extra_info": {"benchmark_values": [upstream_status(row)]}})


def _record(run: Run, row: Row, devices: Mapping[str, str], metric: Mapping[str, Any]) -> dict[str, Any]:
    known = {"run_id": run.run_id, "task_id": row.task_id, "quality": row.quality, "batch_size": row.batch_size}
    arguments = {name: str(value) for name, value in known.items() if value is not None}
    suite = UPSTREAM_SUITES.get(row.suite, row.suite)
    return {
        "schema_version": "v3",
        "timestamp": int(row.ended or run.started or 0),
        "benchmark": {
            "name": "TorchInductor",
            "mode": row.mode,
            "dtype": row.dtype,
            "extra_info": {"suite": suite, "device": devices.get(row.task_id, "cuda"), **arguments},
        },
        "model": {"name": row.model, "type": "OSS model", "backend": row.backend, "origins": [suite]},
        "metric": dict(metric),
        "runners": [{"name": row.node or "", "type": row.device or ""}],
        "dependencies": {name: {"version": version} for name, version in plain_data(row.versions).items() if version},
    }


def flat(table: pa.Table) -> pa.Table:
    """``table`` of task rows without nested columns, with the memory ratio and ln(speedup) that a BI tool would have to work out."""
    import pyarrow as pa
    import pyarrow.compute as pc

    for name, separator in (("graph_break_reasons", "\n"), ("process_speedups", " ")):
        texts = pc.binary_join(table[name].cast(pa.list_(pa.string())), separator)
        table = table.set_column(table.schema.get_field_index(name), name, texts)
    positive = pc.if_else(pc.greater(table["speedup"], 0.0), table["speedup"], pa.scalar(None, pa.float64()))
    table = table.append_column("log_speedup", pc.ln(positive))
    needed = pc.if_else(pc.greater(table["compiled_peak_mib"], 0.0), table["compiled_peak_mib"], pa.scalar(None, pa.float64()))
    return table.append_column("memory_ratio", pc.divide(table["eager_peak_mib"], needed))

"""The frozen Arrow schemas of the results store, and task rows as a dataclass.

``ROWS`` has one row per terminal task, ``SAMPLES`` one per timed iteration, ``BLOCKS`` one per block of iterations. They change in one way
only: nullable columns are added, and ``SCHEMA_VERSION`` grows. Readers read with these schemas, so a column that an older file lacks is
null. Every file carries the version, its writer and the digest of its manifest in its metadata. Holds no I/O.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from orchestrator import __version__
from tasks.probe import code_version
from tasks.spec import Blocks, Measurement, Outcome, Phase, Samples, Scalar, Status, TaskSpec

SCHEMA_VERSION = 5
VERSION_COLUMNS = ("python", "torch", "triton", "transformers", "timm", "torchvision", "driver", "cuda")
"""The keys of ``Measurement.versions`` that have a column of their own."""
PHASE_COLUMNS = {phase: "compile_phase_s" if phase is Phase.COMPILE else f"{phase.value}_s" for phase in Phase}
"""Where the seconds spent in a phase go; ``compile_s`` is the measured cost of compiling and something else."""

_TEXT = pa.string()
_NAME = pa.dictionary(pa.int32(), pa.string())
_TIME = pa.timestamp("us", tz="UTC")


def _required(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


ROWS = pa.schema(
    [
        _required("run_id", _TEXT),
        _required("task_id", _TEXT),
        _required("suite", _TEXT),
        _required("model", _TEXT),
        _required("dtype", _TEXT),
        _required("mode", _TEXT),
        _required("backend", _TEXT),
        _required("status", _TEXT),
        _required("phase", _TEXT),
        ("failure_class", _TEXT),
        ("error", _TEXT),
        ("skip_reason", _TEXT),
        _required("attempt", pa.int64()),
        _required("carried", pa.bool_()),
        ("carried_from", _TEXT),
        ("speedup", pa.float64()),
        ("speedup_low", pa.float64()),
        ("speedup_high", pa.float64()),
        ("speedup_of_medians", pa.float64()),
        ("quality", _TEXT),
        ("pairs", pa.int64()),
        ("eager_ms", pa.float64()),
        ("compiled_ms", pa.float64()),
        ("eager_device_ms", pa.float64()),
        ("compiled_device_ms", pa.float64()),
        ("launch_bound", pa.bool_()),
        ("compile_s", pa.float64()),
        ("compile_cpu_s", pa.float64()),
        ("neighbours", pa.int64()),
        ("eager_peak_mib", pa.float64()),
        ("compiled_peak_mib", pa.float64()),
        ("graphs", pa.int64()),
        ("graph_breaks", pa.int64()),
        ("graph_break_reasons", pa.list_(_TEXT)),
        ("recompiles", pa.int64()),
        ("fell_back", pa.bool_()),
        ("accuracy", _TEXT),
        ("accuracy_reason", _TEXT),
        ("accuracy_tensor", _TEXT),
        ("accuracy_margin", pa.float64()),
        ("accuracy_tolerance", pa.float64()),
        ("eager_rmse", pa.float64()),
        ("compiled_rmse", pa.float64()),
        ("deterministic", pa.bool_()),
        ("reference", _TEXT),
        ("batch_size", pa.int64()),
        ("parameters", pa.int64()),
        ("input_shapes", _TEXT),
        ("model_source", _TEXT),
        ("fidelity", _TEXT),
        ("compile_backend", _TEXT),
        ("compile_mode", _TEXT),
        ("dynamic", pa.bool_()),
        ("tf32", pa.bool_()),
        ("autocast_dtype", _TEXT),
        ("optimizer", _TEXT),
        ("cache", _TEXT),
        ("node", _TEXT),
        ("device", _TEXT),
        ("gpu_uuid", _TEXT),
        ("threads", pa.int64()),
        ("compile_threads", pa.int64()),
        ("python", _TEXT),
        ("torch", _TEXT),
        ("triton", _TEXT),
        ("transformers", _TEXT),
        ("timm", _TEXT),
        ("torchvision", _TEXT),
        ("driver", _TEXT),
        ("cuda", _TEXT),
        ("other_versions", _TEXT),
        ("machine", _TEXT),
        ("environment", _TEXT),
        ("manifest_digest", _TEXT),
        _required("task_digest", _TEXT),
        ("code_version", _TEXT),
        ("start_s", pa.float64()),
        ("build_s", pa.float64()),
        ("eager_s", pa.float64()),
        ("compile_phase_s", pa.float64()),
        ("verify_s", pa.float64()),
        ("time_s", pa.float64()),
        ("write_s", pa.float64()),
        ("started", _TIME),
        ("ended", _TIME),
        ("log", _TEXT),
        ("log_tail", _TEXT),
        ("process_speedups", pa.list_(pa.float64())),
        ("aa", pa.bool_()),
        ("aa_eager", pa.float64()),
        ("aa_eager_low", pa.float64()),
        ("aa_eager_high", pa.float64()),
        ("aa_compiled", pa.float64()),
        ("aa_compiled_low", pa.float64()),
        ("aa_compiled_high", pa.float64()),
        ("cache_hits", pa.int64()),
        ("cache_misses", pa.int64()),
        ("paused_s", pa.float64()),
        ("waited_s", pa.float64()),
        ("owned_s", pa.float64()),
        ("peak_mib", pa.float64()),
        ("random_numbers", _TEXT),
        ("eager_event_ms", pa.float64()),
        ("compiled_event_ms", pa.float64()),
        ("empty_step_us", pa.float64()),
        ("tuned_s", pa.float64()),
        ("warmed_s", pa.float64()),
    ]
)
"""Version 2 added what follows ``log_tail``, version 3 what follows ``waited_s``, version 4 ``tuned_s``, version 5 ``warmed_s``. ``aa``
marks a task that measured each arm against itself and so has no speedup. ``log`` is relative to the run's folder, ``code_version`` is the
digest of the measuring code, and ``other_versions``, ``machine`` and ``environment`` are JSON objects."""

SAMPLES = pa.schema(
    [
        _required("run_id", _NAME),
        _required("task_id", _NAME),
        _required("suite", _NAME),
        _required("model", _NAME),
        _required("dtype", _NAME),
        _required("mode", _NAME),
        _required("backend", _NAME),
        _required("attempt", pa.int32()),
        _required("phase", _NAME),
        _required("arm", _NAME),
        _required("process", pa.int32()),
        _required("pair", pa.int32()),
        _required("block", pa.int32()),
        _required("order", pa.int32()),
        _required("iteration", pa.int32()),
        _required("washout", pa.bool_()),
        _required("host_ns", pa.int64()),
        ("device_ms", pa.float64()),
        _required("started_ns", pa.int64()),
        _required("valid", pa.bool_()),
        ("reason", _NAME),
    ]
)
"""The last thirteen columns are those of ``tasks.spec.Samples``, in the order in which the worker took them."""

BLOCKS = pa.schema(
    [
        *(SAMPLES.field(place) for place in range(8)),
        _required("phase", _NAME),
        _required("process", pa.int32()),
        _required("pair", pa.int32()),
        _required("block", pa.int32()),
        _required("arm", _NAME),
        _required("order", pa.int32()),
        _required("valid", pa.bool_()),
        ("reason", _NAME),
        _required("ended", pa.int64()),
        ("sm_clock_mhz", pa.float64()),
        ("memory_clock_mhz", pa.float64()),
        ("temperature_c", pa.float64()),
        ("power_w", pa.float64()),
        ("energy_mj", pa.int64()),
        ("power_cap_ns", pa.int64()),
        ("slowdown_ns", pa.int64()),
        ("clock_reasons", _NAME),
        ("other_processes", _NAME),
        ("cpu_pressure_s", pa.float64()),
        ("cpu_steal_s", pa.float64()),
        ("cpu_wait_s", pa.float64()),
    ]
)
"""From version 2 on. After the task's identity the columns are those of ``tasks.spec.Blocks``, in the order in which blocks were timed."""

SAMPLE_COLUMNS = tuple(field.name for field in dataclasses.fields(Samples))
BLOCK_COLUMNS = tuple(field.name for field in dataclasses.fields(Blocks))


@dataclass(frozen=True, slots=True)
class TaskRow:
    """One row of ``ROWS``. None is "not reached" or "not known"; ``carried_from`` is the run that measured a carried row."""

    run_id: str
    task_id: str
    suite: str
    model: str
    dtype: str
    mode: str
    backend: str
    status: Status
    phase: Phase
    attempt: int
    task_digest: str
    failure_class: str | None = None
    error: str | None = None
    skip_reason: str | None = None
    carried: bool = False
    carried_from: str | None = None
    speedup: float | None = None
    speedup_low: float | None = None
    speedup_high: float | None = None
    speedup_of_medians: float | None = None
    quality: str | None = None
    pairs: int | None = None
    eager_ms: float | None = None
    compiled_ms: float | None = None
    eager_device_ms: float | None = None
    compiled_device_ms: float | None = None
    launch_bound: bool | None = None
    compile_s: float | None = None
    compile_cpu_s: float | None = None
    neighbours: int | None = None
    eager_peak_mib: float | None = None
    compiled_peak_mib: float | None = None
    graphs: int | None = None
    graph_breaks: int | None = None
    graph_break_reasons: tuple[str, ...] = ()
    recompiles: int | None = None
    fell_back: bool | None = None
    accuracy: str | None = None
    accuracy_reason: str | None = None
    accuracy_tensor: str | None = None
    accuracy_margin: float | None = None
    accuracy_tolerance: float | None = None
    eager_rmse: float | None = None
    compiled_rmse: float | None = None
    deterministic: bool | None = None
    reference: str | None = None
    batch_size: int | None = None
    parameters: int | None = None
    input_shapes: str | None = None
    model_source: str | None = None
    fidelity: str | None = None
    compile_backend: str | None = None
    compile_mode: str | None = None
    dynamic: bool | None = None
    tf32: bool | None = None
    autocast_dtype: str | None = None
    optimizer: str | None = None
    cache: str | None = None
    node: str | None = None
    device: str | None = None
    gpu_uuid: str | None = None
    threads: int | None = None
    compile_threads: int | None = None
    python: str | None = None
    torch: str | None = None
    triton: str | None = None
    transformers: str | None = None
    timm: str | None = None
    torchvision: str | None = None
    driver: str | None = None
    cuda: str | None = None
    other_versions: str | None = None
    machine: str | None = None
    environment: str | None = None
    manifest_digest: str | None = None
    code_version: str | None = None
    start_s: float | None = None
    build_s: float | None = None
    eager_s: float | None = None
    compile_phase_s: float | None = None
    verify_s: float | None = None
    time_s: float | None = None
    write_s: float | None = None
    started: datetime | None = None
    ended: datetime | None = None
    log: str | None = None
    log_tail: str | None = None
    process_speedups: tuple[float, ...] = ()
    aa: bool | None = None
    aa_eager: float | None = None
    aa_eager_low: float | None = None
    aa_eager_high: float | None = None
    aa_compiled: float | None = None
    aa_compiled_low: float | None = None
    aa_compiled_high: float | None = None
    cache_hits: int | None = None
    cache_misses: int | None = None
    paused_s: float | None = None
    waited_s: float | None = None
    owned_s: float | None = None
    peak_mib: float | None = None
    random_numbers: str | None = None
    eager_event_ms: float | None = None
    compiled_event_ms: float | None = None
    empty_step_us: float | None = None
    tuned_s: float | None = None
    warmed_s: float | None = None


_MEASURED = tuple(
    field.name
    for field in dataclasses.fields(Measurement)
    if field.name not in {"versions", "machine", "graph_break_reasons", "batch_size", "autocast_dtype"}
)


def row_of(run_id: str, task: TaskSpec, outcome: Outcome, log: str | None = None) -> TaskRow:
    """The terminal row of ``task``; ``log`` is where the whole log lies, relative to the run's folder.

    For a skipped task the outcome's error is the reason to skip and goes to ``skip_reason``.
    """
    measured = outcome.measurement
    skipped = outcome.status is Status.SKIPPED
    columns: dict[str, Any] = {
        **{name: getattr(measured, name) for name in _MEASURED},
        **{name: measured.versions.get(name) for name in VERSION_COLUMNS},
        **{PHASE_COLUMNS[phase]: outcome.phase_s.get(phase.value) for phase in Phase},
        **task_columns(task),
        "run_id": run_id,
        "status": outcome.status,
        "phase": outcome.phase,
        "failure_class": outcome.failure_class.value if outcome.failure_class else None,
        "error": None if skipped else outcome.error,
        "skip_reason": outcome.error if skipped else None,
        "attempt": outcome.attempt,
        "graph_break_reasons": tuple(clean(reason) for reason in measured.graph_break_reasons),
        "batch_size": task.model.batch_size if measured.batch_size is None else measured.batch_size,
        "autocast_dtype": measured.autocast_dtype or task.precision.autocast_dtype,
        "other_versions": _json({name: text for name, text in measured.versions.items() if name not in VERSION_COLUMNS}),
        "machine": _json(measured.machine),
        "environment": _json(outcome.environment),
        "code_version": code_version(),
        "node": outcome.node or None,
        "started": _moment(outcome.started),
        "ended": _moment(outcome.ended),
        "log": log,
        "log_tail": outcome.log_tail or None,
        "paused_s": outcome.paused_s,
        "waited_s": outcome.waited_s,
        "owned_s": outcome.owned_s,
        "tuned_s": outcome.tuned_s,
        "warmed_s": outcome.warmed_s,
    }
    cleaned: dict[str, Any] = {name: clean(value) if type(value) is str else value for name, value in columns.items()}
    return TaskRow(**cleaned)


def task_columns(task: TaskSpec) -> dict[str, Any]:
    """What a row says of its task before anything is measured."""
    return {
        "task_id": task.task_id,
        "suite": task.model.suite,
        "model": task.model.name,
        "dtype": task.precision.dtype,
        "mode": task.mode,
        "backend": task.backend,
        "compile_backend": task.compile.backend,
        "compile_mode": task.compile.mode,
        "dynamic": task.compile.dynamic,
        "tf32": task.precision.tf32,
        "optimizer": task.optimizer,
        "cache": task.cache,
        "aa": task.aa,
        "manifest_digest": task.manifest_digest or None,
        "task_digest": task.digest,
    }


def clean(text: str) -> str:
    """``text`` without lone surrogates, which a log may hold and UTF-8 cannot."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _json(mapping: Mapping[str, Scalar]) -> str | None:
    return json.dumps(mapping, sort_keys=True) if mapping else None


def _moment(seconds: float) -> datetime | None:
    return datetime.fromtimestamp(seconds, UTC) if seconds else None


def rows_table(rows: Sequence[TaskRow]) -> pa.Table:
    """Rows as a table of ``ROWS``."""
    columns = {name: [getattr(row, name) for row in rows] for name in ROWS.names}
    return pa.table(columns, schema=ROWS)


def task_rows(table: pa.Table) -> list[TaskRow]:
    """The rows of a table that has all columns of ``ROWS``."""
    return [_task_row(columns) for columns in table.to_pylist()]


def _task_row(columns: dict[str, Any]) -> TaskRow:
    columns["status"], columns["phase"] = Status(columns["status"]), Phase(columns["phase"])
    columns |= {name: tuple(columns[name] or ()) for name in ("graph_break_reasons", "process_speedups")}
    return TaskRow(**columns)


def samples_table(run_id: str, batch: Sequence[tuple[TaskSpec, Outcome]]) -> pa.Table:
    """The samples of ``batch`` as a table of ``SAMPLES``, task after task.

    Raises:
        pa.ArrowInvalid: the columns of one outcome's samples differ in length.
    """
    return _detail_table(run_id, batch, [outcome.samples for _, outcome in batch], SAMPLES)


def blocks_table(run_id: str, batch: Sequence[tuple[TaskSpec, Outcome]]) -> pa.Table:
    """The blocks of ``batch`` as a table of ``BLOCKS``, task after task.

    Raises:
        pa.ArrowInvalid: the columns of one outcome's blocks differ in length.
    """
    return _detail_table(run_id, batch, [outcome.blocks for _, outcome in batch], BLOCKS)


def _detail_table(
    run_id: str, batch: Sequence[tuple[TaskSpec, Outcome]], details: Sequence[Samples | Blocks], schema: pa.Schema
) -> pa.Table:
    owner = np.repeat(np.arange(len(batch)), [len(detail.phase) for detail in details])
    tasks = [task_columns(task) for task, _ in batch]
    columns: dict[str, pa.Array] = {name: _spread([task[name] for task in tasks], owner) for name in schema.names[1:7]}
    columns["run_id"] = _spread([run_id] * len(batch), owner)
    columns["attempt"] = pa.array([outcome.attempt for _, outcome in batch], pa.int32()).take(pa.array(owner))
    for name in schema.names[8:]:
        columns[name] = pa.array([value for detail in details for value in getattr(detail, name)], schema.field(name).type)
    return pa.table([columns[name] for name in schema.names], schema=schema)


def _spread(values: list[str], owner: Any) -> pa.Array:
    """``values[owner[i]]`` for every sample i, dictionary-encoded."""
    return pa.array(values, pa.string()).dictionary_encode().take(pa.array(owner))


def samples_of(table: pa.Table) -> Samples:
    """One task's samples from a table that has the columns of ``tasks.spec.Samples``."""
    return Samples(**{name: tuple(table.column(name).to_pylist()) for name in SAMPLE_COLUMNS})


def blocks_of(table: pa.Table) -> Blocks:
    """One task's blocks from a table that has the columns of ``tasks.spec.Blocks``."""
    return Blocks(**{name: tuple(table.column(name).to_pylist()) for name in BLOCK_COLUMNS})


def conform(table: pa.Table, schema: pa.Schema, columns: Iterable[str] | None = None) -> pa.Table:
    """``table`` with the columns of ``schema`` (or those named), in its order: absent ones are null, unknown ones left out.

    Raises:
        pa.ArrowInvalid: a column holds another type.
    """
    asked = None if columns is None else set(columns)
    wanted = [name for name in schema.names if asked is None or name in asked]
    present = set(table.column_names)
    arrays = [
        table.column(name).cast(schema.field(name).type) if name in present else pa.nulls(table.num_rows, schema.field(name).type)
        for name in wanted
    ]
    return pa.table(arrays, schema=pa.schema([schema.field(name) for name in wanted]))


def file_metadata(manifest_digest: str) -> dict[str, str]:
    """What every Parquet file says of itself."""
    return {
        "sweep.schema_version": str(SCHEMA_VERSION),
        "sweep.writer": f"compile-sweep {__version__}",
        "sweep.manifest_digest": manifest_digest,
    }

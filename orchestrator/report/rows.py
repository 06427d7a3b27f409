"""The one place where Arrow tables become plain rows, and where a stored run becomes the ``Run`` that the analysis works on.

Only the columns that are asked for are read; a field whose column was not is None.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from orchestrator import sessions
from orchestrator.errors import UsageError
from orchestrator.report.plain import plain
from tasks.spec import Accuracy, Status, TaskSpec

if TYPE_CHECKING:
    import pyarrow as pa

    from orchestrator.store import RunStore


@dataclass(frozen=True, slots=True)
class Row:
    """One terminal task, as far as the analysis uses it. Times in ms or s and memory in MiB, as named; None: not known."""

    task_id: str
    suite: str
    model: str
    dtype: str
    mode: str
    backend: str
    status: str
    phase: str | None = None
    failure_class: str | None = None
    error: str | None = None
    log_tail: str | None = None
    log: str | None = None
    attempt: int | None = None
    carried_from: str | None = None
    speedup: float | None = None
    speedup_low: float | None = None
    speedup_high: float | None = None
    speedup_of_medians: float | None = None
    quality: str | None = None
    pairs: int | None = None
    process_speedups: tuple[float, ...] = ()  # each process's own estimate
    aa_eager: float | None = None  # of an A/A run: eager against eager
    aa_eager_low: float | None = None
    aa_eager_high: float | None = None
    aa_compiled: float | None = None
    aa_compiled_low: float | None = None
    aa_compiled_high: float | None = None
    eager_ms: float | None = None
    compiled_ms: float | None = None
    eager_device_ms: float | None = None
    compiled_device_ms: float | None = None
    launch_bound: bool | None = None
    compile_s: float | None = None
    compile_threads: int | None = None
    eager_peak_mib: float | None = None
    compiled_peak_mib: float | None = None
    graphs: int | None = None
    graph_breaks: int | None = None
    graph_break_reasons: tuple[str, ...] = ()
    recompiles: int | None = None
    fell_back: bool | None = None
    accuracy: str | None = None
    accuracy_reason: str | None = None
    accuracy_margin: float | None = None
    batch_size: int | None = None
    parameters: int | None = None
    model_source: str | None = None
    fidelity: str | None = None
    node: str | None = None
    device: str | None = None
    gpu_uuid: str | None = None
    threads: int | None = None
    versions: Mapping[str, str | None] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=dict)
    task_digest: str | None = None
    manifest_digest: str | None = None
    started: float | None = None
    ended: float | None = None

    @property
    def passed(self) -> bool:
        """Passed, and with a speedup that has a logarithm: what enters a mean."""
        return self.status == Status.PASS and _usable(self.speedup)

    @property
    def verified(self) -> bool:
        """Passed, and with a verdict that compiled and eager agree: what a pass rate counts."""
        return self.passed and self.accuracy == Accuracy.PASS

    @property
    def ratio_of_medians(self) -> float | None:
        """Upstream's speedup: median eager time over median compiled time."""
        return self.speedup_of_medians or (self.eager_ms / self.compiled_ms if self.eager_ms and self.compiled_ms else None)

    @property
    def memory_ratio(self) -> float | None:
        """Eager peak over compiled peak: above 1 the compiled step needs less."""
        if not self.eager_peak_mib or not self.compiled_peak_mib:
            return None
        return self.eager_peak_mib / self.compiled_peak_mib


@dataclass(frozen=True, slots=True)
class Planned:
    """A task of the plan, by the parts of its identity that the analysis groups by."""

    task_id: str
    suite: str
    model: str
    dtype: str
    mode: str
    backend: str
    processes: int = 1  # fresh processes that each measure; from two on, intervals cover what varies between them
    device: str = "cuda"  # "cuda" or "cpu"
    spec: TaskSpec | None = field(default=None, compare=False, repr=False)  # the whole definition, where it is known


@dataclass(frozen=True, slots=True)
class Run:
    """A stored run: what was planned, how dtypes weigh, and a row for each task that ended."""

    run_id: str
    planned: tuple[Planned, ...]
    weights: Mapping[str, float]
    rows: tuple[Row, ...]
    started: float | None = None
    ended: float | None = None
    manifest: str = ""
    manifest_digest: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)  # anything else about the run worth printing
    remarks: tuple[str, ...] = ()  # what a reader must know before believing the rows
    aa: bool = False  # each arm was measured against itself: rows have no speedups
    by_device: bool = False  # every device has tables of its own

    def refuse_aa(self, wanted: str) -> None:
        """Let nobody make ``wanted`` of a run that has no speedups.

        Raises:
            UsageError: it is an A/A run.
        """
        if self.aa:
            raise UsageError(f"run {self.run_id} is an A/A run, each arm against itself: it has no speedups, and {wanted} needs them")

    @property
    def missing(self) -> tuple[Planned, ...]:
        """Planned tasks without a row, in the order of the plan."""
        ended = {row.task_id for row in self.rows}
        return tuple(task for task in self.planned if task.task_id not in ended)

    @property
    def repeated(self) -> frozenset[str]:
        """Tasks measured in several processes each: their intervals cover what varies between processes."""
        return frozenset(task.task_id for task in self.planned if task.processes > 1)

    @property
    def freedom(self) -> Mapping[str, float]:
        """Degrees of freedom of each task's interval: Student's law over its processes, the normal law for what one process says."""
        return {task.task_id: task.processes - 1 if task.processes > 1 else math.inf for task in self.planned}


def _usable(speedup: float | None) -> bool:
    return speedup is not None and math.isfinite(speedup) and speedup > 0


FIELDS = tuple(item.name for item in dataclasses.fields(Row))
VERSIONS = ("python", "torch", "triton", "transformers", "timm", "torchvision", "driver", "cuda")
_AS_STORED = frozenset({"other_versions", "machine", "speedup"})  # JSON, and the one number whose infinities are worth a remark
COLUMNS = (*(name for name in FIELDS if name != "versions"), *VERSIONS, "other_versions", "skip_reason")
"""The stored columns that make a whole ``Row``."""


def load(store: RunStore, columns: Sequence[str] = COLUMNS) -> Run:
    """A stored run with those columns of its rows.

    Raises:
        StoreError: the record or the plan is damaged.
    """
    record = store.record
    planned = [entry.task for entry in store.plan()]
    rows = rows_of(store.rows(columns))
    damaged = tuple(f"{plain(path)} is damaged and left out: {plain(reason)}" for path, reason in store.damaged().items())
    return Run(
        run_id=plain(record.run_id),
        planned=tuple(map(_planned, planned)),
        weights=dict(record.weights),
        rows=rows,
        started=record.started,
        ended=record.ended,
        manifest="\n".join(f"# {plain(path)}\n{plain(text)}" for path, text in record.manifest_files.items()),
        manifest_digest=record.manifest_digest,
        facts={
            "manifest": plain(record.manifest),
            "state": record.state.value,
            "command": plain(" ".join(record.argv)),
            "orchestrator": record.orchestrator_version,
            **{f"cluster {name}": plain(str(value)) for name, value in record.cluster.items()},
            **{name: plain(text) for name, text in sessions.facts(record, [row.ended for row in rows if row.ended]).items()},
        },
        remarks=damaged,
        aa=record.aa,
        by_device=record.by_device,
    )


def _planned(task: TaskSpec) -> Planned:
    model = task.model
    return Planned(
        *(task.task_id, model.suite, model.name, task.precision.dtype, task.mode, task.backend),
        processes=task.measure.processes,
        device=task.resources.device,
        spec=task,
    )


def rows_of(table: pa.Table) -> tuple[Row, ...]:
    """``table`` of task rows as plain rows, terminal codes and control characters taken out of every text."""
    return tuple(_row(columns) for columns in table.to_pylist())


def _row(columns: dict[str, Any]) -> Row:
    cells = {name: value if name in _AS_STORED else _cell(value) for name, value in columns.items()}
    cells["versions"] = {name: cells[name] for name in VERSIONS if cells.get(name)} | _object(cells.get("other_versions"))
    cells["machine"] = _object(cells.get("machine"))
    cells["error"] = cells.get("error") or cells.get("skip_reason")
    cells["graph_break_reasons"] = tuple(plain(reason) for reason in cells.get("graph_break_reasons") or ())
    cells["process_speedups"] = tuple(cells.get("process_speedups") or ())
    cells |= {name: cells[name].timestamp() for name in ("started", "ended") if cells.get(name)}
    return Row(**{name: value for name, value in cells.items() if name in _KNOWN})


def _cell(value: Any) -> Any:
    """A harmless text; a number that is not finite is not known."""
    if isinstance(value, str):
        return plain(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _object(text: str | None) -> dict[str, Any]:
    """A cell that holds a JSON object."""
    found = json.loads(text) if text else {}
    return {plain(str(name)): plain(value) if isinstance(value, str) else value for name, value in found.items()}


_KNOWN = frozenset(FIELDS)

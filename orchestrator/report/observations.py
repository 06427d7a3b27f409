"""Many stored runs as one matrix: which task had which speedup in which run. Reads the few columns that a history needs."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from orchestrator.errors import StoreError
from orchestrator.report.plain import plain
from orchestrator.report.rows import VERSIONS
from orchestrator.statistics.means import FloatArray
from tasks.spec import Status

if TYPE_CHECKING:
    from orchestrator.store import Store

TASK = ("task_id", "suite", "model", "dtype", "mode", "backend", "batch_size")
FACTS = ("device", *VERSIONS)
COLUMNS = (*TASK, "status", "speedup", *FACTS)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Task:
    """What makes rows of several runs one series. Another batch size is another series."""

    task_id: str
    suite: str
    model: str
    dtype: str
    mode: str
    backend: str
    batch_size: int | None


@dataclass(frozen=True, slots=True)
class RunInfo:
    """One run: when it was, what it ran on, and how many of its planned tasks passed."""

    run_id: str
    started: float
    planned: int
    passed: int
    facts: Mapping[str, str] = field(default_factory=dict)

    @property
    def device(self) -> str:
        """The GPU model, or what else it ran on; several, if it was mixed."""
        return self.facts.get("device", "unknown device")


@dataclass(frozen=True, slots=True)
class Observations:
    """``logs[i, j]`` is ln(speedup) of ``tasks[i]`` in ``runs[j]``, NaN where it did not pass. Runs are in the order of their start."""

    runs: tuple[RunInfo, ...]
    tasks: tuple[Task, ...]
    logs: FloatArray
    weights: Mapping[str, float]  # those of the newest run


def observe(store: Store, *, newest: int | None = None) -> Observations:
    """Every run of ``store``, or the ``newest`` ones. A run that cannot be read is left out and named in the log."""
    records = store.runs()
    records = records[-newest:] if newest else records
    infos, tables = [], []
    for record in records:
        try:
            table = store.resolve(record.run_id).rows(COLUMNS)
        except StoreError as error:
            log.warning("%s; the run is left out", error)
            continue
        usable = pc.and_(pc.equal(table["status"], Status.PASS), pc.and_(pc.is_finite(table["speedup"]), pc.greater(table["speedup"], 0.0)))
        table = table.filter(usable)
        infos.append(RunInfo(plain(record.run_id), record.started, record.planned, table.num_rows, _facts(table)))
        tables.append(table.select([*TASK, "speedup"]))
    weights = dict(records[-1].weights) if records else {}
    if not tables:
        return Observations((), (), np.empty((0, 0)), weights)
    return Observations(tuple(infos), *_matrix(tables), weights)


def _facts(table: pa.Table) -> dict[str, str]:
    """Each fact's value, or its values joined, of the rows that passed."""
    found = {name: sorted(value for value in pc.unique(table[name]).to_pylist() if value) for name in FACTS}
    return {name: plain(" + ".join(values)) for name, values in found.items() if values}


def _matrix(tables: list[pa.Table]) -> tuple[tuple[Task, ...], FloatArray]:
    whole = pa.concat_tables(tables).combine_chunks()
    # One code per task and batch size; the text columns are looked at once per series and not once per row.
    sizes = pc.fill_null(whole["batch_size"], -1).to_numpy()
    names = pc.dictionary_encode(whole["task_id"]).combine_chunks()
    keys = np.stack([names.indices.to_numpy(), sizes])
    unique, first, codes = _unique_columns(keys)
    runs = np.repeat(np.arange(len(tables)), [table.num_rows for table in tables])
    logs = np.full((unique, len(tables)), np.nan)
    logs[codes, runs] = np.log(whole["speedup"].to_numpy())
    described = ({name: whole[name][int(place)].as_py() for name in TASK} for place in first)
    return tuple(map(_task, described)), logs


def _task(columns: dict[str, Any]) -> Task:
    texts = {name: plain(columns[name]) for name in TASK if name != "batch_size"}
    return Task(**texts, batch_size=columns["batch_size"])


def _unique_columns(keys: npt.NDArray[np.int64]) -> tuple[int, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """How many different columns, where each is first, and for every column which it is."""
    unique, first, codes = np.unique(keys, axis=1, return_index=True, return_inverse=True)
    return unique.shape[1], first, codes.reshape(-1)

"""Many stored runs as one matrix: which task had which speedup in which run.

Of every run few columns are read. What a task is called is read from one run that has it, and what a run ran on only when somebody asks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from orchestrator.errors import StoreError
from orchestrator.report.plain import plain
from orchestrator.report.rows import VERSIONS
from orchestrator.statistics.means import FloatArray
from tasks.spec import Accuracy, Status

if TYPE_CHECKING:
    from orchestrator.record import RunRecord
    from orchestrator.store import Store

IDENTITY = ("task_id", "suite", "model", "dtype", "mode", "backend")
OBSERVED = ("task_id", "batch_size", "status", "speedup", "accuracy", "device", *VERSIONS)
FACTS = ("status", "device", *VERSIONS)
UNKNOWN_DEVICE = "unknown device"
READERS_OF_OBJECTS = 16
IntArray = npt.NDArray[np.int64]


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
    """One run: when it was, on which device (several joined with " + " if it was mixed), how many of its planned tasks passed.

    ``mixed`` names the library versions that differ between its tasks, in words; empty if none do.
    """

    run_id: str
    started: float
    planned: int
    passed: int
    device: str
    mixed: str = ""


@dataclass(frozen=True, slots=True)
class Observations:
    """``logs[i, j]`` is ln(speedup) of ``tasks[i]`` in ``runs[j]``, NaN where it did not pass. Runs are in the order of their start."""

    runs: tuple[RunInfo, ...]
    tasks: tuple[Task, ...]
    logs: FloatArray
    weights: Mapping[str, float]  # those of the newest run
    facts: Callable[[str], Mapping[str, str]]  # run_id -> device and versions of the rows that passed
    remarks: tuple[str, ...] = ()  # what could not be read


def observe(store: Store, *, newest: int | None = None) -> Observations:
    """Every run of ``store``, or the ``newest`` ones, but no A/A runs. What cannot be read is left out, with a remark."""
    records = [record for record in store.runs() if not record.aa]
    records, tables, remarks = _readable(store, records[-newest:] if newest else records)

    @cache
    def facts(run_id: str) -> Mapping[str, str]:
        return _facts(store.resolve(run_id).rows(FACTS))

    weights = dict(records[-1].weights) if records else {}
    if not tables:
        return Observations((), (), np.empty((0, 0)), weights, facts, remarks)
    whole = pa.concat_tables(tables).combine_chunks()
    run_of = np.repeat(np.arange(len(tables)), [table.num_rows for table in tables])
    speedups = np.nan_to_num(pc.fill_null(whole["speedup"], 0.0).to_numpy(), posinf=0.0)
    usable = pc.equal(whole["status"], Status.PASS).to_numpy() & (speedups > 0)
    names, (task_ids, sizes), series_of = _series(whole, usable)
    logs = np.full((len(task_ids), len(records)), np.nan)
    logs[series_of, run_of[usable]] = np.log(speedups[usable])
    verified = usable & pc.fill_null(pc.equal(whole["accuracy"], Accuracy.PASS), False).to_numpy()
    passed, devices = np.bincount(run_of[verified], minlength=len(records)), _devices(whole, run_of, usable, len(records))
    mixed = _mixed(whole, run_of, usable)
    infos = (
        RunInfo(plain(record.run_id), record.started, record.planned, int(count), plain(device), "; ".join(mixed.get(place, ())))
        for place, (record, count, device) in enumerate(zip(records, passed, devices, strict=True))
    )
    first_run = np.isfinite(logs).argmax(axis=1)
    tasks = _described(store, records, first_run, [names[place] for place in task_ids], sizes)
    return Observations(tuple(infos), tasks, logs, weights, facts, remarks)


def _readable(store: Store, records: Sequence[RunRecord]) -> tuple[list[RunRecord], list[pa.Table], tuple[str, ...]]:
    def read(record: RunRecord) -> tuple[pa.Table | None, list[str]]:
        try:
            run = store.opened(record)
            return run.rows(OBSERVED), [f"{record.run_id}: {path} is damaged and left out: {why}" for path, why in run.damaged().items()]
        except StoreError as error:
            return None, [f"{error}; the run is left out"]

    # Waiting for an object store is done side by side. A disk keeps nobody waiting, and threads would fight over the interpreter.
    if "://" in store.root:
        with ThreadPoolExecutor(READERS_OF_OBJECTS) as readers:
            found = list(readers.map(read, records))
    else:
        found = [read(record) for record in records]
    left_out = [f"{reason}; the run is left out" for reason in store.damaged.values()]
    remarks = tuple(plain(remark) for remark in [*left_out, *(remark for _, remarks in found for remark in remarks)])
    kept = [(record, table) for record, (table, _) in zip(records, found, strict=True) if table is not None]
    return [record for record, _ in kept], [table for _, table in kept], remarks


def _series(whole: pa.Table, usable: npt.NDArray[np.bool_]) -> tuple[list[str], tuple[IntArray, IntArray], IntArray]:
    """The task_ids; per series its task_id's place and its batch size (-1: not known); per usable row its series."""
    names = pc.dictionary_encode(whole["task_id"]).combine_chunks()
    sizes = pc.fill_null(whole["batch_size"], -1).to_numpy()[usable]
    codes = names.indices.to_numpy()[usable].astype(np.int64)
    # Two small integers in one, since sorting numbers is far cheaper than sorting pairs.
    span = int(sizes.max(initial=0)) + 2
    keys, series_of = np.unique(codes * span + sizes + 1, return_inverse=True)
    return names.dictionary.to_pylist(), (keys // span, keys % span - 1), series_of


def _devices(whole: pa.Table, run_of: IntArray, usable: npt.NDArray[np.bool_], runs: int) -> list[str]:
    encoded = pc.dictionary_encode(pc.fill_null(whole["device"], UNKNOWN_DEVICE)).combine_chunks()
    names = encoded.dictionary.to_pylist()
    found: dict[int, list[str]] = defaultdict(list)
    for pair in np.unique(run_of[usable] * len(names) + encoded.indices.to_numpy()[usable]):
        found[int(pair) // len(names)].append(names[int(pair) % len(names)])
    return [" + ".join(sorted(found[run])) or UNKNOWN_DEVICE for run in range(runs)]


def _mixed(whole: pa.Table, run_of: IntArray, usable: npt.NDArray[np.bool_]) -> dict[int, list[str]]:
    """The runs whose tasks have several versions of a library: which, in words."""
    found: dict[int, list[str]] = defaultdict(list)
    for name in VERSIONS:
        encoded = pc.dictionary_encode(whole[name]).combine_chunks()
        codes = pc.fill_null(encoded.indices, -1).to_numpy().astype(np.int64)
        known = usable & (codes >= 0)
        runs, codes = run_of[known], codes[known]
        first = np.zeros(run_of[-1] + 1, dtype=np.int64) if run_of.size else codes
        first[runs] = codes  # any one of them
        for run in np.unique(runs[codes != first[runs]]):
            values = sorted(encoded.dictionary[int(code)].as_py() for code in np.unique(codes[runs == run]))
            found[int(run)].append(plain(f"{name} {' + '.join(values)}"))
    return found


def _described(
    store: Store, records: Sequence[RunRecord], first_run: IntArray, task_ids: Sequence[str], sizes: IntArray
) -> tuple[Task, ...]:
    """Every series' task, each looked up in the first run that has it."""
    known: dict[str, dict[str, str]] = {}
    for run in np.unique(first_run):
        for row in store.opened(records[run]).rows(IDENTITY).to_pylist():
            known.setdefault(row["task_id"], {name: plain(text) for name, text in row.items()})
    return tuple(Task(**known[name], batch_size=int(size) if size >= 0 else None) for name, size in zip(task_ids, sizes, strict=True))


def _facts(table: pa.Table) -> dict[str, str]:
    """Each fact's value, or its values joined, of the rows that passed."""
    table = table.filter(pc.equal(table["status"], Status.PASS))
    found = {name: sorted(value for value in pc.unique(table[name]).to_pylist() if value) for name in FACTS[1:]}
    return {name: plain(" + ".join(values)) for name, values in found.items() if values}

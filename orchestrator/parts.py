"""The Parquet parts of one run, and the one rule that makes them consistent without a catalogue.

A batch is three files of the same name, ``blocks/NAME``, ``samples/NAME`` and ``tasks/NAME``, written in this order. **The tasks part is
the commit**: the others count exactly when the tasks part of the same name does. Parts of the schema's first version have no blocks. Parts
are numbered; a compacted part supersedes every part with a smaller number, so it is committed by one rename too, and the parts it replaces
are removed afterwards. Whatever the moment at which a writer dies, a reader of this module sees the old parts or the new one.
"""

from __future__ import annotations

import contextlib
import logging
import re
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from orchestrator import schema
from orchestrator.errors import RunLockedError, StoreError
from orchestrator.files import Files

TASKS, SAMPLES, BLOCKS = "tasks", "samples", "blocks"
_FOLDERS = (TASKS, SAMPLES, BLOCKS)
_DETAILS = {SAMPLES: schema.SAMPLES, BLOCKS: schema.BLOCKS}
_FIRST_WITH_BLOCKS = 2
"""The version of the schema from which on every part has its blocks."""
CORRUPT = ".corrupt"
ROW_GROUP_ROWS = 65_536
"""Small enough that reading one task's samples from a compacted run reads a fraction of the file."""
_ATTEMPTS_TO_LIST = 5
"""A reader may list a part just before a compaction removes it; it then lists again."""
_KEYS = ("task_id", "attempt", "started")
"""What decides which of several rows of a task counts."""
_NAME = re.compile(r"(?P<number>\d{8})-[0-9a-f]{8}(?P<compacted>-compacted)?\.parquet")
_DAMAGE = (pa.ArrowException, OSError, EOFError, ValueError)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, order=True)
class Part:
    """A part's file name, taken apart."""

    number: int
    name: str
    compacted: bool = False

    @classmethod
    def parse(cls, name: str) -> Part | None:
        """The part of that file name; None for a file that is no part."""
        match = _NAME.fullmatch(name)
        return cls(int(match["number"]), name, match["compacted"] is not None) if match else None

    @classmethod
    def new(cls, number: int, compacted: bool = False) -> Part:
        """A part that no other writer names: one that lost its lock cannot overwrite another's file."""
        return cls(number, f"{number:08d}-{uuid.uuid4().hex[:8]}{'-compacted' if compacted else ''}.parquet", compacted)


def effective(parts: Iterable[Part]) -> list[Part]:
    """The parts that count, oldest first: those that no compacted part supersedes."""
    ordered = sorted(parts)
    newest = max((part.number for part in ordered if part.compacted), default=0)
    return [part for part in ordered if part.number >= newest]


class Parts:
    """Reads and writes the parts in ``files``. ``fence`` raises unless the caller is the one writer; it is asked before each change."""

    def __init__(self, files: Files, metadata: Mapping[str, str], fence: Callable[[], None]) -> None:
        self._files = files
        self._metadata = dict(metadata)
        self._fence = fence
        self.damaged: dict[str, str] = {}
        """Parts that could not be read so far, with the reason; readers leave them out and say so in the log."""

    # --- reading ----------------------------------------------------------------------------------------------------------------

    def rows(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Exactly one row per task: of several, the one with the highest attempt, then the latest start, then the latest part."""
        wanted = None if columns is None else [*columns, *_KEYS]
        table = concat((rows for _, rows in self._each(wanted)), schema.ROWS, wanted)
        winners = winning(table)
        table = table if winners is None else table.take(pa.array(winners))
        return table if columns is None else table.select([name for name in schema.ROWS.names if name in set(columns)])

    def rows_of(self, part: Part) -> pa.Table:
        """Every row of one part, those too that another part's beat.

        Raises:
            StoreError: it is damaged.
        """
        path = f"{TASKS}/{part.name}"
        rows = self._guarded(path, lambda source: self._read_rows(source, None))
        if rows is None:
            raise StoreError(f"{self._files.at(path)} is damaged: {self.damaged[path]}")
        return rows

    def beaten(self) -> dict[str, set[str]]:
        """For each part, by name, the tasks whose row in it does not count."""
        return _beaten(self._each(_KEYS))

    def attempts(self) -> list[tuple[str, int]]:
        """(task_id, attempt) of every stored row, of those too that a later attempt beats."""
        columns = ("task_id", "attempt")
        table = concat((rows for _, rows in self._each(columns)), schema.ROWS, columns)
        return list(zip(*(table.column(name).to_pylist() for name in columns), strict=True))

    def samples(self, task_ids: Sequence[str] | None = None, columns: Sequence[str] | None = None) -> pa.Table:
        """The samples of the rows that ``rows`` returns, in the order in which they were taken within each task."""
        return self._details(SAMPLES, task_ids, columns)

    def blocks(self, task_ids: Sequence[str] | None = None, columns: Sequence[str] | None = None) -> pa.Table:
        """The blocks of the rows that ``rows`` returns, in the order in which they were timed within each task."""
        return self._details(BLOCKS, task_ids, columns)

    def _details(self, folder: str, task_ids: Sequence[str] | None, columns: Sequence[str] | None) -> pa.Table:
        for _ in range(_ATTEMPTS_TO_LIST):
            try:
                return self._details_once(folder, task_ids, columns)
            except FileNotFoundError:
                continue
        raise StoreError(f"the parts in {self._files.at(folder)} keep changing; try again")

    def _details_once(self, folder: str, task_ids: Sequence[str] | None, columns: Sequence[str] | None) -> pa.Table:
        keys = self._each(_KEYS)
        beaten = _beaten(keys)
        present = set(self._files.names(folder))
        tables = []
        for part, rows in keys:
            wanted = set(rows.column("task_id").to_pylist()) - beaten.get(part.name, set())
            chosen = wanted if task_ids is None else wanted & set(task_ids)
            if not chosen:
                continue
            if part.name not in present:
                if self._has(folder, part):
                    self._note_damage(f"{folder}/{part.name}", "the file is missing")
                continue
            only = None if task_ids is None and part.name not in beaten else chosen
            read = partial(self._read_details, arrow_schema=_DETAILS[folder], task_ids=only, columns=columns)
            table = self._guarded(f"{folder}/{part.name}", read)
            if table is not None:
                tables.append(table)
        return concat(tables, _DETAILS[folder], columns)

    def _has(self, folder: str, part: Part) -> bool:
        """Whether whoever wrote the part wrote a file into ``folder``."""
        if folder != BLOCKS:
            return True
        metadata = self._guarded(f"{TASKS}/{part.name}", lambda source: pq.read_schema(source).metadata)
        return int((metadata or {}).get(b"sweep.schema_version", 1)) >= _FIRST_WITH_BLOCKS

    def _read_details(self, source: Any, arrow_schema: pa.Schema, task_ids: set[str] | None, columns: Sequence[str] | None) -> pa.Table:
        with pq.ParquetFile(source, page_checksum_verification=True) as file:
            if task_ids is None:
                return schema.conform(file.read(_listed(columns)), arrow_schema, columns)
            groups = _row_groups(file, "task_id", task_ids)
            table = file.read_row_groups(groups, _listed(None if columns is None else [*columns, "task_id"]))
        table = table.filter(_is_one_of(table.column("task_id"), task_ids))
        return schema.conform(table, arrow_schema, columns)

    def _check_details(self, source: Any, arrow_schema: pa.Schema) -> bool:
        """Read the whole file, a piece at a time, and forget it."""
        with pq.ParquetFile(source, page_checksum_verification=True) as file:
            for batch in file.iter_batches(ROW_GROUP_ROWS):
                schema.conform(pa.table(batch), arrow_schema)
        return True

    def _each(self, columns: Sequence[str] | None) -> list[tuple[Part, pa.Table]]:
        """Every readable effective tasks part with its rows."""
        for _ in range(_ATTEMPTS_TO_LIST):
            try:
                found = [
                    (part, self._guarded(f"{TASKS}/{part.name}", lambda source: self._read_rows(source, columns))) for part in self.parts()
                ]
            except FileNotFoundError:
                continue
            return [(part, rows) for part, rows in found if rows is not None]
        raise StoreError(f"the parts in {self._files.at(TASKS)} keep changing; try again")

    def _read_rows(self, source: Any, columns: Sequence[str] | None) -> pa.Table:
        with pq.ParquetFile(source, page_checksum_verification=True) as file:
            return schema.conform(file.read(_listed(columns)), schema.ROWS, columns)

    def _guarded(self, path: str, read: Callable[[Any], Any]) -> Any:
        """What ``read`` makes of the file; None for a damaged one, which is noted.

        Raises:
            FileNotFoundError: there is no such file.
            StoreError: it cannot be read, which says nothing of its content.
        """
        try:
            with self._files.source(path) as source:
                return read(source)
        except FileNotFoundError:
            raise
        except _DAMAGE:
            # A bad file and a bad connection raise the same errors. With the bytes at hand only the file can be at fault.
            data = self._files.read(path)
        try:
            return read(pa.BufferReader(data))
        except _DAMAGE as error:
            self._note_damage(path, str(error).splitlines()[0])
            return None

    def _note_damage(self, path: str, reason: str) -> None:
        if path not in self.damaged:
            self.damaged[path] = reason
            log.warning("%s is damaged and is left out: %s", self._files.at(path), reason)

    def parts(self) -> list[Part]:
        """The effective parts, oldest first."""
        return effective(self._all(TASKS))

    def _all(self, folder: str) -> list[Part]:
        return [part for name in self._files.names(folder) if (part := Part.parse(name))]

    # --- writing ----------------------------------------------------------------------------------------------------------------

    def next_number(self) -> int:
        """Above every number in use, whether it counts or not."""
        return 1 + max((part.number for folder in _FOLDERS for part in self._all(folder)), default=0)

    def commit(self, part: Part, rows: pa.Table, samples: pa.Table, blocks: pa.Table) -> None:
        """Write the three files of a batch; after an error none of it is visible."""
        try:
            self.write_blocks(part, [blocks])
            self.write_samples(part, [samples])
            self.write_rows(part, [rows])
        except (StoreError, RunLockedError):
            # A rename that could not be made durable may have happened: take it back, the commit before what it commits.
            self._take_back(part)
            raise

    def _take_back(self, part: Part) -> None:
        with contextlib.suppress(StoreError):
            for folder in _FOLDERS:
                self._files.remove(f"{folder}/{part.name}")

    def write_rows(self, part: Part, tables: Iterable[pa.Table]) -> None:
        """The commit of ``part``.

        Raises:
            RunLockedError: another driver has taken the run over, be it while the file was written. The part is then taken back, but for a
                compacted one: it hides nothing that it does not hold, and the other driver may already have removed what it replaces.
        """
        data = self._parquet(schema.ROWS, tables)
        self._fence()
        self._files.write(f"{TASKS}/{part.name}", data)
        try:
            self._fence()
        except RunLockedError:
            if not part.compacted:
                self._take_back(part)
            raise

    def write_samples(self, part: Part, tables: Iterable[pa.Table]) -> None:
        data = self._parquet(schema.SAMPLES, tables)
        self._fence()
        self._files.write(f"{SAMPLES}/{part.name}", data)

    def write_blocks(self, part: Part, tables: Iterable[pa.Table]) -> None:
        data = self._parquet(schema.BLOCKS, tables)
        self._fence()
        self._files.write(f"{BLOCKS}/{part.name}", data)

    def _parquet(self, arrow_schema: pa.Schema, tables: Iterable[pa.Table]) -> bytes:
        sink = pa.BufferOutputStream()
        tagged = arrow_schema.with_metadata(self._metadata)
        with pq.ParquetWriter(sink, tagged, compression="zstd", write_page_checksum=True) as writer:
            for table in tables:
                writer.write_table(table.cast(tagged), row_group_size=ROW_GROUP_ROWS)
        return bytes(sink.getvalue())

    def remove_dead(self) -> None:
        """Remove the parts that do not count: superseded ones, and samples and blocks that were never committed."""
        self._fence()
        alive = {part.name for part in self.parts()}
        for folder in _FOLDERS:
            self._files.sweep_partial(folder)
            for part in self._all(folder):
                if part.name not in alive:
                    self._files.remove(f"{folder}/{part.name}")

    def set_aside_damaged(self) -> list[str]:
        """Read every byte that counts; rename all files of a part that cannot be read, and return the paths of the files at fault."""
        self._fence()
        at_fault: list[str] = []
        while bad := [(part, path) for part in self.parts() if (path := self._damaged_file(part))]:
            for part, path in bad:
                at_fault.append(self._files.at(path + CORRUPT))
                for folder in _FOLDERS:
                    if part.name in self._files.names(folder):
                        self._files.rename(f"{folder}/{part.name}", f"{folder}/{part.name}{CORRUPT}")
        self.damaged.clear()
        return at_fault

    def _damaged_file(self, part: Part) -> str | None:
        rows = f"{TASKS}/{part.name}"
        if self._guarded(rows, lambda source: self._read_rows(source, None)) is None:
            return rows
        for folder, arrow_schema in _DETAILS.items():
            path = f"{folder}/{part.name}"
            try:
                intact = self._guarded(path, partial(self._check_details, arrow_schema=arrow_schema)) is not None
            except FileNotFoundError:
                intact = not self._has(folder, part)
            if not intact:
                return path
        return None


def _is_one_of(column: pa.ChunkedArray, values: set[str]) -> pa.ChunkedArray:
    """Which entries of a dictionary-encoded column are among ``values``; looks at each distinct string once."""
    wanted = pa.array(sorted(values), pa.string())
    masks = [pc.is_in(chunk.dictionary, value_set=wanted).take(chunk.indices) for chunk in column.chunks]
    return pa.chunked_array(masks, pa.bool_())


def winning(keys: pa.Table) -> list[int] | None:
    """The index of each task's row that counts, in table order; None if every task has but one row."""
    task_ids = keys.column("task_id")
    if pc.count_distinct(task_ids).as_py() == keys.num_rows:
        return None
    best: dict[str, tuple[int, int, int]] = {}
    starts = keys.column("started").cast(pa.int64()).fill_null(0).to_pylist()
    for index, (task_id, attempt, started) in enumerate(zip(task_ids.to_pylist(), keys.column("attempt").to_pylist(), starts, strict=True)):
        best[task_id] = max(best.get(task_id, (-1, -1, -1)), (attempt, started, index))
    return sorted(index for _, _, index in best.values())


def _beaten(keys: Sequence[tuple[Part, pa.Table]]) -> dict[str, set[str]]:
    """For each part, the tasks whose row in it does not count."""
    winners = winning(concat((rows for _, rows in keys), schema.ROWS, _KEYS))
    if winners is None:
        return {}
    counting, beaten, index = set(winners), {}, 0
    for part, rows in keys:
        task_ids = rows.column("task_id").to_pylist()
        lost = {task_id for offset, task_id in enumerate(task_ids, start=index) if offset not in counting}
        beaten.update({part.name: lost} if lost else {})
        index += len(task_ids)
    return beaten


def concat(tables: Iterable[pa.Table], arrow_schema: pa.Schema, columns: Sequence[str] | None) -> pa.Table:
    """``tables`` one below the other; with none, an empty table of those columns."""
    found = list(tables)  # an empty table costs an import of pandas, where that is installed, and is made only if there is no other
    return pa.concat_tables(found or [schema.conform(arrow_schema.empty_table(), arrow_schema, columns)])


def _listed(columns: Sequence[str] | None) -> list[str] | None:
    """``columns`` as pyarrow takes them; it passes over those that a file does not have."""
    return None if columns is None else list(dict.fromkeys(columns))


def _row_groups(file: pq.ParquetFile, column: str, values: set[str]) -> list[int]:
    """The row groups that may hold one of ``values``, by the statistics in the footer."""
    index = file.schema_arrow.names.index(column)
    groups = []
    for number in range(file.metadata.num_row_groups):
        statistics = file.metadata.row_group(number).column(index).statistics
        known = statistics is not None and statistics.has_min_max
        if not known or any(statistics.min <= value <= statistics.max for value in values):
            groups.append(number)
    return groups

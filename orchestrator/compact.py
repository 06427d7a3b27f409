"""Compaction: one tasks part, one of samples and one of blocks instead of many, sorted so that one task's samples lie together.

Crash-safe by the rule of ``orchestrator.parts``: the new tasks part is the commit, and what it supersedes is removed afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import pyarrow as pa
import pyarrow.compute as pc

from orchestrator.errors import StoreError
from orchestrator.parts import Part, Parts

SAMPLES_AT_ONCE = 250_000
"""How many samples are sorted in memory at a time: about 100 MiB with what sorting takes."""

ROWS_AT_ONCE = 8_192


def compact(parts: Parts) -> bool:
    """Merge all parts into one; False if there is nothing to merge. Rows that another attempt of their task beats are dropped.

    Raises:
        StoreError: a part is damaged, so that merging would lose it for good.
    """
    parts.remove_dead()
    present = parts.parts()
    if not present or (len(present) == 1 and present[0].compacted):
        return False
    part = Part.new(parts.next_number(), compacted=True)
    parts.write_blocks(part, _sorted(parts.blocks))
    parts.write_samples(part, _sorted(parts.samples))
    if parts.damaged:
        parts.remove_dead()
        raise StoreError(f"not compacted, because these files are damaged: {', '.join(sorted(parts.damaged))}; resume the run first")
    parts.write_rows(part, _gathered(_winning_rows(parts)))
    parts.remove_dead()
    return True


def _winning_rows(parts: Parts) -> Iterator[pa.Table]:
    beaten = parts.beaten()
    for part in parts.parts():
        rows = parts.rows_of(part)
        lost = pa.array(sorted(beaten.get(part.name, ())), pa.string())
        yield rows.filter(pc.invert(pc.is_in(rows.column("task_id"), value_set=lost)))


def _gathered(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The same rows in fewer tables: each becomes a row group, and small ones are slow to read."""
    pending: list[pa.Table] = []
    for table in tables:
        pending.append(table)
        if sum(piece.num_rows for piece in pending) >= ROWS_AT_ONCE:
            yield pa.concat_tables(pending)
            pending.clear()
    if pending:
        yield pa.concat_tables(pending)


def _sorted(read: Callable[..., pa.Table]) -> Iterator[pa.Table]:
    """All that ``read`` has, task by task."""
    for task_ids in _buckets(read):
        table = read(task_ids).unify_dictionaries()
        keys = pa.table({"task_id": table.column("task_id").cast(pa.string())})
        yield table.take(pc.sort_indices(keys, [("task_id", "ascending")]))  # stable: the order within a task stays
        pa.default_memory_pool().release_unused()


def _buckets(read: Callable[..., pa.Table]) -> Iterator[list[str]]:
    """The tasks with samples, sorted and cut so that each piece has few enough samples to be sorted in memory."""
    task_ids = read(columns=("task_id",)).unify_dictionaries().column("task_id")
    counts = {entry["values"]: entry["counts"] for entry in pc.value_counts(task_ids).to_pylist()}
    bucket: list[str] = []
    size = 0
    for task_id in sorted(counts):
        if bucket and size + counts[task_id] > SAMPLES_AT_ONCE:
            yield bucket
            bucket, size = [], 0
        bucket.append(task_id)
        size += counts[task_id]
    if bucket:
        yield bucket

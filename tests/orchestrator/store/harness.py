"""What the tests of the store share: tasks, and a store's whole content."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from orchestrator import schema
from tests.orchestrator.stored import a_task, failed, passed

TASKS = [a_task(number) for number in range(6)]
NEW = [(TASKS[4], passed(TASKS[4], seed=4)), (TASKS[5], failed(TASKS[5]))]


def content(run):
    """All that a reader learns of a run, in an order that does not depend on its files."""
    rows = {row.task_id: row for row in sorted(schema.task_rows(run.rows()), key=lambda row: row.task_id)}
    details = []
    for table, made in ((run.samples(), schema.samples_of), (run.blocks(), schema.blocks_of)):
        owners = table.column("task_id").cast(pa.string())
        details.append({task_id: made(table.filter(pc.equal(owners, task_id))) for task_id in rows})
    return rows, *details


def parquet_files(run, folder):
    return sorted(run.files.local(folder).glob("*.parquet"))

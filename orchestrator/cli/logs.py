"""``sweep logs``: the log of one task."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from orchestrator.cli.selection import only_task


def logs(
    task_id: Annotated[
        str, typer.Argument(help="As in reports; a part that fits only one task will do. Example: sweep logs lcnet_050/amp")
    ],
    run: Annotated[str, typer.Option(help="A run id, the beginning of one, or 'latest'.")] = "latest",
    results: Annotated[str, typer.Option(help="The results store: a folder or an object-store URI.")] = "results",
) -> None:
    """What a task's worker printed, and the error that ended it. Works when the node is long gone."""
    from orchestrator.store import Store

    run_store = Store(results).resolve(run)
    rows = {row["task_id"]: row for row in run_store.rows(("task_id", "status", "error", "log")).to_pylist()}
    row = rows[only_task(task_id, list(rows))]
    sys.stderr.write(f"{row['task_id']}: {row['status']}" + (f": {row['error']}" if row["error"] else "") + "\n")
    if row["log"]:
        sys.stdout.write(run_store.read_log(row["log"]))

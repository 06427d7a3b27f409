"""``sweep logs``: the log of one task, or of a submitted driver."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.selection import only_task
from orchestrator.errors import UsageError

if TYPE_CHECKING:
    from orchestrator.store import RunStore


def logs(
    task_id: Annotated[
        str | None,
        typer.Argument(help="As in reports; a part that fits only one task will do. Example: sweep logs lcnet_050/amp"),
    ] = None,
    run: Annotated[str, typer.Option(help="A run id, the beginning of one, or 'latest'.")] = "latest",
    results: Annotated[str, typer.Option(help="The results store: a folder or an object-store URI.")] = "results",
    address: Annotated[
        str | None,
        typer.Option(help="Ask the cluster whose head is at http://HEAD:8265; without a task: what the run's driver has printed."),
    ] = None,
) -> None:
    """What a task's worker printed, and the error that ended it. Works when the node is long gone.

    With --address nothing of the store needs to be visible here.
    """
    if address is not None:
        sys.stdout.write(_through_head(address, run, task_id))
    elif task_id is None:
        raise UsageError("which task? `sweep status` lists what runs, `sweep report` what has ended; --address shows the driver's log")
    else:
        from orchestrator.store import Store

        _from_store(Store(results).resolve(run), task_id)


def _from_store(run_store: RunStore, wanted: str) -> None:
    task_id = only_task(wanted, [planned.task.task_id for planned in run_store.plan()])
    rows = {row["task_id"]: row for row in run_store.rows(("task_id", "status", "error", "log")).to_pylist()}
    if task_id not in rows:
        raise UsageError(f"{task_id} has no row yet, and a log comes with its row: {_standing(run_store, task_id)}")
    row = rows[task_id]
    sys.stderr.write(f"{row['task_id']}: {row['status']}" + (f": {row['error']}" if row["error"] else "") + "\n")
    sys.stderr.flush()
    if row["log"]:
        sys.stdout.write(run_store.read_log(row["log"]))


def _standing(run_store: RunStore, task_id: str) -> str:
    from orchestrator.journal import read_standing

    for task in read_standing(run_store.files).get("active", ()):
        if task["task_id"] == task_id:
            where = f" on {task['node']}" if task["node"] else ""
            return f"{task['state']} {task['phase'] or ''}".strip() + f"{where}, attempt {task['attempt']}, when the driver last said so"
    return "it waits for its turn"


def _through_head(address: str, run: str, task_id: str | None) -> str:
    from orchestrator import beside
    from orchestrator.cli.head import find_head
    from orchestrator.submit import find_run, jobs_of

    head = find_head(address)
    job = jobs_of(head, find_run(head, run))[-1]
    return head.logs(job.submission_id) if task_id is None else beside.logs(head, job, task_id)

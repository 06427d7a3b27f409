"""``sweep logs``: the log of one task, or of a submitted driver."""

from __future__ import annotations

import json as json_format
import sys
from typing import TYPE_CHECKING, Annotated, Any

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
    json: Annotated[
        bool, typer.Option("--json", help="Print task_id, status, error and log as JSON; through --address the log has all that is known.")
    ] = False,
) -> None:
    """What a task's worker printed, and the error that ended it. Works when the node is long gone.

    With --address nothing of the store needs to be visible here.
    """
    if address is not None:
        found = {"task_id": task_id, "status": None, "error": None, "log": _through_head(address, run, task_id)}
    elif task_id is None:
        raise UsageError("which task? `sweep status` lists what runs, `sweep report` what has ended; --address shows the driver's log")
    else:
        from orchestrator.store import Store

        found = _from_store(Store(results).resolve(run), task_id)
    if json:
        sys.stdout.write(json_format.dumps(found, indent=1) + "\n")
        return
    if found["status"] is not None:
        sys.stderr.write(f"{found['task_id']}: {found['status']}" + (f": {found['error']}" if found["error"] else "") + "\n")
        sys.stderr.flush()
    sys.stdout.write(found["log"] or "")


def _from_store(run_store: RunStore, wanted: str) -> dict[str, Any]:
    task_id = only_task(wanted, [planned.task.task_id for planned in run_store.plan()])
    rows = {row["task_id"]: row for row in run_store.rows(("task_id", "status", "error", "log")).to_pylist()}
    if task_id not in rows:
        raise UsageError(f"{task_id} has no row yet, and a log comes with its row: {_standing(run_store, task_id)}")
    row = rows[task_id]
    return dict(row) | {"log": run_store.read_log(row["log"]) if row["log"] else None}


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

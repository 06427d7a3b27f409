"""``sweep status``: how a run stands, from its results alone."""

from __future__ import annotations

import json as json_format
import sys
import time
from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.selection import only_task

if TYPE_CHECKING:
    from orchestrator.store import RunStore

WATCH_S = 2.0


def status(
    run: Annotated[
        str, typer.Argument(help="A run id, the beginning of one, or 'latest'. Example: sweep status latest --watch")
    ] = "latest",
    results: Annotated[str, typer.Option(help="The results store: a folder or an object-store URI.")] = "results",
    watch: Annotated[bool, typer.Option("--watch", help="Print again whenever something changed, until the run is over.")] = False,
    story: Annotated[str | None, typer.Option(metavar="TASK_ID", help="Everything that happened to one task.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """State, rows by status, what runs, and who drives the run now. Needs no cluster."""
    from orchestrator.record import RunState
    from orchestrator.store import Store

    run_store = Store(results).resolve(run)
    if story:
        sys.stdout.write(_story(run_store, story, json))
        return
    shown = None
    while True:
        standing = _standing(run_store)
        if standing != shown:
            sys.stdout.write((json_format.dumps(standing) if json else _text(standing)) + "\n")
            sys.stdout.flush()
            shown = standing
        if not watch or standing["state"] != RunState.RUNNING.value or standing["driver"] is None:
            return
        time.sleep(WATCH_S)
        run_store = Store(results).resolve(run_store.run_id)


def _standing(run_store: RunStore) -> dict[str, Any]:
    from orchestrator.journal import read_standing

    record = run_store.reload()
    counts = Counter(status.value for status, _ in run_store.terminal().values())
    holder = run_store.holder()
    alive = holder is not None and not holder.is_dead(time.time())
    return {
        "run_id": record.run_id,
        "state": record.state.value,
        "planned": record.planned,
        "rows": sum(counts.values()),
        "by_status": dict(sorted(counts.items())),
        "driver": f"{holder.host} pid {holder.pid}" if holder and alive else None,
        "exit_code": record.exit_code,
        "active": read_standing(run_store.files).get("active", []) if alive else [],
    }


def _story(run_store: RunStore, wanted: str, json: bool) -> str:
    from orchestrator.journal import read_story

    task_id = only_task(wanted, [planned.task.task_id for planned in run_store.plan()])
    entries = read_story(run_store.files, task_id)
    if json:
        return json_format.dumps({"task_id": task_id, "story": entries}) + "\n"
    lines = [f"{datetime.fromtimestamp(entry['at'], UTC):%Y-%m-%d %H:%M:%S.%f}  {entry['state']:9s} {entry['what']}" for entry in entries]
    return "\n".join([task_id, *(lines or ["nothing is known of it yet"])]) + "\n"


def _text(standing: dict[str, Any]) -> str:
    by_status = ", ".join(f"{count} {name}" for name, count in standing["by_status"].items()) or "none yet"
    driver = standing["driver"] or "no driver"
    if standing["state"] == "running" and standing["driver"] is None:
        driver = "no driver: it died; resume the run"
    lines = [f"{standing['run_id']}: {standing['state']}, {standing['rows']} of {standing['planned']} rows ({by_status}); {driver}"]
    for task in standing["active"]:
        where = f" on {task['node']}" if task["node"] else ""
        lines.append(f"  {task['task_id']}  {task['state']} {task['phase'] or ''}{where}, attempt {task['attempt']}")
    return "\n".join(lines)

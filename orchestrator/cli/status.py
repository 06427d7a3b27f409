"""``sweep status``: how a run stands, from its results alone."""

from __future__ import annotations

import json as json_format
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.selection import only_task
from orchestrator.cli.streams import is_read
from orchestrator.errors import HeadError, InfrastructureError, UsageError

if TYPE_CHECKING:
    from orchestrator.jobs import Head
    from orchestrator.store import RunStore

WATCH_S = 2.0


def status(
    run: Annotated[
        str, typer.Argument(help="A run id, the beginning of one, or 'latest'. Example: sweep status latest --watch")
    ] = "latest",
    results: Annotated[str, typer.Option(help="The results store: a folder or an object-store URI.")] = "results",
    address: Annotated[str | None, typer.Option(help="Also ask the cluster whose head is at http://HEAD:8265.")] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Stay, and show every change, until the run is over; live on a terminal, else line by line.")
    ] = False,
    story: Annotated[str | None, typer.Option(metavar="TASK_ID", help="Everything that happened to one task.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """State, rows by status, what runs, and who drives the run now. Needs no cluster; --address shows the cluster's view beside it."""
    look = _look(run, results, address)
    if story:
        from orchestrator.store import Store

        sys.stdout.write(_story(Store(results).resolve(run), story, json))
    elif watch and sys.stdout.isatty() and not json:
        _watch_live(look)
    else:
        _print(look, json, watch)


def _look(run: str, results: str, address: str | None) -> Callable[[], dict[str, Any]]:
    """How the run stands, each time it is called."""
    from orchestrator.cli.head import find_head
    from orchestrator.store import Store

    head = find_head(address) if address else None
    name = _run_id(head, run, results) if head else run

    def look() -> dict[str, Any]:
        try:
            standing = _standing(Store(results).resolve(name))
        except UsageError:
            if head is None:
                raise
            standing = {"run_id": name, "state": None}  # a store that only the cluster sees, or a driver that has not come so far
        return standing | ({"cluster": _cluster(head, standing["run_id"])} if head else {})

    return look


def _run_id(head: Head, run: str, results: str) -> str:
    """The run called ``run`` on the cluster; else the store's, for one that was not submitted there."""
    from orchestrator.store import Store
    from orchestrator.submit import find_run

    try:
        return find_run(head, run)
    except UsageError as unknown:
        try:
            return Store(results).resolve(run).run_id
        except UsageError:
            raise unknown from None


def _standings(look: Callable[[], dict[str, Any]], watch: bool) -> Iterator[dict[str, Any]]:
    """How the run stands now, and with ``watch`` again and again until it is over.

    Raises:
        InfrastructureError: only the cluster sees the store, and its head has been silent for too long.
    """
    from orchestrator.following import LOST_S

    heard_s = time.monotonic()
    while True:
        standing = look()
        error = standing.get("cluster", {}).get("error")
        yield standing
        if not watch:
            return
        if standing["state"] is None and error:  # a head that is silent says nothing of the run
            if time.monotonic() - heard_s > LOST_S:
                raise InfrastructureError(f"given up after {LOST_S:.0f} s: {error}")
        elif not _goes_on(standing):
            return
        else:
            heard_s = time.monotonic()
        time.sleep(WATCH_S)


def _goes_on(standing: dict[str, Any]) -> bool:
    from orchestrator.record import RunState

    job = standing.get("cluster", {}).get("status")
    return job in {"pending", "running"} or (standing["state"] == RunState.RUNNING.value and standing["driver"] is not None)


def _print(look: Callable[[], dict[str, Any]], json: bool, watch: bool) -> None:
    shown = None
    for standing in _standings(look, watch):
        if standing != shown:
            sys.stdout.write((json_format.dumps(standing) if json else _text(standing)) + "\n")
            sys.stdout.flush()
            shown = standing
        if not is_read(sys.stdout):
            return


def _watch_live(look: Callable[[], dict[str, Any]]) -> None:
    from rich.live import Live
    from rich.text import Text

    with Live(Text(""), auto_refresh=False) as live:
        for standing in _standings(look, watch=True):
            live.update(Text(_text(standing)), refresh=True)


def _cluster(head: Head, run_id: str) -> dict[str, Any]:
    """What the cluster says: of the job that drives the run, and of its nodes."""
    from orchestrator.jobs import REFUSALS
    from orchestrator.submit import jobs_of

    try:
        jobs = jobs_of(head, run_id)
        nodes = head.nodes()
    except HeadError as error:
        if error.code in REFUSALS:
            raise
        return {"address": head.address, "error": str(error)}
    alive = [node for node in nodes if node["state"] == "ALIVE"]
    totals = [node.get("resources_total") or {} for node in alive]
    job = jobs[-1] if jobs else None
    return {
        "address": head.address,
        "job": job.submission_id if job else None,
        "status": job.status.lower() if job else None,
        "exit_code": job.exit_code if job else None,
        "nodes": len(alive),
        "nodes_dead": len(nodes) - len(alive),
        "cpus": sum(total.get("CPU", 0.0) for total in totals),
        "gpus": sum(total.get("GPU", 0.0) for total in totals),
    }


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
    lines = [_run_text(standing)] if standing["state"] else [f"{standing['run_id']}: not in the results store that was named"]
    if cluster := standing.get("cluster"):
        lines.append(_cluster_text(cluster))
    return "\n".join(lines)


def _cluster_text(cluster: dict[str, Any]) -> str:
    if "error" in cluster:
        return f"  {cluster['error']}"
    ended = "" if cluster["exit_code"] is None else f", exit status {cluster['exit_code']}"
    job = f"job {cluster['job']}: {cluster['status']}{ended}" if cluster["job"] else "no job drives this run"
    dead = f" ({cluster['nodes_dead']} gone)" if cluster["nodes_dead"] else ""
    return f"  {cluster['address']}: {job}; {cluster['nodes']} nodes{dead}, {cluster['cpus']:g} CPUs, {cluster['gpus']:g} GPUs"


def _run_text(standing: dict[str, Any]) -> str:
    by_status = ", ".join(f"{count} {name}" for name, count in standing["by_status"].items()) or "none yet"
    driver = standing["driver"] or "no driver"
    if standing["state"] == "running" and standing["driver"] is None:
        driver = "no driver: it died; resume the run"
    lines = [f"{standing['run_id']}: {standing['state']}, {standing['rows']} of {standing['planned']} rows ({by_status}); {driver}"]
    for task in standing["active"]:
        where = f" on {task['node']}" if task["node"] else ""
        lines.append(f"  {task['task_id']}  {task['state']} {task['phase'] or ''}{where}, attempt {task['attempt']}")
    return "\n".join(lines)

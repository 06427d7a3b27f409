"""``sweep list``: the runs of a store, and the jobs of a cluster."""

from __future__ import annotations

import json as json_format
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

SHOWN = 30


def list(  # noqa: A001 - what the command is called
    results: Annotated[
        str, typer.Option(help="The results store: a folder or an object-store URI. Example: sweep list --results s3://bucket/sweeps")
    ] = "results",
    address: Annotated[str | None, typer.Option(help="Also the sweeps submitted to the cluster whose head is at http://HEAD:8265.")] = None,
    all_runs: Annotated[bool, typer.Option("--all", help=f"All runs, not only the newest {SHOWN}.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Runs, newest first: state, size, exit status, who drives them."""
    runs = _runs(results, None if all_runs else SHOWN)
    jobs = _jobs(address) if address else []
    if json:
        sys.stdout.write(json_format.dumps({"runs": runs, "jobs": jobs} if address else {"runs": runs}, indent=1) + "\n")
        return
    lines = _table(runs, ("run_id", "state", "planned", "exit_code", "started", "driver")) or [f"no runs in {results}"]
    if address:
        lines += ["", f"on {address}:"]
        lines += _table(jobs, ("submission_id", "status", "exit_code", "started", "results")) or ["no sweep was submitted"]
    sys.stdout.write("\n".join(lines) + "\n")


def _runs(results: str, newest: int | None) -> Any:
    from orchestrator.record import RunState
    from orchestrator.store import Store

    store = Store(results)
    found = []
    for record in store.runs()[::-1][:newest]:
        holder = store.resolve(record.run_id).holder() if record.state is RunState.RUNNING else None
        alive = holder is not None and not holder.is_dead(time.time())
        found.append(
            {
                "run_id": record.run_id,
                "manifest": record.manifest,
                "state": record.state.value if alive or record.state is not RunState.RUNNING else "died",
                "planned": record.planned,
                "exit_code": record.exit_code,
                "started": _moment(record.started),
                "ended": _moment(record.ended),
                "driver": f"{holder.host} pid {holder.pid}" if holder and alive else None,
            }
        )
    return found


def _jobs(address: str) -> Any:
    from orchestrator.cli.head import find_head

    return [
        {
            "submission_id": job.submission_id,
            "run_id": job.metadata["run_id"],
            "status": job.status.lower(),
            "exit_code": job.exit_code,
            "started": _moment(job.started),
            "ended": _moment(job.ended),
            "results": job.metadata.get("results"),
        }
        for job in find_head(address).jobs()[::-1]
        if job.metadata and "run_id" in job.metadata
    ]


def _table(entries: Sequence[dict[str, Any]], columns: tuple[str, ...]) -> Any:
    """A head and a line for each entry; nothing where there is none."""
    if not entries:
        return []
    cells = [[column.replace("_", " ") for column in columns]]
    cells += [["-" if entry[column] is None else str(entry[column]) for column in columns] for entry in entries]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]


def _moment(seconds: float | None) -> str | None:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}" if seconds else None

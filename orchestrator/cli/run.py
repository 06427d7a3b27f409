"""``sweep run``: run a manifest."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.errors import ExitCode, UsageError
from tasks.spec import Status

EPILOG = "Examples: sweep run manifests/smoke.yaml | sweep run manifests/pt2.yaml --address head:6379 --resume"


def run(
    manifest: Annotated[Path, typer.Argument(help="The manifest. " + EPILOG)],
    results: Annotated[str, typer.Option(help="The results store: a folder or an object-store URI.")] = "results",
    run_id: Annotated[str | None, typer.Option(help="Name of the run; made from the manifest's name and the time if not given.")] = None,
    address: Annotated[
        str | None, typer.Option(help="A Ray cluster's address, HEAD:6379, on one of its nodes; without it a local Ray is started.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with --run-id, or with the manifest's latest run; start if none.")
    ] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="With --resume: run again whatever did not pass.")] = False,
    rerun: Annotated[
        list[str] | None,
        typer.Option(help="With --resume: run again the tasks of this status, or with this in their id; may be repeated."),
    ] = None,
    carry: Annotated[
        str | None, typer.Option(help="Take over what passed in this run, where neither the task nor the environment has changed.")
    ] = None,
    aa: Annotated[
        bool, typer.Option("--aa", help="Measure each arm against itself, to see how often intervals hold 1.0; gives no speedups.")
    ] = False,
    environment: Annotated[
        str | None,
        typer.Option(help="Which of the manifest's environments this Python is. Nothing is installed; `sweep submit` does that."),
    ] = None,
    wait_for_lock: Annotated[float, typer.Option(min=0, help="With --resume: seconds to wait for a driver that holds the run.")] = 0.0,
    stop_after: Annotated[
        float | None,
        typer.Option(min=1, help="Seconds to run: start nothing that would not end in them, then stop as Ctrl-C does; resumable."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the answers as JSON.")] = False,
    log_json: Annotated[bool, typer.Option("--log-json", help="Progress as JSON, one object per line, on stderr.")] = False,
) -> ExitCode:
    """Run every task of a manifest and store one row per task. Ctrl-C drains; a second one stops at once.

    Exit status: 0 all passed, 3 some did not, 4 infrastructure or incomplete, 130 interrupted.
    """
    from rich.console import Console

    from orchestrator import run as runs
    from orchestrator.json_log import json_console
    from orchestrator.request import FAILED, RunRequest

    if (retry_failed or rerun) and not resume:
        raise UsageError("--retry-failed and --rerun choose among the tasks of an earlier run: add --resume")
    if wait_for_lock and not resume:
        raise UsageError("--wait-for-lock is for a run that is there: add --resume")
    console = json_console(sys.stderr) if log_json else Console(stderr=True)
    statuses = frozenset(Status(name) for name in rerun or () if name in set(Status))
    tasks = frozenset(rerun or ()) - statuses
    failed = FAILED if retry_failed else frozenset()
    request = RunRequest(
        manifest, results, run_id, address, resume, statuses | failed, aa, log_json, environment, wait_for_lock, carry, stop_after, tasks
    )
    ended = runs.run(request, console)
    try:
        _answers(results, ended.run_id, json)
    finally:
        console.print(f"rows: {results.rstrip('/')}/{ended.run_id}", soft_wrap=True, highlight=False)
        if ended.go_on:
            console.print(f"{ended.ending.reason}; to go on: {ended.go_on}", soft_wrap=True, highlight=False)
    return ended.ending.exit_code


def _answers(results: str, run_id: str, json: bool) -> None:
    from orchestrator.cli.report import print_noise
    from orchestrator.report import build, present, rows
    from orchestrator.store import Store

    run_rows = rows.load(Store(results).resolve(run_id))
    if run_rows.aa:
        print_noise(run_rows, json=json)
        return
    sys.stdout.write(present.as_text(build.build(run_rows, allow_mixed=True), "json" if json else "text"))

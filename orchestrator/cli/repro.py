"""``sweep repro``: a standalone script for one task."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.selection import only_task
from orchestrator.errors import ExitCode

if TYPE_CHECKING:
    from orchestrator.store import RunStore
    from tasks.spec import TaskSpec


def repro(
    task_id: Annotated[
        str,
        typer.Argument(help="As in reports; a part that fits only one task will do. Example: sweep repro lcnet_050/amp --output repro.py"),
    ],
    run: Annotated[str, typer.Option(help="A run id, the beginning of one, or 'latest'.")] = "latest",
    results: Annotated[str, typer.Option(help="The results store: a folder or an object-store URI.")] = "results",
    output: Annotated[
        Path | None, typer.Option(help="The file to write the script to; with --minify, the folder for what comes out.")
    ] = None,
    minify: Annotated[
        bool, typer.Option("--minify", help="Run the script here under torch's minifier, which looks for a small graph that is wrong.")
    ] = False,
) -> ExitCode:
    """Write a Python script that runs one task again, by itself: model, inputs, seed, precision and compiler as they were planned.

    The script compares eager with compiled, tensor by tensor, and exits with 0 if they agree, 1 if not.

    With --minify, the exit status is 0 if a smaller script came out that fails by itself, and 3 if none did.
    """
    from orchestrator import repro as core
    from orchestrator.store import Store

    run_store = Store(results).resolve(run)
    task, row = _task_and_row(run_store, task_id)
    text = core.script(task, row, run_store.run_id)
    if minify:
        return _minify(task, text, output, row)
    if output is None:
        sys.stdout.write(text)
    else:
        output.write_text(text, encoding="utf-8")
        sys.stderr.write(f"wrote {output}; run it with: python {output}\n")
    return ExitCode.PASSED


def _task_and_row(run_store: RunStore, wanted: str) -> tuple[TaskSpec, dict[str, Any] | None]:
    from orchestrator import repro as core

    tasks = {planned.task.task_id: planned.task for planned in run_store.plan()}
    task_id = only_task(wanted, list(tasks))
    rows = {row["task_id"]: row for row in run_store.rows(core.COLUMNS).to_pylist()}
    return tasks[task_id], rows.get(task_id)


def _minify(task: TaskSpec, text: str, output: Path | None, row: dict[str, Any] | None) -> ExitCode:
    from orchestrator import minify
    from tasks.spec import Status, slug

    folder = output or Path(f"minified-{slug(task.task_id)}")
    accuracy = row is None or row["status"] not in {Status.FAIL_COMPILE, Status.FAIL_RUN, Status.CRASH}
    found = minify.minify(text, folder, backend=task.compile.backend, accuracy=accuracy)
    sys.stdout.write(f"{found.message}\n")
    return ExitCode.PASSED if found.script else ExitCode.SOME_FAILED

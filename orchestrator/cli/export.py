"""``sweep export``: a stored run in other formats."""

from __future__ import annotations

import json as jsonlib
import sys
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.errors import ExitCode
from orchestrator.export import Format


def export(
    run: Annotated[str, typer.Argument(help="A run id, the beginning of one, or 'latest'.")] = "latest",
    results: Annotated[str, typer.Option(help="The results store: a folder or an object-store URI.")] = "results",
    form: Annotated[
        Format, typer.Option("--format", help="PyTorch's benchmark CSV files, records for its dashboard, or one flat Parquet file.")
    ] = Format.PARQUET,
    output: Annotated[Path, typer.Option(help="The folder to write into.")] = Path("export"),
    json: Annotated[bool, typer.Option("--json", help="Print the paths as JSON.")] = False,
) -> ExitCode:
    """Write a run for tools that read something else; the paths written go to stdout.

    The exit status is 4 if planned tasks have no row, for whatever reason: what was written is then not the whole run.
    """
    from orchestrator import export as core
    from orchestrator.store import Store

    store = Store(results).resolve(run)
    paths = [str(path) for path in core.export(store, form, output)]
    sys.stdout.write(jsonlib.dumps(paths) + "\n" if json else "".join(f"{path}\n" for path in paths))
    missing = {entry.task.task_id for entry in store.plan()} - store.terminal().keys()
    for path, reason in store.damaged().items():
        sys.stderr.write(f"{path} is damaged and left out: {reason}\n")
    if missing:
        sys.stderr.write(f"run {store.run_id} is not complete: {len(missing)} planned tasks have no row\n")
    return ExitCode.INFRASTRUCTURE if missing else ExitCode.PASSED

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
    """Write a run for tools that read something else; the paths written go to stdout."""
    from orchestrator import export as core
    from orchestrator.store import Store

    paths = [str(path) for path in core.export(Store(results).resolve(run), form, output)]
    sys.stdout.write(jsonlib.dumps(paths) + "\n" if json else "".join(f"{path}\n" for path in paths))
    return ExitCode.PASSED

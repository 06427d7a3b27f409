"""``sweep schema``: the JSON Schema of manifests, for editors and other programs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.errors import ExitCode, UsageError

EPILOG = "Examples: sweep schema | sweep schema --check manifests/manifest.schema.json"


def schema(
    check: Annotated[Path | None, typer.Option(metavar="FILE", help="Fail if FILE is not the schema of this version. " + EPILOG)] = None,
    write: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the schema to FILE instead of printing it.")] = None,
) -> ExitCode:
    """Print the JSON Schema (draft 2020-12) of manifests and of the files that they include."""
    from orchestrator.manifest import json_schema
    from orchestrator.report.present import write_file

    text = json.dumps(json_schema(), indent=2) + "\n"
    if write:
        write_file(write, text)
    if check and (not check.is_file() or check.read_text(encoding="utf-8") != text):
        raise UsageError(f"{check} is not the schema of this version; renew it: sweep schema --write {check}")
    if not (check or write):
        sys.stdout.write(text)
    return ExitCode.PASSED

"""``sweep doctor``: what works on this machine, or on every node of a cluster."""

from __future__ import annotations

import json as json_format
import sys
from typing import Annotated, Any

import typer

from orchestrator.errors import ExitCode


def doctor(
    address: Annotated[
        str | None, typer.Option(help="A Ray cluster's address: every node is asked. Example: sweep doctor --address auto")
    ] = None,
    results: Annotated[str | None, typer.Option(help="Also try to write to this results store.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> ExitCode:
    """Versions, devices and compilers, and a toy task on every GPU, or node without one. Exit status 4 if anything lacks."""
    from orchestrator import checkup

    found = checkup.examine(address, results)
    sys.stdout.write(json_format.dumps([_plain(finding) for finding in found], indent=1) + "\n" if json else checkup.text(found))
    return ExitCode.PASSED if all(not finding.problems for finding in found) else ExitCode.INFRASTRUCTURE


def _plain(finding: Any) -> dict[str, Any]:
    return {"what": finding.what, "facts": finding.facts, "problems": list(finding.problems)}

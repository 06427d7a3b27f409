"""``sweep compare``: two stored runs, matched task by task."""

from __future__ import annotations

import json as jsonlib
import sys
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.errors import ExitCode, RegressionError


def compare(
    base: Annotated[str, typer.Argument(help="The run to compare with: an id, the beginning of one, or 'latest'.")],
    new: Annotated[str, typer.Argument(help="The run in question.")] = "latest",
    results: Annotated[str, typer.Option(help="The results store: a folder or an object-store URI.")] = "results",
    json: Annotated[bool, typer.Option("--json", help="Print the comparison as JSON.")] = False,
    gate: Annotated[Path | None, typer.Option(help="A policy; exit with status 5 if the new run breaks it.")] = None,
    confirm: Annotated[Path | None, typer.Option(help="Write a manifest of the unclear tasks, to be run in both environments.")] = None,
    processes: Annotated[int, typer.Option(min=2, help="Fresh processes per task in that manifest.")] = 4,
    min_effect: Annotated[float, typer.Option(min=0, max=1, help="Relative change below which nothing is faster or slower.")] = 0.02,
    process_sd: Annotated[
        float | None, typer.Option(min=0, help="Standard deviation of ln(speedup) between processes; estimated if not given.")
    ] = None,
    allow_mixed: Annotated[bool, typer.Option("--allow-mixed", help="Compare runs that mix GPU models or versions.")] = False,
) -> ExitCode:
    """What changed from BASE to NEW, how sure that is, and whether the compiled step or the eager baseline moved."""
    from orchestrator import compare as core
    from orchestrator import gate as policies
    from orchestrator.cli.confirm import write_confirmation
    from orchestrator.report import comparison, present, rows
    from orchestrator.store import Store

    policy = policies.load_policy(gate) if gate else None
    stores = [Store(results).resolve(name) for name in (base, new)]
    runs = [rows.load(store, core.COLUMNS) for store in stores]
    found = core.compare(*runs, min_effect=min_effect, process_sd=process_sd, allow_mixed=allow_mixed)
    broken = policies.violations(found, policy) if policy else ()
    if json:
        data = comparison.as_data(found) | {"violations": comparison.plain_data(broken)}
        sys.stdout.write(jsonlib.dumps(data, indent=1, allow_nan=False) + "\n")
    else:
        sys.stdout.write(present.printed(lambda console: comparison.render_comparison(found, console)))
    if confirm:
        write_confirmation(found, stores[1], confirm, processes)
    if broken:
        raise RegressionError(f"{runs[1].run_id} breaks {gate}:\n{policies.table(broken)}")
    return ExitCode.PASSED

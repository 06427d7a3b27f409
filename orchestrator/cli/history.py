"""``sweep history``: many stored runs over time."""

from __future__ import annotations

import json as jsonlib
import sys
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.errors import ExitCode


def history(
    results: Annotated[str, typer.Option(help="The results store: a folder or an object-store URI.")] = "results",
    model: Annotated[str | None, typer.Option(help="Only this model: NAME or SUITE/NAME, where * and ? match.")] = None,
    newest: Annotated[int | None, typer.Option(min=1, help="Only so many of the newest runs.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print all series as JSON.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write them into one offline HTML file.")] = None,
) -> ExitCode:
    """The score, the suites and each task over time, and where a level changed."""
    from orchestrator import history as core
    from orchestrator.report import observations, present, timeline
    from orchestrator.store import Store

    found = core.history(observations.observe(Store(results), newest=newest), model)
    if html:
        present.write_file(html, timeline.render_page(found))
    if json:
        sys.stdout.write(jsonlib.dumps(timeline.as_data(found), indent=1, allow_nan=False) + "\n")
    else:
        sys.stdout.write(present.printed(lambda console: timeline.render_history(found, console)))
    return ExitCode.PASSED

"""``sweep report``: the answers of a stored run."""

from __future__ import annotations

import json as jsonlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.errors import ExitCode

if TYPE_CHECKING:
    from orchestrator.report.rows import Run


def report(
    run: Annotated[str, typer.Argument(help="A run id, the beginning of one, or 'latest'.")] = "latest",
    results: Annotated[str, typer.Option(help="The results store: a folder or an object-store URI.")] = "results",
    json: Annotated[bool, typer.Option("--json", help="Print the answers as JSON, at full precision.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print them as Markdown.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write them into one offline HTML file.")] = None,
    tasks: Annotated[bool, typer.Option("--tasks", help="Add the table of every task to the text.")] = False,
    allow_mixed: Annotated[bool, typer.Option("--allow-mixed", help="Average over different GPU models or library versions.")] = False,
    process_sd: Annotated[
        float | None,
        typer.Option(min=0, help="Standard deviation of ln(speedup) between fresh processes; from the run's calibration set, or 0.02."),
    ] = None,
) -> ExitCode:
    """The score with its intervals, suites, failures and tasks of a run; of an A/A run the share of intervals that hold 1.0.

    The exit status is 0 if every task passed (or was excluded by the manifest), 3 if some did not, 4 if rows are missing.
    """
    from orchestrator.report import build, present, rows
    from orchestrator.store import Store

    loaded = rows.load(Store(results).resolve(run))
    if loaded.aa and not (html or markdown):
        return print_noise(loaded, json=json)
    answers = build.build(loaded, allow_mixed=allow_mixed, process_sd=process_sd)
    if html:
        present.write_html(answers, html)
    sys.stdout.write(present.as_text(answers, "json" if json else "markdown" if markdown else "text", every_task=tasks))
    return answers.exit_code


def print_noise(run: Run, *, json: bool) -> ExitCode:
    """The answers of an A/A run."""
    from orchestrator.noise import noise
    from orchestrator.report import floors, present

    found = noise(run)
    shown = jsonlib.dumps(floors.as_data(found), indent=1, allow_nan=False) + "\n" if json else None
    sys.stdout.write(shown or present.printed(lambda console: floors.render(found, console)))
    return found.exit_code

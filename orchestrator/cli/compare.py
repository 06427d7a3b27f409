"""``sweep compare``: two stored runs, matched task by task."""

from __future__ import annotations

import json as jsonlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.errors import ExitCode, RegressionError, UsageError

if TYPE_CHECKING:
    from orchestrator.compare import Comparison
    from orchestrator.store import RunStore


def compare(
    base: Annotated[str, typer.Argument(help="The run to compare with: an id, the beginning of one, or 'latest'.")],
    new: Annotated[str, typer.Argument(help="The run in question.")] = "latest",
    results: Annotated[str, typer.Option(help="The results store: a folder or an object-store URI.")] = "results",
    json: Annotated[bool, typer.Option("--json", help="Print the comparison as JSON.")] = False,
    gate: Annotated[
        str | None,
        typer.Option(metavar="[FILE]", help="Exit with status 5 if the new run breaks the policy in FILE; without FILE, the built-in one."),
    ] = None,
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
    from orchestrator.report import comparison, data, present, rows
    from orchestrator.store import Store

    policy = policies.load_policy(gate) if gate else None
    stores = [Store(results).resolve(name) for name in (base, new)]
    if stores[0].run_id == stores[1].run_id:
        raise UsageError(f"{base} and {new} are one run, {stores[0].run_id}: comparing it with itself would find nothing. Name two runs")
    runs = [rows.load(store, core.COLUMNS) for store in stores]
    found = core.compare(*runs, min_effect=min_effect, process_sd=process_sd, allow_mixed=allow_mixed)
    broken = policies.violations(found, policy) if policy else ()
    if json:
        shown = comparison.as_data(found) | {"violations": data.plain_data(broken)}
        sys.stdout.write(jsonlib.dumps(shown, indent=1, allow_nan=False) + "\n")
    else:
        sys.stdout.write(present.printed(lambda console: comparison.render_comparison(found, console)))
    if confirm:
        _write_confirmation(found, stores[1], confirm, processes)
    if broken:
        raise RegressionError(
            f"{runs[1].run_id} breaks {'the built-in policy' if gate == policies.DEFAULT else gate}:\n{policies.table(broken)}"
        )
    return ExitCode.PASSED


def _write_confirmation(found: Comparison, new: RunStore, path: Path, processes: int) -> None:
    """Write the manifest of the unclear tasks to ``path``; one beside it per further mode and backend."""
    from orchestrator.confirm import confirmation, sharing_of
    from orchestrator.report.present import write_file
    from orchestrator.statistics.differences import Verdict

    unclear = {change.task_id for change in found.of(Verdict.UNCLEAR)}
    planned = [entry.task for entry in new.plan()]
    specs = [task for task in planned if task.task_id in unclear]
    texts = confirmation(specs, f"confirm-{found.new_id}"[:100], processes, sharing_of(planned))
    if not texts:
        sys.stderr.write("no task is unclear: nothing to confirm\n")
    for (mode, backend), text in texts.items():
        target = path if len(texts) == 1 else path.with_name(f"{path.stem}-{mode}-{backend}{path.suffix}")
        write_file(target, text)
        sys.stderr.write(f"{target}: run it in both environments with `sweep run {target}`, then compare those two runs\n")

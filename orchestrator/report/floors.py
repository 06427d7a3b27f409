"""An A/A run's answers as text and as JSON-able data."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from orchestrator.noise import FLOOR_SHARE, Noise
from orchestrator.report.data import plain_data
from orchestrator.report.text import simple_table
from orchestrator.report.words import interval_words, percent


def as_data(found: Noise) -> dict[str, Any]:
    """The contract of ``sweep report --json`` for an A/A run; it has no score."""
    return {
        "run_id": found.run_id,
        "aa": True,
        "planned": found.planned,
        "coverage": [plain_data(floor) for floor in found.floors],
        "missed": [plain_data(ratio) for ratio in found.missed],
        "without": [{"task_id": task_id, "status": status} for task_id, status in found.without],
    }


def render(found: Noise, console: Console) -> None:
    """Print what an A/A run shows."""
    console.print(Text(f"\nrun {found.run_id}: A/A, each arm against itself; the truth is 1.0 and there are no speedups", style="bold"))
    table = simple_table(
        "intervals that hold 1.0 (95 % should)",
        ["class", "arm"],
        ["held", "rate", "95 % of the rate", "sd", "noise floor", "half width"],
    )
    for floor in found.floors:
        table.add_row(
            *(floor.kind, floor.arm, f"{floor.holding} of {floor.intervals}", percent(floor.holding / floor.intervals)),
            *(interval_words(floor.rate), percent(floor.sd, 2), percent(floor.floor, 2), percent(floor.half_width, 2)),
        )
    console.print(table)
    console.print(f"sd: root mean square of ln(ratio); noise floor: {FLOOR_SHARE:.0%} of |ln(ratio)| are below it; half width: median")
    for ratio in found.missed:
        where = f"{ratio.task_id}, {ratio.arm} ({ratio.kind}, {ratio.quality})"
        console.print(Text(f"missed 1.0: {where}: {ratio.ratio:.4f} [{ratio.low:.4f}, {ratio.high:.4f}]", style="yellow"))
    for task_id, status in found.without:
        console.print(Text(f"no ratio: {task_id}: {status}", style="yellow"))

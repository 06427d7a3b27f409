"""A ``History`` for a terminal, as JSON-able data and as one offline HTML page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import plotly.graph_objects as go
from rich.console import Console
from rich.table import Table
from rich.text import Text

from orchestrator.history import Change, History, Kind, Series
from orchestrator.report.data import plain_data
from orchestrator.report.figures import COLOURS, SYMBOLS, finished, label
from orchestrator.report.html import page
from orchestrator.report.text import simple_table
from orchestrator.report.words import NOTHING, moment, times

TICKS = (0.25, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.1, 1.25, 1.5, 1.75, 2, 2.5, 3, 4, 6, 8, 16)
BARS = "▁▂▃▄▅▆▇█"
SPARKLINE = 40
MAX_CHANGES = 30
MAX_TASKS = 40
MAX_REMARKS = 20


def render_history(found: History, console: Console) -> None:
    """Print the groups, then every change of level, the newest first, then the tasks if they are few."""
    console.print(Text(f"{len(found.runs)} runs, {moment(found.runs[0].started)} to {moment(found.runs[-1].started)}", style="bold"))
    if found.mixed:
        console.print(Text(f"Note: left out because they mix devices: {', '.join(found.mixed)}", style="yellow"))
    for remark in found.remarks[:MAX_REMARKS]:
        console.print(Text(f"Note: {remark}", style="yellow"))
    if len(found.remarks) > MAX_REMARKS:
        console.print(Text(f"Note: and {len(found.remarks) - MAX_REMARKS} more of this kind; --json has all", style="yellow"))
    groups, tasks = found.of(Kind.SCORE, Kind.DTYPE, Kind.SUITE), found.of(Kind.TASK)
    if groups:
        console.print(_table("\nscore, dtypes and suites", groups))
    if tasks and (not groups or len(tasks) <= MAX_TASKS):
        console.print(_table("\ntasks", tasks[:MAX_TASKS]))
    if len(tasks) > MAX_TASKS:
        console.print(Text(f"{len(tasks)} tasks; --model names those to show"))
    console.print(_changes(found))


def sparkline(series: Series) -> str:
    """The newest values as bars between the lowest and the highest of them; a space where there is none."""
    values = series.values[-SPARKLINE:]
    known = [value for value in values if math.isfinite(value)]
    low, span = (min(known), max(known) - min(known)) if known else (0.0, 0.0)
    top = len(BARS) - 1
    return "".join(BARS[round(top * (value - low) / span) if span else top // 2] if math.isfinite(value) else " " for value in values)


def _table(title: str, series: Sequence[Series]) -> Table:
    table = simple_table(title, ["of", "device"], ["tasks", "runs", "latest", "changes"])
    table.add_column(f"last {SPARKLINE} runs", no_wrap=True)
    for each in series:
        known = sum(math.isfinite(value) for value in each.values)
        count = str(each.tasks) if each.kind is not Kind.TASK else ""
        table.add_row(
            Text(each.name), Text(each.device), count, str(known), times(each.latest, 3), str(len(each.changes) or NOTHING), sparkline(each)
        )
    return table


def newest_changes(found: History) -> list[tuple[Series, Change]]:
    """Every change of level with its series, the newest first."""
    changes = [(series, change) for series in found.series for change in series.changes]
    return sorted(changes, key=lambda item: (-item[0].runs[item[1].index].started, item[1].ratio, item[0].name))


def _changes(found: History) -> Table | Text:
    changes = newest_changes(found)
    if not changes:
        return Text("\nno change of level")
    table = simple_table(f"\nchanges of level: {len(changes)}, the newest first", ["from run", "of"], ["new/old", "95 %"])
    table.add_column("what else changed then", overflow="fold")
    for series, change in changes[:MAX_CHANGES]:
        ends = f"[{change.low:.3f}, {change.high:.3f}]"
        table.add_row(Text(change.run_id), Text(series.name), f"{change.ratio:.3f}", ends, Text(environment_words(change)))
    return table


def environment_words(change: Change) -> str:
    """The environment before and after, in words."""
    return "; ".join(f"{name} {old} to {new}" for name, old, new in change.environment) or "nothing that is recorded"


def as_data(found: History) -> dict[str, Any]:
    """The contract of ``sweep history --json``."""
    return {
        "runs": [plain_data(run) for run in found.runs],
        "mixed": list(found.mixed),
        "remarks": list(found.remarks),
        "series": [
            {
                "kind": series.kind.value,
                "name": series.name,
                "device": series.device,
                "tasks": series.tasks,
                "run_ids": [run.run_id for run in series.runs],
                "values": [float(value) if math.isfinite(value) else None for value in series.values],
                "changes": [_change_data(change) for change in series.changes],
            }
            for series in found.series
        ],
    }


def _change_data(change: Change) -> dict[str, Any]:
    environment = [{"what": name, "old": old, "new": new} for name, old, new in change.environment]
    return {"run_id": change.run_id, "ratio": change.ratio, "low": change.low, "high": change.high, "environment": environment}


def render_page(found: History) -> str:
    """One offline HTML page: a figure of the groups, one of the tasks that changed or were asked for, and the changes."""
    groups, tasks = found.of(Kind.SCORE, Kind.DTYPE, Kind.SUITE), found.of(Kind.TASK)
    shown = [series for series in tasks if series.changes or not groups][:MAX_TASKS]
    figures = {name: _figure(series).to_plotly_json() for name, series in (("groups", groups), ("tasks", shown)) if series}
    return page(
        "history.html.j2",
        figures=figures,
        found=found,
        changes=newest_changes(found),
        environment_words=environment_words,
        captions={"groups": "Score, dtypes and suites", "tasks": "Tasks that changed" if groups else "Tasks"},
    )


def _figure(series: Sequence[Series]) -> go.Figure:
    figure = go.Figure()
    for place, each in enumerate(series):
        moments = [datetime.fromtimestamp(run.started, UTC).isoformat() for run in each.runs]
        marker = {"color": COLOURS[place % len(COLOURS)], "symbol": SYMBOLS[place // len(COLOURS) % len(SYMBOLS)], "size": 5}
        figure.add_scatter(
            x=moments,
            y=[float(value) if math.isfinite(value) else None for value in each.values],
            name=label(each.name),
            mode="lines+markers",
            marker=marker,
            line={"width": 1, "color": marker["color"]},
            text=[label(f"{run.run_id}: {run.passed} of {run.planned} passed") for run in each.runs],
            hovertemplate="%{text}<br>%{y:.3f}x<extra>" + label(each.name).replace("%", "&#37;") + "</extra>",
        )
        changed = [change.index for change in each.changes]
        figure.add_scatter(
            x=[moments[index] for index in changed],
            y=[float(each.values[index]) for index in changed],
            mode="markers",
            marker={"symbol": "triangle-up-open", "size": 13, "color": marker["color"], "line": {"width": 2}},
            showlegend=False,
            hoverinfo="skip",
        )
    axis = {"type": "log", "tickvals": list(TICKS), "ticktext": [f"{tick:g}x" for tick in TICKS], "automargin": True}
    figure.update_layout(height=460 + 14 * len(series), xaxis={"type": "date"}, yaxis={**axis, "title": {"text": "speedup"}})
    return finished(figure)

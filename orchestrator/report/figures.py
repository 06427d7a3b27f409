"""The figures of the HTML report, as plotly figures without a theme: the page gives them the colours of its own, light or dark.

Series differ by marker symbol as well as by colour. Every text that comes from a run is escaped, since plotly reads tags in labels.
Only SVG traces are used, so the page needs neither ``eval`` nor a worker.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

import plotly.graph_objects as go

from orchestrator.report.answers import Configuration
from orchestrator.report.rows import Row

COLOURS = ("#3b82c4", "#d97706", "#4d9a53", "#a26fc4")
SYMBOLS = ("circle", "diamond-open", "square", "cross-open")
TICKS = (0.125, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4, 6, 8, 16, 32)
MAX_LABEL = 48
ROOM_FOR_INTERVALS = 1.5


def figures_of(configuration: Configuration, rows: Sequence[Row]) -> dict[str, go.Figure]:
    """Name -> figure for the rows of one configuration that passed; none when none did."""
    rows = [row for row in rows if row.passed and (row.mode, row.backend) == (configuration.mode, configuration.backend)]
    rows = [row for row in rows if configuration.device in (None, row.device)]
    if not rows:
        return {}
    dtypes = [answer.dtype for answer in configuration.dtypes]
    figures = {"distribution": distribution(rows, dtypes), "ranking": ranking(rows, dtypes)}
    timed = [row for row in rows if row.eager_ms and row.compiled_ms]
    return figures | ({"times": eager_against_compiled(timed, dtypes)} if timed else {})


def distribution(rows: Sequence[Row], dtypes: Sequence[str]) -> go.Figure:
    """Every speedup, and the quartiles, per suite and dtype."""
    figure = go.Figure()
    for place, dtype in enumerate(dtypes):
        members = [row for row in rows if row.dtype == dtype]
        figure.add_box(
            **_series(place, dtype),
            x=[row.speedup for row in members],
            y=[label(row.suite) for row in members],
            text=[label(row.model) for row in members],
            orientation="h",
            boxpoints="all",
            jitter=0.6,
            pointpos=0,
            fillcolor="rgba(0,0,0,0)",
            line={"width": 1.5},
            hovertemplate="%{text}<br>%{x:.3f}x<extra></extra>",
        )
    suites = len({row.suite for row in rows})
    figure.update_layout(boxmode="group", height=150 + 60 * suites * max(len(dtypes), 1), xaxis=_speedups(rows), yaxis={"automargin": True})
    return finished(figure)


def ranking(rows: Sequence[Row], dtypes: Sequence[str]) -> go.Figure:
    """Every speedup with its 95 % interval, in rising order within its dtype."""
    figure = go.Figure()
    for place, dtype in enumerate(dtypes):
        members = sorted((row for row in rows if row.dtype == dtype), key=lambda row: (row.speedup or 0.0, row.task_id))
        figure.add_scatter(
            **_series(place, dtype),
            mode="markers",
            x=list(range(1, len(members) + 1)),
            y=[row.speedup for row in members],
            error_y={
                "type": "data",
                "symmetric": False,
                "array": [_distance(row.speedup, row.speedup_high) for row in members],
                "arrayminus": [_distance(row.speedup_low, row.speedup) for row in members],
                "thickness": 1,
                "width": 0,
            },
            text=[f"{label(row.suite)}/{label(row.model)}" for row in members],
            customdata=[[row.speedup_low, row.speedup_high] for row in members],
            hovertemplate="%{text}<br>%{y:.3f}x [%{customdata[0]:.3f}, %{customdata[1]:.3f}]<extra></extra>",
        )
    figure.add_hline(y=1.0, line_width=1, line_dash="dash")
    figure.update_layout(
        height=380,
        xaxis={"title": {"text": "models, slowest first"}, "tickformat": ",d", "nticks": min(len(rows) // max(len(dtypes), 1), 9) + 1},
        yaxis=_speedups(rows, ROOM_FOR_INTERVALS),
    )
    return finished(figure)


def eager_against_compiled(rows: Sequence[Row], dtypes: Sequence[str]) -> go.Figure:
    """Milliseconds per iteration on both sides; below the dashed line the compiled step is faster."""
    figure = go.Figure()
    for place, dtype in enumerate(dtypes):
        members = [row for row in rows if row.dtype == dtype]
        figure.add_scatter(
            **_series(place, dtype),
            mode="markers",
            x=[row.eager_ms for row in members],
            y=[row.compiled_ms for row in members],
            text=[f"{label(row.suite)}/{label(row.model)}" for row in members],
            hovertemplate="%{text}<br>eager %{x:.3f} ms, compiled %{y:.3f} ms<extra></extra>",
        )
    times = [value for row in rows for value in (row.eager_ms, row.compiled_ms) if value]
    ends = [min(times), max(times)]
    figure.add_scatter(x=ends, y=ends, mode="lines", line={"dash": "dash", "width": 1}, name="same time", hoverinfo="skip")
    axes = {"type": "log", "dtick": "D2", "automargin": True}
    figure.update_layout(height=420, xaxis={**axes, "title": {"text": "eager ms"}}, yaxis={**axes, "title": {"text": "compiled ms"}})
    return finished(figure)


def label(text: str) -> str:
    """``text`` as plotly shows it literally."""
    return html.escape(text if len(text) <= MAX_LABEL else text[: MAX_LABEL - 1] + "…")


def _series(place: int, name: str) -> dict[str, object]:
    marker = {"color": COLOURS[place % len(COLOURS)], "symbol": SYMBOLS[place % len(SYMBOLS)], "size": 6}
    return {"name": label(name), "marker": marker}


def _speedups(rows: Sequence[Row], room: float = 1.0) -> dict[str, object]:
    """A logarithmic axis with ticks that people read as speedups; it shows interval ends up to ``room`` times beyond the speedups."""
    known = [row.speedup for row in rows if row.speedup]
    first, last = min(known) / room, max(known) * room
    known += [end for row in rows for end in (row.speedup_low, row.speedup_high) if end is not None and first < end < last]
    low, high = min([*known, 0.95]), max([*known, 1.05])
    ticks = [tick for tick in TICKS if low / 1.3 <= tick <= high * 1.3]
    ends = [math.log10(low / 1.08), math.log10(high * 1.08)]
    return {
        "type": "log",
        "range": ends,
        "tickvals": ticks,
        "ticktext": [f"{tick:g}x" for tick in ticks],
        "title": {"text": "speedup"},
        "automargin": True,
    }


def finished(figure: go.Figure) -> go.Figure:
    """``figure`` with everything that all figures of a page have in common."""
    figure.update_layout(
        template="none",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        margin={"l": 48, "r": 8, "t": 8, "b": 44},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        font={"size": 12},
        hovermode="closest",
    )
    return figure


def _distance(low: float | None, high: float | None) -> float | None:
    return None if low is None or high is None else max(high - low, 0.0)

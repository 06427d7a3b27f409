"""The figure of the reference sweep: the speedup of every task that passed, with its interval.

``python -m tests.figure docs/reference-sweep.svg`` draws it from the store, to the byte the same for the same store; ``make pages`` does.
The figures of reports are plotly's (``orchestrator.report.figures``), which needs a browser to become a picture.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FormatStrFormatter, NullLocator

from tests.pages import answered

QUERY = """
SELECT speedup, speedup_low, speedup_high FROM 'results/reference/reference/tasks/*.parquet'
WHERE status = 'pass' AND dtype = '{dtype}' ORDER BY speedup
"""
COLOURS = {"amp": "#22639e", "float32": "#c2571a"}
SPEEDUPS = (0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0)


def drawn() -> Figure:
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.axhline(1.0, color="#888888", linewidth=0.8)
    for dtype, colour in COLOURS.items():
        rows = answered(QUERY.format(dtype=dtype)).to_pylist()
        places = [(place + 0.5) / len(rows) for place in range(len(rows))]
        low, centre, high = ([row[name] for row in rows] for name in ("speedup_low", "speedup", "speedup_high"))
        mean = statistics.geometric_mean(centre)
        axes.vlines(places, low, high, color=colour, alpha=0.25, linewidth=1.5)
        axes.plot(places, centre, ".", color=colour, markersize=4, label=f"{dtype}: {len(rows)} tasks, mean {mean:.2f}x")
    axes.set_yscale("log")
    axes.set_ylim(0.33, 4.6)
    axes.yaxis.set_major_locator(FixedLocator(SPEEDUPS))
    axes.yaxis.set_major_formatter(FormatStrFormatter("%gx"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    axes.set_xlabel("share of the tasks with a smaller speedup")
    axes.set_ylabel("speedup, 95 % interval")
    axes.legend(loc="upper left", frameon=False)
    return figure


def save(path: Path) -> None:
    with mpl.rc_context({"svg.hashsalt": "reference", "svg.fonttype": "none"}):
        drawn().savefig(path, format="svg", metadata={"Date": None})


if __name__ == "__main__":
    save(Path(sys.argv[1]))

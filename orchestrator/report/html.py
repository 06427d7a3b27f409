"""``Answers`` as one HTML file that needs no network: styles, scripts and plotly are inside, and its content policy forbids the rest.

Autoescaping is on; what goes into a script element goes there as JSON without ``<``, ``>`` and ``&``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from orchestrator.report import words
from orchestrator.report.answers import PUBLISHED, Answers
from orchestrator.report.figures import figures_of
from orchestrator.report.rows import Row

FIGURES = {
    "distribution": ("Speedups per suite", "Each mark is one model; boxes span the quartiles. Right of 1x compiling helps."),
    "ranking": ("Every model, slowest first", "With the 95 % interval of its own measurement."),
    "times": ("Eager against compiled", "Milliseconds per iteration. Below the dashed line the compiled step is faster."),
}
BAR_LOW, BAR_HIGH = 0.5, 4.0
"""The ends of the little bars in the table; what lies beyond is drawn at the end."""


@dataclass(frozen=True, slots=True)
class Bar:
    """An interval on the logarithmic scale from ``BAR_LOW`` to ``BAR_HIGH``, in percent of its width."""

    left: float
    width: float
    point: float


def render_html(answers: Answers) -> str:
    """The whole page."""
    figures = {
        f"{place}-{name}": figure.to_plotly_json()
        for place, configuration in enumerate(answers.configurations)
        for name, figure in figures_of(configuration, answers.rows).items()
    }
    return page(
        "template.html.j2", answers=answers, rows=_in_order(answers), figures=figures, captions=FIGURES, published=PUBLISHED, bar=bar
    )


def page(template: str, *, figures: dict[str, Any], **content: Any) -> str:
    """``template`` of this package with ``content``, plotly if there is a figure, and the words of ``words`` as filters."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("orchestrator.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        name: getattr(words, name)
        for name in (
            "times",
            "number",
            "percent",
            "interval_words",
            "rate_words",
            "tasks_words",
            "rate_interval_words",
            "upstream_words",
            "moment",
            "duration",
        )
    }
    # plotly's own file, which holds no closing script tag; nothing of the run goes in unescaped.
    script = Markup(get_plotlyjs()) if figures else ""  # noqa: S704
    return environment.get_template(template).render(figures=figures, plotly=script, **content)


def bar(row: Row) -> Bar | None:
    """Where the interval of ``row`` lies in its little bar."""
    if row.speedup is None or row.speedup_low is None or row.speedup_high is None:
        return None
    low, point, high = (_percent(value) for value in (row.speedup_low, row.speedup, row.speedup_high))
    return Bar(low, max(high - low, 1.0), point)


def _percent(speedup: float) -> float:
    if not speedup > 0:
        return 0.0
    share = math.log(min(speedup, BAR_HIGH) / BAR_LOW) / math.log(BAR_HIGH / BAR_LOW)
    return round(100 * min(max(share, 0.0), 1.0), 1)


def _in_order(answers: Answers) -> list[Row]:
    """What passed, fastest first, then the rest by status and name."""
    return sorted(answers.rows, key=lambda row: (not row.passed, -(row.speedup or 0.0) if row.passed else 0.0, row.status, row.task_id))

"""How numbers are written in every report, so that text, Markdown and HTML say the same. An en dash stands for "not known"."""

from __future__ import annotations

import math
from datetime import UTC, datetime

from orchestrator.report.answers import Rate, Variant
from orchestrator.statistics.intervals import Interval

NOTHING = "\N{EN DASH}"
UPSTREAM = "upstream: tasks whose results agree, or were not compared, whatever their timing, of those that got through eager mode"


def times(value: float | None, digits: int = 2) -> str:
    """A ratio: ``1.43x``."""
    return NOTHING if value is None else f"{value:.{digits}f}x"


def number(value: float | None, digits: int = 1) -> str:
    """A plain number with thousands separated."""
    return NOTHING if value is None or math.isnan(value) else f"{value:,.{digits}f}"


def percent(share: float | None, digits: int = 1) -> str:
    """A share of one: ``92.6 %``."""
    return NOTHING if share is None else f"{100 * share:.{digits}f} %"


def interval_words(interval: Interval | None, digits: int = 3) -> str:
    """Both ends in brackets; nothing at all when there is no interval."""
    return f"[{interval.low:.{digits}f}, {interval.high:.{digits}f}]" if interval else ""


def rate_words(rate: Rate) -> str:
    """Passed of planned, the rate with its interval, and what the others are."""
    ends = f", {rate_interval_words(rate)}" if rate.interval else ""
    others = (
        (rate.unjudged, "timed without a verdict on accuracy"),
        (rate.failed, "failed"),
        (rate.skipped, "excluded by the manifest"),
        (rate.infra, "lost to infrastructure"),
        (rate.missing, "without a row"),
    )
    rest = ", ".join(f"{count} {name}" for count, name in others if count)
    return f"{rate.passed} of {rate.planned}{ends}" + (f"; {rest}" if rest else "")


def tasks_words(variant: Variant, dtype: str) -> str:
    """How many tasks enter a dtype's mean, of how many planned ones: ``151 of 163``."""
    return f"{variant.tasks.get(dtype, 0)} of {variant.planned.get(dtype, 0)}"


def rate_interval_words(rate: Rate) -> str:
    """The rate with its interval, in per cent: ``92.6 % [87.6, 95.7]``."""
    return percent(rate.value) + (f" [{100 * rate.interval.low:.1f}, {100 * rate.interval.high:.1f}]" if rate.interval else "")


def upstream_words(rate: Rate) -> str:
    """Passed of counted by upstream's definition: ``52/55``."""
    return f"{rate.upstream_passed}/{rate.upstream_counted}"


def moment(epoch_s: float | None) -> str:
    """Seconds since the epoch as UTC to the second."""
    return NOTHING if epoch_s is None else datetime.fromtimestamp(epoch_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def duration(seconds: float | None) -> str:
    """``2 h 03 min``, ``4 min 05 s`` or ``12.3 s``."""
    if seconds is None:
        return NOTHING
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"

"""A ``Comparison`` for a terminal and as JSON-able data. What differs between the environments comes before any number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from orchestrator.compare import Change, Comparison, ratio
from orchestrator.judging import Noise
from orchestrator.report.data import plain_data
from orchestrator.report.plain import gist
from orchestrator.report.rows import Row
from orchestrator.report.text import simple_table
from orchestrator.report.words import NOTHING, number, times
from orchestrator.statistics.differences import Verdict
from orchestrator.statistics.means import geomean

MAX_NAMED = 20
NOT_COMPARED = ("failing_in_both", "only_in_base", "only_in_new", "unlike", "carried", "without_interval")


def render_comparison(found: Comparison, console: Console) -> None:
    """Print it."""
    console.print(Text(f"{found.new_id} against {found.base_id}", style="bold"))
    console.print(_environment(found))
    for remark in found.remarks:
        console.print(Text(f"Note: {remark}", style="yellow"))
    console.print(_means(found))
    for line in _noise(found):
        console.print(Text(line, style="dim"))
    for verdict in (Verdict.SLOWER, Verdict.FASTER, Verdict.UNCLEAR):
        if changes := found.of(verdict):
            console.print(_changes(f"{verdict.value}: {len(changes)} tasks", _first(changes, verdict)))
    console.print(Text(f"\nsame: {len(found.of(Verdict.SAME))} tasks"))
    for title, rows in (("newly failing", found.matched.newly_failing), ("newly passing", found.matched.newly_passing)):
        if rows:
            console.print(_statuses(title, rows))
    console.print(_costs(found))
    console.print(Text(_left_out(found), style="dim"))


def _environment(found: Comparison) -> Table | Text:
    if not found.environment:
        return Text("environment and definitions of the tasks: no difference is recorded")
    table = simple_table("what differs between the runs", ["what", f"base {found.base_id}", f"new {found.new_id}"], [])
    for name, base, new in found.environment:
        table.add_row(Text(name), Text(base), Text(new))
    return table


def _means(found: Comparison) -> Table:
    table = simple_table("\nmatched tasks", ["of", "dtype"], ["base", "new", "new/base", "95 %", "tasks", "p"])
    for score in found.scores:
        table.add_row(
            Text(f"score, {score.mode}, {score.backend}"),
            "",
            times(score.base, 3),
            times(score.new, 3),
            f"{score.ratio:.4f}",
            f"[{score.low:.4f}, {score.high:.4f}]",
            str(score.tasks),
            "",
        )
    for group in found.groups:
        table.add_row(
            Text(group.suite or f"all suites, {group.mode}, {group.backend}"),
            Text(group.dtype),
            times(group.base, 3),
            times(group.new, 3),
            f"{group.ratio:.4f}",
            f"[{group.low:.4f}, {group.high:.4f}]",
            str(group.tasks),
            NOTHING if group.p is None else f"{group.p:.3f}",
        )
    return table


def _noise(found: Comparison) -> list[str]:
    lines = [
        f"{noise.kind}, {noise.tasks} tasks: between processes ln(speedup) varies by {100 * noise.scale.process_sd:.2f} % "
        f"({noise.scale.source}); same is within {100 * math.expm1(noise.margin):.1f} %"
        for noise in found.noise
    ]
    allowed = f"with at most {100 * found.rate:.0f} % false ones among them"
    return [*lines, f"faster and slower are by {100 * math.expm1(found.effect):.1f} % at least, {allowed}"]


def _first(changes: Sequence[Change], verdict: Verdict) -> list[Change]:
    """The most telling ones: the largest changes, slower ones before faster ones."""
    ordered = sorted(changes, key=lambda change: -abs(change.judgement.change)) if verdict is not Verdict.SLOWER else list(changes)
    return ordered[:MAX_NAMED]


def _changes(title: str, changes: Sequence[Change]) -> Table:
    hosts = any(change.host for change in changes)
    numbers = ["base", "new", "new/base", "95 %", "q", "eager ms", "compiled ms", *(["host"] if hosts else [])]
    table = simple_table(f"\n{title}", ["task"], numbers)
    table.add_column("moved")
    for change in changes:
        interval = change.judgement.interval
        table.add_row(
            Text(change.task_id),
            times(change.base.speedup, 3),
            times(change.new.speedup, 3),
            f"{change.ratio:.3f}",
            f"[{interval.low:.3f}, {interval.high:.3f}]",
            f"{change.judgement.q:.2g}",
            _moved(change.eager),
            _moved(change.compiled),
            *([_moved(change.host)] if hosts else []),
            change.moved.value if change.moved and change.verdict is not Verdict.UNCLEAR else NOTHING,
        )
    return table


def _moved(share: float | None) -> str:
    return NOTHING if share is None else f"{100 * (share - 1):+.1f} %"


def _statuses(title: str, rows: Sequence[Row]) -> Table:
    table = simple_table(f"\n{title}: {len(rows)} tasks", ["task", "status", "phase", "error"], [])
    for row in rows:
        table.add_row(Text(row.task_id), Text(row.status), Text(row.phase or ""), Text(gist(row.error or "")))
    return table


def costs(found: Comparison) -> dict[str, float | int | None]:
    """What compiling cost, new to base, over matched tasks: geometric means of ratios, and the sums of graph breaks.

    Compile times only of tasks that as many processes compiled in both, as far as the rows say.
    """
    pairs = [(change.base, change.new) for change in found.changes]
    alike = [(base, new) for base, new in pairs if len({base.compile_threads, new.compile_threads} - {None}) < 2]
    compile_s = [share for base, new in alike if (share := ratio(new.compile_s, base.compile_s))]
    memory = [share for base, new in pairs if (share := ratio(new.compiled_peak_mib, base.compiled_peak_mib))]
    breaks = [
        (base.graph_breaks, new.graph_breaks) for base, new in pairs if base.graph_breaks is not None and new.graph_breaks is not None
    ]
    return {
        "compile_time_ratio": geomean(compile_s) if compile_s else None,
        "compiled_memory_ratio": geomean(memory) if memory else None,
        "graph_breaks_base": sum(base for base, _ in breaks) if breaks else None,
        "graph_breaks_new": sum(new for _, new in breaks) if breaks else None,
    }


def _costs(found: Comparison) -> Text:
    known = costs(found)
    breaks = f"{number(known['graph_breaks_base'], 0)} to {number(known['graph_breaks_new'], 0)}"
    changed = [change.task_id for change in found.changes if change.base.graph_breaks != change.new.graph_breaks]
    more = f" (in {', '.join(changed[:5])}{' and others' if len(changed) > 5 else ''})" if changed else ""
    return Text(
        f"compile time: {times(known['compile_time_ratio'])} the base's; compiled peak memory: {times(known['compiled_memory_ratio'])}; "
        f"graph breaks: {breaks}{more}"
    )


def _left_out(found: Comparison) -> str:
    matched = found.matched
    groups = (
        (matched.failing_in_both, "passed in neither run"),
        (matched.only_in_base, "only in the base"),
        (matched.only_in_new, "only in the new run"),
        (matched.unlike, "not the same task in both"),
        (matched.carried, "taken over from the base"),
        (matched.without_interval, "without an interval"),
    )
    said = [f"{len(names)} {what}" for names, what in groups if names]
    return f"not compared: {', '.join(said)}" if said else "every task that passed was compared"


def as_data(found: Comparison) -> dict[str, Any]:
    """The contract of ``sweep compare --json``."""
    matched = found.matched
    return {
        "base": found.base_id,
        "new": found.new_id,
        "environment": [{"what": name, "base": base, "new": new} for name, base, new in found.environment],
        "scores": [{**plain_data(score), "ratio": score.ratio} for score in found.scores],
        "groups": [{**plain_data(group), "ratio": group.ratio} for group in found.groups],
        "counts": {verdict.value: len(found.of(verdict)) for verdict in Verdict},
        "changes": [_change_data(change) for change in found.changes],
        "newly_failing": [{"task_id": row.task_id, "status": row.status, "error": row.error} for row in matched.newly_failing],
        "newly_passing": [row.task_id for row in matched.newly_passing],
        "costs": costs(found),
        **{name: list(getattr(matched, name)) for name in NOT_COMPARED},
        "remarks": list(found.remarks),
        "noise": [_noise_data(noise) for noise in found.noise],
        "min_effect": math.expm1(found.effect),
        "false_discovery_rate": found.rate,
    }


def _noise_data(noise: Noise) -> dict[str, Any]:
    return {
        "class": noise.kind,
        "tasks": noise.tasks,
        "process_sd": noise.scale.process_sd,
        "source": noise.scale.source,
        "spread": noise.scale.spread,
        "same_within": math.expm1(noise.margin),
    }


def _change_data(change: Change) -> dict[str, Any]:
    compared = ("speedup", "eager_ms", "compiled_ms", "compile_s", "eager_peak_mib", "compiled_peak_mib", "graph_breaks", "quality")
    judgement = change.judgement
    return {
        "task_id": change.task_id,
        "verdict": change.verdict.value,
        "ratio": change.ratio,
        "low": judgement.interval.low,
        "high": judgement.interval.high,
        "p": judgement.p,
        "q": judgement.q,
        "eager_ratio": change.eager,
        "compiled_ratio": change.compiled,
        "host_ratio": change.host,
        "moved": change.moved.value if change.moved else None,
        "base": {name: plain_data(getattr(change.base, name)) for name in compared},
        "new": {name: plain_data(getattr(change.new, name)) for name in compared},
    }

"""``Answers`` for a terminal: tables by rich, nothing said by colour alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from orchestrator.report.answers import PUBLISHED, Answers, Configuration, Estimate, FailureGroup
from orchestrator.report.rows import Row
from orchestrator.report.words import (
    UPSTREAM,
    interval_words,
    number,
    percent,
    rate_interval_words,
    rate_words,
    tasks_words,
    times,
    upstream_words,
)

MAX_TASKS_NAMED = 6
LOG_TAIL_LINES = 3


def render_text(answers: Answers, console: Console, *, every_task: bool = False) -> None:
    """Print the report; ``every_task`` adds the table of every task."""
    for configuration in answers.configurations:
        console.print(_headline(answers, configuration))
        console.print(_suites(configuration))
        console.print(_variants(configuration))
    console.print(_statuses(answers))
    if answers.failures:
        console.print(_failures(answers.failures))
    if every_task:
        console.print(_tasks(answers.rows))
    for remark in answers.remarks:
        console.print(Text(f"Note: {remark}", style="yellow"))


def _headline(answers: Answers, configuration: Configuration) -> RenderableType:
    score = configuration.score
    lines = [Text(f"\nrun {answers.run_id}: {', '.join(configuration.title)}", style="bold")]
    if score.value is None:
        lines.append(Text(f"score: not defined: {score.why_not}", style="bold yellow"))
    else:
        weights = " + ".join(f"{weight:g} {dtype}" for dtype, weight in configuration.weights.items())
        lines.append(
            Text.assemble(
                ("score ", "bold"),
                (times(score.value, 3), "bold green"),
                f"  = {weights}, geometric means over {configuration.rate.timed} tasks",
            )
        )
        lines += [Text(f"  {line}") for line in (*_intervals(score, answers.processes_covered), *answers.process_lines)]
    if configuration.unjudged_words:
        lines.append(Text(f"  {configuration.unjudged_words}", style="bold yellow"))
    for answer in configuration.dtypes:
        value = "not defined" if answer.geomean.value is None else times(answer.geomean.value, 3)
        spread = (
            f", p10 {times(answer.spread.p10)}, median {times(answer.spread.median)}, p90 {times(answer.spread.p90)}"
            if answer.spread
            else ""
        )
        ends = f" {interval_words(answer.geomean.measurement)}" if answer.geomean.measurement else ""
        lines.append(Text(f"  {answer.dtype}: {value}{ends}{spread}; {rate_words(answer.rate)}"))
    lines.append(Text(f"  passed: {rate_words(configuration.rate)}"))
    reference = (
        f"{times(PUBLISHED.weighted)}, amp {times(PUBLISHED.amp)}, float32 {times(PUBLISHED.float32)}, {percent(PUBLISHED.pass_rate)} work"
    )
    lines.append(Text(f"  for reference: {reference} ({PUBLISHED.source})", style="dim"))
    return Group(*lines)


def _intervals(estimate: Estimate, covered: bool) -> list[str]:
    """Both intervals, each with the question that it answers."""
    lines = []
    if estimate.measurement:
        beyond = "in fresh processes" if covered else "what a fresh process would change is not in it"
        lines.append(f"{interval_words(estimate.measurement)} 95 % for these models, measured again ({beyond})")
    if estimate.generalisation:
        lines.append(f"{interval_words(estimate.generalisation)} 95 % for other models of this kind")
    if estimate.why_not:
        lines.append(estimate.why_not)
    return lines


def _suites(configuration: Configuration) -> Table:
    table = simple_table(
        "suites",
        ["suite", "dtype"],
        ["geomean", "95 % (measured again)", "median", "passed", "rate, 95 %", "upstream", "compile s", "memory", "breaks"],
    )
    for answer in configuration.suites:
        table.add_row(
            Text(answer.suite),
            Text(answer.dtype),
            times(answer.geomean.value),
            interval_words(answer.geomean.measurement),
            times(answer.spread.median if answer.spread else None),
            f"{answer.rate.passed}/{answer.rate.planned}",
            rate_interval_words(answer.rate),
            upstream_words(answer.rate),
            number(answer.median_compile_s, 1),
            times(answer.memory_ratio),
            number(answer.graph_breaks, 0),
        )
    table.caption, table.caption_justify = Text(UPSTREAM, style="dim"), "left"
    return table


def _variants(configuration: Configuration) -> Table:
    dtypes = [answer.dtype for answer in configuration.dtypes]
    columns = [name for dtype in dtypes for name in (dtype, "tasks")]
    table = simple_table("the same rows by other definitions", ["definition"], ["score", *columns])
    table.add_column("meaning", overflow="fold")
    for variant in configuration.variants:
        cells = (cell for dtype in dtypes for cell in (times(variant.by_dtype.get(dtype), 3), tasks_words(variant, dtype)))
        table.add_row(variant.name, times(variant.weighted, 3), *cells, Text(variant.meaning, style="dim"))
    return table


def _statuses(answers: Answers) -> Text:
    counts = ", ".join(f"{count} {status}" for status, count in answers.statuses.items()) or "no rows"
    missing = f", {len(answers.missing)} planned tasks without a row" if answers.missing else ""
    quality = ", ".join(f"{count} {state}" for state, count in answers.quality.items())
    lines = [f"\n{answers.rate.planned} planned: {counts}{missing}", *([f"quality of the measurements: {quality}"] if quality else [])]
    lines += [
        text if name == "held" else f"  {text}" for name, text in answers.facts.items() if name == "held" or name.startswith("session ")
    ]
    return Text("\n".join(lines))


def _failures(groups: Sequence[FailureGroup]) -> RenderableType:
    parts: list[RenderableType] = [Text("\ndid not pass", style="bold")]
    for group in groups:
        named = ", ".join(group.tasks[:MAX_TASKS_NAMED]) + (
            f" and {len(group.tasks) - MAX_TASKS_NAMED} more" if len(group.tasks) > MAX_TASKS_NAMED else ""
        )
        head = f"{len(group.tasks)} x {group.status}" + (f" in {group.phase}" if group.phase else "")
        parts.append(Text.assemble((head, "bold red"), f": {group.signature}"))
        parts.append(Padding(Text(named), (0, 0, 0, 4)))
        tail = [line for line in group.log_tail.splitlines() if line.strip()][-LOG_TAIL_LINES:]
        if tail:
            parts.append(Padding(Text("\n".join(tail), style="dim"), (0, 0, 0, 4)))
    return Group(*parts)


def _tasks(rows: Sequence[Row]) -> Table:
    table = simple_table(
        "tasks, fastest first", ["task", "status"], ["speedup", "95 %", "eager ms", "compiled ms", "compile s", "memory", "breaks"]
    )
    table.add_column("quality")
    for row in sorted(rows, key=lambda row: -(row.speedup or -math.inf) if row.passed else math.inf):
        low, high = row.speedup_low, row.speedup_high
        ends = f"[{low:.3f}, {high:.3f}]" if low is not None and high is not None else ""
        table.add_row(
            Text(row.task_id),
            Text(row.status),
            times(row.speedup, 3),
            ends,
            number(row.eager_ms, 3),
            number(row.compiled_ms, 3),
            number(row.compile_s, 1),
            times(row.memory_ratio),
            number(row.graph_breaks, 0),
            Text(row.quality or ""),
        )
    return table


def simple_table(title: str, left: Sequence[str], right: Sequence[str]) -> Table:
    """A table without lines; the columns of ``right`` are numbers."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in left:
        table.add_column(name, overflow="fold")
    for name in right:
        table.add_column(name, justify="right")
    return table

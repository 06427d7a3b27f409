"""``Answers`` as GitHub-flavoured Markdown: for a pull request or a release note. Text of the run cannot become markup."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence

from orchestrator.report.answers import PUBLISHED, Answers, Configuration, FailureGroup
from orchestrator.report.words import (
    UPSTREAM,
    interval_words,
    moment,
    number,
    percent,
    rate_interval_words,
    rate_words,
    tasks_words,
    times,
    upstream_words,
)

MAX_TASKS_NAMED = 10
_MARKUP = re.compile(r"([\\`*_{}\[\]()#+!|~@:>-])")


def render_markdown(answers: Answers) -> str:
    """The report, with a newline at the end."""
    parts = [f"# Sweep {literal(answers.run_id)}", moment(answers.started)]
    parts += [f"> Note: {literal(remark)}" for remark in answers.remarks]
    for configuration in answers.configurations:
        parts += _configuration(answers, configuration)
    parts += ["## Failures", *map(_failure, answers.failures)] if answers.failures else []
    if answers.missing:
        parts.append(f"{len(answers.missing)} planned tasks have no row: {_named(answers.missing)}")
    environment = ([literal(fact.name), literal(", ".join(fact.values))] for fact in answers.environment)
    parts += ["## Environment", table(["what", "value"], environment)]
    return "\n\n".join(parts) + "\n"


def literal(text: str) -> str:
    """``text`` on one line, shown as it is."""
    return _MARKUP.sub(r"\\\1", html.escape(" ".join(text.split()), quote=False))


def table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers_from: int | None = None) -> str:
    """A table; the columns from ``numbers_from`` on are set to the right."""
    aligned = ["---:" if numbers_from is not None and place >= numbers_from else "---" for place in range(len(head))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, aligned, *rows))


def _configuration(answers: Answers, configuration: Configuration) -> list[str]:
    score = configuration.score
    weights = " + ".join(f"{weight:g} {dtype}" for dtype, weight in configuration.weights.items())
    head = f"**Score {times(score.value, 3)}** = {literal(weights)}; {rate_words(configuration.rate)}"
    lines = [
        f"- {interval_words(score.measurement)} 95 % for these models, measured again" + ("" if answers.processes_covered else _WITHIN)
    ]
    lines = lines if score.measurement else []
    lines = [f"- {configuration.unjudged_words}", *lines] if configuration.unjudged_words else lines
    lines += [f"- {interval_words(score.generalisation)} 95 % for other models of this kind"] if score.generalisation else []
    lines += [f"- {literal(line)}" for line in answers.process_lines]
    lines += [f"- {literal(score.why_not)}"] if score.why_not else []
    lines += [f"- for reference: {times(PUBLISHED.weighted)}, {percent(PUBLISHED.pass_rate)} work ({PUBLISHED.source})"]
    suites = (
        [
            *(literal(answer.suite), literal(answer.dtype), times(answer.geomean.value, 3), interval_words(answer.geomean.measurement)),
            *(f"{answer.rate.passed}/{answer.rate.planned}", rate_interval_words(answer.rate), upstream_words(answer.rate)),
            *(number(answer.median_compile_s), times(answer.memory_ratio)),
        ]
        for answer in configuration.suites
    )
    dtypes = [answer.dtype for answer in configuration.dtypes]
    variants = (
        [
            *(variant.name, times(variant.weighted, 3)),
            *(cell for dtype in dtypes for cell in (times(variant.by_dtype.get(dtype), 3), tasks_words(variant, dtype))),
        ]
        for variant in configuration.variants
    )
    return [
        "## " + ", ".join(map(literal, configuration.title)),
        head,
        "\n".join(lines),
        table(["suite", "dtype", "geomean", "95 %", "passed", "rate, 95 %", "upstream", "compile s", "memory"], suites, 2),
        UPSTREAM,
        table(["definition", "score", *(name for dtype in dtypes for name in (literal(dtype), "tasks"))], variants, 1),
    ]


_WITHIN = " (what a fresh process would change is not in it)"


def _failure(group: FailureGroup) -> str:
    phase = f" in {literal(group.phase)}" if group.phase else ""
    return f"- {len(group.tasks)} x **{literal(group.status)}**{phase}: {literal(group.signature)}\n  - {_named(group.tasks)}"


def _named(tasks: Sequence[str]) -> str:
    more = f" and {len(tasks) - MAX_TASKS_NAMED} more" if len(tasks) > MAX_TASKS_NAMED else ""
    return ", ".join(literal(task) for task in tasks[:MAX_TASKS_NAMED]) + more

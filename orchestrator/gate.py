"""The policy of ``sweep compare --gate``: which changes a continuous integration must not let through, and which of a comparison are such.

A policy is a YAML file; a rule that it does not name does not apply. Only what a comparison is sure of breaks a rule: an unclear change
does not, unless ``max_unclear`` says how many are too many. A comparison of nothing breaks every policy.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from orchestrator import source
from orchestrator.compare import Change, Comparison, Moved, ratio
from orchestrator.complaints import complaints
from orchestrator.errors import ManifestError
from orchestrator.fields import Fields
from orchestrator.report.plain import gist
from orchestrator.statistics.differences import Verdict


class Ignore(Fields):
    """Tasks that no rule looks at."""

    task: str = Field(min_length=1, description="A task_id, where * and ? match as in file names.")
    reason: str = Field(min_length=1, description="Why.")


class Score(Fields):
    """The weighted score on matched tasks."""

    max_drop: float = Field(ge=0, lt=1, description="Relative drop allowed; 0.01 is one percent. The interval must lie beyond it.")


class Slower(Fields):
    """Tasks called slower."""

    max_tasks: int = Field(default=0, ge=0, description="How many are allowed.")
    by: float = Field(default=0.0, ge=0, lt=1, description="Relative loss of speedup from which a task counts.")
    moved: Literal["compiled step", "any"] = Field(
        default="compiled step", description="`any` counts tasks whose eager baseline became faster, too."
    )


class PerTask(Fields):
    """A cost of compiling, task by task."""

    max_ratio: float = Field(ge=1, description="New over base allowed.")
    min_increase: float = Field(default=0.0, ge=0, description="Smaller increases never count, in seconds or MiB.")


class Policy(Fields):
    """The rules. An absent one does not apply."""

    schema_version: Literal[1] = Field(description="The version of this format.")
    score: Score | None = Field(default=None, description="The score must not drop.")
    slower: Slower | None = Field(default=None, description="Tasks must not become slower.")
    newly_failing: int | None = Field(default=None, ge=0, description="How many tasks that passed may fail now.")
    missing: int | None = Field(default=None, ge=0, description="How many tasks of the base may be absent from the new run.")
    compile_s: PerTask | None = Field(default=None, description="Compile time per task.")
    compiled_peak_mib: PerTask | None = Field(default=None, description="Peak memory of the compiled step per task.")
    graph_breaks: int | None = Field(default=None, ge=0, description="How many more graph breaks a task may have.")
    max_unclear: int | None = Field(default=None, ge=0, description="How many unclear changes are allowed.")
    max_not_compared: int | None = Field(
        default=None, ge=0, description="How many tasks that passed in both may stay uncompared: other tasks, or without an interval."
    )
    same_environment: bool = Field(
        default=False, description="Refuse runs whose environments or tasks differ, but for nodes and serial numbers."
    )
    ignore: list[Ignore] = Field(default=[], description="Tasks that no rule but `score` looks at, with reasons.")


DEFAULT = "default"
DEFAULT_POLICY = Policy(
    schema_version=1,
    score=Score(max_drop=0.01),
    slower=Slower(by=0.05),
    newly_failing=0,
    missing=0,
    compile_s=PerTask(max_ratio=1.3, min_increase=10.0),
    compiled_peak_mib=PerTask(max_ratio=1.1, min_increase=256.0),
    graph_breaks=0,
)
"""What holds where no file is named."""


@dataclass(frozen=True, slots=True)
class Violation:
    """One broken rule: what it is about, what was found and what is allowed."""

    rule: str
    about: str
    found: str
    allowed: str


def load_policy(path: Path | str) -> Policy:
    """Read the policy at ``path``; ``default`` is the built-in one.

    Raises:
        ManifestError: with every problem, by line and column.
    """
    if path == DEFAULT:
        return DEFAULT_POLICY
    document, problems = source.read(path)
    if document.sound and not problems:
        try:
            return Policy.model_validate(document.data)
        except ValidationError as error:
            problems += [problem for _, problem in complaints(error, Policy, document)]
    raise ManifestError(problems)


def violations(found: Comparison, policy: Policy) -> tuple[Violation, ...]:
    """Every rule that ``found`` breaks, in the order of the policy's fields; that anything was compared at all comes first."""
    changes = [change for change in found.changes if not _ignored(change.task_id, policy)]
    return tuple(violation for rule in RULES for violation in rule(found, policy, changes))


def table(broken: tuple[Violation, ...]) -> str:
    """The violations as aligned text, for an error message."""
    head = Violation("rule", "what", "found", "allowed")
    columns = [[getattr(row, name) for row in (head, *broken)] for name in Violation.__slots__]
    widths = [max(map(len, column)) for column in columns]
    rows = (
        "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip() for cells in zip(*columns, strict=True)
    )
    return "\n".join(rows)


def _ignored(task_id: str, policy: Policy) -> bool:
    return any(fnmatch.fnmatchcase(task_id, entry.task) for entry in policy.ignore)


def _compared(found: Comparison, _: Policy, __: list[Change]) -> Iterator[Violation]:
    if not found.changes:
        yield Violation("compared", "all tasks", "no task could be compared", "one task or more")


def _score(found: Comparison, policy: Policy, _: list[Change]) -> Iterator[Violation]:
    if policy.score is None:
        return
    if not found.scores:
        yield Violation("score", "all tasks", "not defined on matched tasks", "a score")
    for score in found.scores:
        if score.high < 1 - policy.score.max_drop:
            ends = f"{score.ratio:.4f} of the base's [{score.low:.4f}, {score.high:.4f}]"
            yield Violation("score", f"{score.mode}, {score.backend}", ends, f"{1 - policy.score.max_drop:g} or more")


def _slower(_: Comparison, policy: Policy, changes: list[Change]) -> Iterator[Violation]:
    rule = policy.slower
    if rule is None:
        return
    slower = [
        change
        for change in changes
        if change.verdict is Verdict.SLOWER
        and change.judgement.change <= math.log1p(-rule.by)
        and (rule.moved == "any" or change.moved is not Moved.EAGER)
    ]
    if len(slower) > rule.max_tasks:
        for change in slower:
            allowed = f"{rule.max_tasks} tasks slower" + (f" by {100 * rule.by:g} % or more" if rule.by else "")
            yield Violation("slower", change.task_id, f"{change.ratio:.3f} of the base's speedup, q {change.judgement.q:.2g}", allowed)


def _newly_failing(found: Comparison, policy: Policy, _: list[Change]) -> Iterator[Violation]:
    rows = [row for row in found.matched.newly_failing if not _ignored(row.task_id, policy)]
    if policy.newly_failing is not None and len(rows) > policy.newly_failing:
        for row in rows:
            error = f": {gist(row.error)}" if row.error else ""
            yield Violation("newly_failing", row.task_id, f"{row.status}{error}", f"{policy.newly_failing} tasks")


def _missing(found: Comparison, policy: Policy, _: list[Change]) -> Iterator[Violation]:
    names = [name for name in found.matched.only_in_base if not _ignored(name, policy)]
    if policy.missing is not None and len(names) > policy.missing:
        for name in names:
            yield Violation("missing", name, "no row in the new run", f"{policy.missing} tasks")


def _costs(_: Comparison, policy: Policy, changes: list[Change]) -> Iterator[Violation]:
    for name, unit in (("compile_s", "s"), ("compiled_peak_mib", "MiB")):
        rule: PerTask | None = getattr(policy, name)
        if rule is None:
            continue
        for change in changes:
            base, new = getattr(change.base, name), getattr(change.new, name)
            share = ratio(new, base)
            if share is not None and share > rule.max_ratio and new - base > rule.min_increase:
                yield Violation(name, change.task_id, f"{base:.1f} to {new:.1f} {unit}, {share:.2f}x", f"{rule.max_ratio:g}x")


def _graph_breaks(_: Comparison, policy: Policy, changes: list[Change]) -> Iterator[Violation]:
    if policy.graph_breaks is None:
        return
    for change in changes:
        base, new = change.base.graph_breaks, change.new.graph_breaks
        if base is not None and new is not None and new - base > policy.graph_breaks:
            yield Violation("graph_breaks", change.task_id, f"{base} to {new}", f"{policy.graph_breaks} more")


def _unclear(_: Comparison, policy: Policy, changes: list[Change]) -> Iterator[Violation]:
    unclear = sum(change.verdict is Verdict.UNCLEAR for change in changes)
    if policy.max_unclear is not None and unclear > policy.max_unclear:
        yield Violation("max_unclear", "all tasks", f"{unclear} unclear; --confirm plans what settles them", f"{policy.max_unclear} tasks")


def _not_compared(found: Comparison, policy: Policy, _: list[Change]) -> Iterator[Violation]:
    reasons = [(name, "not the same task in both") for name in found.matched.unlike]
    reasons += [(name, "without an interval") for name in found.matched.without_interval]
    reasons = [(name, reason) for name, reason in reasons if not _ignored(name, policy)]
    if policy.max_not_compared is not None and len(reasons) > policy.max_not_compared:
        for name, reason in reasons:
            yield Violation("max_not_compared", name, reason, f"{policy.max_not_compared} tasks")


def _environment(found: Comparison, policy: Policy, _: list[Change]) -> Iterator[Violation]:
    if policy.same_environment:
        for name, base, new in found.environment:
            if name not in ("node", "gpu_uuid"):
                yield Violation("same_environment", name, new, base)


RULES = (_compared, _score, _slower, _newly_failing, _missing, _costs, _graph_breaks, _unclear, _not_compared, _environment)

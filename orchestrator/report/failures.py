"""Tasks that did not pass, grouped by what looks like one reason. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from orchestrator.report.answers import FailureGroup
from orchestrator.report.plain import signature
from orchestrator.report.rows import Row
from tasks.spec import Status

SEVEREST_LAST = (Status.SKIPPED, Status.UNSUPPORTED)  # these were expected; what nobody expected comes first


def failure_groups(rows: Sequence[Row]) -> tuple[FailureGroup, ...]:
    """One group per (status, phase, failure class, error signature): unexpected ones first, then the biggest."""
    groups: dict[tuple[str, str, str, str], list[Row]] = defaultdict(list)
    for row in rows:
        if not row.passed:
            groups[row.status, row.phase or "", row.failure_class or "", _signature(row)].append(row)
    made = [_group(key, members) for key, members in groups.items()]
    return tuple(sorted(made, key=lambda group: (group.status in SEVEREST_LAST, -len(group.tasks), group.tasks)))


def _signature(row: Row) -> str:
    if row.status == Status.PASS:
        return f"no usable speedup ({row.speedup})"
    return signature(row.error or "") or "no error text"


def _group(key: tuple[str, str, str, str], members: list[Row]) -> FailureGroup:
    status, phase, failure_class, text = key
    members = sorted(members, key=lambda row: row.task_id)
    example = next((row for row in members if row.log_tail), members[0])
    return FailureGroup(
        signature=text,
        status=status,
        phase=phase,
        failure_class=failure_class,
        tasks=tuple(row.task_id for row in members),
        example=example.task_id,
        error=example.error or "",
        log_tail=example.log_tail or "",
        log=example.log or "",
    )

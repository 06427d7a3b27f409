"""What the rows of a run ran on: devices, library versions, machines. One value per fact is one environment. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from orchestrator.report.answers import Fact
from orchestrator.report.rows import Row

INFORMATIVE = ("node", "gpu_uuid")
"""Facts that may differ within one mean: two nodes, or two GPUs of one model, are the same environment."""

OBSERVED = frozenset(
    {
        "load_average",
        "quality_reason",
        "cpu_pressure_share",
        "cpu_steal_share",
        "cpu_wait_share",
        "page_faults_per_s",
        "power_cap_share",
        "settling_s",
        "times_busy",
        "room_waited_s",
        "host_probe_us",
        "host_probe_us_max",
    }
    | {"sm_clock_mhz_min", "sm_clock_mhz_max", "gpu_temperature_c_max", "gpu_power_w_max"}
)
"""What a row's ``machine`` says of the time while it was measured. It differs from task to task and is no part of the environment."""


def environment_of(rows: Sequence[Row]) -> tuple[Fact, ...]:
    """Every fact that any row knows, with the number of rows per value, the most frequent first."""
    counts: dict[str, Counter[str]] = {}
    for row in rows:
        for name, value in _facts(row):
            counts.setdefault(name, Counter())[value] += 1
    return tuple(Fact(name, dict(values.most_common())) for name, values in counts.items())


def mixed(rows: Sequence[Row]) -> str:
    """The facts in which ``rows`` differ although they should not enter one mean then, in words; empty when there are none."""
    return "; ".join(f"{fact.name}: {_listed(fact)}" for fact in environment_of(rows) if len(fact.values) > 1 and _decides(fact.name))


def differences(base: Sequence[Row], new: Sequence[Row]) -> tuple[tuple[str, str, str], ...]:
    """(fact, value in base, value in new) for every fact known on both sides whose values differ; nodes and serial numbers included."""
    before, after = ({fact.name: fact for fact in environment_of(rows)} for rows in (base, new))
    return tuple(
        (name, " + ".join(sorted(before[name].values)), " + ".join(sorted(after[name].values)))
        for name in before
        if name in after and set(before[name].values) != set(after[name].values)
    )


def _facts(row: Row) -> Iterator[tuple[str, str]]:
    if row.device:
        yield "device", row.device
    yield from ((name, value) for name, value in row.versions.items() if value)
    yield from ((f"machine.{name}", str(value)) for name, value in row.machine.items() if value is not None and name not in OBSERVED)
    if row.node:
        yield "node", row.node
    if row.gpu_uuid:
        yield "gpu_uuid", row.gpu_uuid


def _decides(name: str) -> bool:
    """Whether two values of ``name`` may not enter one mean: devices (on the CPU that is its model) and library versions."""
    return name not in INFORMATIVE and not name.startswith("machine.")


def _listed(fact: Fact) -> str:
    return ", ".join(f"{value} ({count} tasks)" for value, count in fact.values.items())

"""``Answers`` as JSON-able data: floats at full precision, what JSON cannot say (NaN, infinity) as text."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from orchestrator.report.answers import PUBLISHED, Answers, Configuration, DtypeAnswer, Estimate, Rate, SuiteAnswer


def as_json(answers: Answers) -> dict[str, Any]:
    """The contract of ``sweep report --json``. The first configuration is the headline; ``low`` and ``high`` are measurement intervals."""
    first = answers.configurations[0] if answers.configurations else None
    return {
        "run_id": answers.run_id,
        "score": _score(first) if first else None,
        "suites": [_suite(suite) for suite in first.suites] if first else [],
        "pass_rate": _rate(answers.rate),
        "planned": answers.rate.planned,
        "passed": answers.rate.passed,
        "missing": list(answers.missing),
        "statuses": dict(answers.statuses),
        "configurations": [_configuration(configuration) for configuration in answers.configurations],
        "failures": plain_data(answers.failures),
        "graph_break_reasons": plain_data(answers.breaks),
        "quality": dict(answers.quality),
        "environment": {fact.name: dict(fact.values) for fact in answers.environment},
        "remarks": list(answers.remarks),
        "process_errors": plain_data(answers.process_errors),
        "processes_covered": answers.processes_covered,
        "process_spread": plain_data(answers.process_spread),
        "published": plain_data(PUBLISHED),
        "started": answers.started,
        "ended": answers.ended,
        "took_s": answers.took_s,
        "manifest_digest": answers.manifest_digest,
        "facts": dict(answers.facts),
        "tasks": [{**plain_data(row), "memory_ratio": row.memory_ratio} for row in answers.rows],
    }


def plain_data(value: Any) -> Any:
    """Dataclasses as dicts, tuples as lists, floats that are not finite as text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if dataclasses.is_dataclass(value):
        return {item.name: plain_data(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(name): plain_data(item) for name, item in value.items()}
    return [plain_data(item) for item in value] if isinstance(value, (tuple, list)) else value


def _score(configuration: Configuration) -> dict[str, Any]:
    return {
        "mode": configuration.mode,
        "backend": configuration.backend,
        "device": configuration.device,
        "weighted": configuration.score.value,
        **_ends(configuration.score),
        "why_not": configuration.score.why_not,
        "by_dtype": {answer.dtype: answer.geomean.value for answer in configuration.dtypes},
        "tasks": configuration.rate.timed,
        "unjudged": configuration.rate.unjudged,
        "weights": dict(configuration.weights),
        "variants": plain_data(configuration.variants),
    }


def _configuration(configuration: Configuration) -> dict[str, Any]:
    return {
        "mode": configuration.mode,
        "backend": configuration.backend,
        "device": configuration.device,
        "score": _score(configuration),
        "pass_rate": _rate(configuration.rate),
        "dtypes": [_dtype(answer) for answer in configuration.dtypes],
        "suites": [_suite(suite) for suite in configuration.suites],
    }


def _dtype(answer: DtypeAnswer) -> dict[str, Any]:
    return {"dtype": answer.dtype, "weight": answer.weight, **_group(answer)}


def _suite(answer: SuiteAnswer) -> dict[str, Any]:
    return {
        "suite": answer.suite,
        "dtype": answer.dtype,
        **_group(answer),
        "median_compile_s": answer.median_compile_s,
        "memory_ratio": answer.memory_ratio,
        "graph_breaks": answer.graph_breaks,
    }


def _group(answer: DtypeAnswer | SuiteAnswer) -> dict[str, Any]:
    return {
        "geomean": answer.geomean.value,
        **_ends(answer.geomean),
        "tasks": answer.rate.timed,
        "passed": answer.rate.passed,
        "planned": answer.rate.planned,
        "pass_rate": _rate(answer.rate),
        "spread": plain_data(answer.spread),
    }


def _ends(estimate: Estimate) -> dict[str, Any]:
    measurement = estimate.measurement
    return {
        "low": measurement.low if measurement else None,
        "high": measurement.high if measurement else None,
        "interval": "measurement",
        "generalisation": plain_data(estimate.generalisation),
    }


def _rate(rate: Rate) -> dict[str, Any]:
    counts = {name: getattr(rate, name) for name in ("passed", "planned", "failed", "skipped", "infra", "missing")}
    low, high = (rate.interval.low, rate.interval.high) if rate.interval else (None, None)
    upstream = {"passed": rate.upstream_passed, "counted": rate.upstream_counted}
    return {"value": rate.value, "low": low, "high": high, **counts, "unjudged": rate.unjudged, "upstream": upstream}

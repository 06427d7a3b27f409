"""The result of a task that was measured in several processes, from the results of those processes. Pure.

The numbers are those of all samples together, as ``tasks.estimator`` makes them. What was found out once per process is the worst of it
where it warns (accuracy, quality, memory, recompiles), and the first process's where it describes: that one compiled first, with the
caches as the attempt found them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from typing import Any

from tasks import estimator
from tasks.measure import worst_quality
from tasks.spec import Accuracy, Measurement, Samples, Scalar, Status, WorkerResult

_ACCURACY = (Accuracy.FAIL, Accuracy.SKIPPED, Accuracy.PASS)
_OF_THE_WORST = ("accuracy", "accuracy_reason", "accuracy_tensor", "accuracy_margin", "eager_rmse", "compiled_rmse", "reference")
_LARGEST = (
    *("neighbours", "empty_step_us", "eager_peak_mib", "compiled_peak_mib", "peak_mib"),
    *("graph_breaks", "recompiles", "fell_back"),
)


def merge(results: Sequence[WorkerResult]) -> WorkerResult:
    """One result of ``results``, which are of processes that all got as far as a measurement, in the order in which they ran.

    Raises:
        ValueError: one of them did not.
    """
    for number, result in enumerate(results, start=1):
        if not result.measured:
            raise ValueError(f"process {number} ended as {result.status}")
    samples = estimator.concatenate([result.samples for result in results])
    worst = min(results, key=lambda result: _badness(result.measurement))
    failed = next((result for result in results if result.status is not Status.PASS), None)
    remarks = _numbered([result.error for result in results])
    return replace(
        failed or results[-1],
        error="\n".join(remarks) or None,
        measurement=_measurement([result.measurement for result in results], worst.measurement, samples),
        samples=samples,
        blocks=estimator.concatenate([result.blocks for result in results]),
    )


def _measurement(parts: Sequence[Measurement], worst: Measurement, samples: Samples) -> Measurement:
    first = parts[0]
    summary = estimator.summarise(samples)
    known = {field.name for field in fields(Measurement)}
    found: dict[str, Any] = {field.name: getattr(summary, field.name) for field in fields(summary) if field.name in known}
    found |= {name: getattr(worst, name) for name in _OF_THE_WORST}
    found |= {name: _over(max, [getattr(part, name) for part in parts]) for name in _LARGEST}
    return replace(
        first,
        **found,
        quality=_over(worst_quality, [part.quality for part in parts]),
        deterministic=_over(min, [part.deterministic for part in parts]),
        machine=_machine([part.machine for part in parts]),
    )


def _badness(measurement: Measurement) -> tuple[int, float]:
    """Smaller is worse: the verdict, then what is left of the limit."""
    verdict = measurement.accuracy
    margin = measurement.accuracy_margin
    return len(_ACCURACY) if verdict is None else _ACCURACY.index(Accuracy(verdict)), 1.0 if margin is None else margin


def _machine(parts: Sequence[dict[str, Scalar]]) -> dict[str, Scalar]:
    """What the first process says; of what varies (``_min``, ``_max``, shares, rates) the extremes of all, and of waits the sum."""
    merged = dict(parts[0])
    extremes = {"_min": min, "_max": max, "_share": max, "_per_s": max, "_waited_s": sum}
    for name in merged:
        pick = next((pick for end, pick in extremes.items() if name.endswith(end)), None)
        if pick is not None:
            merged[name] = _over(pick, [part.get(name) for part in parts])
    reasons = _numbered([part.get("quality_reason") for part in parts])
    return merged | ({"quality_reason": "; ".join(reasons)} if reasons else {})


def _numbered(remarks: Iterable[Scalar]) -> list[str]:
    return [f"process {number}: {remark}" for number, remark in enumerate(remarks, start=1) if remark]


def _over(pick: Any, values: Iterable[Any]) -> Any:
    """``pick`` of the values that are known; None if none is."""
    known = [value for value in values if value is not None]
    return pick(known) if known else None

"""How much device memory a task is expected to need, at its peaks and between them: what was measured of its model, else an estimate.

What counts is the peak of an eager step, not of the whole attempt: the accuracy reference needs more for a moment, and falls back where
it does not fit (docs/method.md). The peaks of tasks on one device rarely coincide, so nothing is put on top but what CUDA itself takes.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

from orchestrator.model_table import ModelRow, known
from tasks.spec import TaskSpec

PEAKS = Path(__file__).with_name("peaks.json")
"""Peaks of an eager training step at the reference sweep's batch sizes, in MiB, as measured on a GPU: docs/data/models-h200.json."""

CONTEXT_MIB = 512.0
"""What CUDA and its libraries take for a process, beside torch's allocator."""

WORKER_MIB = 1024.0
"""The same with the kernels and workspaces of a task at work: 970 to 1130 MiB of small models on an H100, torch 2.11."""

HELD_BYTES_PER_PARAMETER = {"training": 12.0, "inference": 8.0}
"""Weights, the state that they are restored to, and gradients, in float32."""
HELD_BY_OPTIMIZER = {"none": 0.0, "sgd": 0.0, "adam": 16.0}
"""Two moments, and the state that they are restored to."""

PASSING = 0.5
"""Of the peak of a whole attempt: how much of it is kept free at any time."""

BYTES_PER_PARAMETER = {"training": 8.0, "inference": 4.0}
"""Weights in float32, and their gradients."""
OTHER_ACTIVATIONS_MIB = 4096.0
BYTES_PER_PIXEL, IMAGE_PARAMETERS, IMAGE_POWER = 2250.0, 25e6, 0.14
BYTES_PER_TOKEN, TEXT_PARAMETERS, TEXT_POWER = 1.2e6, 110e6, 0.52
UNSURE = 1.3
"""Models of one size differ by more than a factor of two; the lines through those of the reference sweep lie in the middle of them."""
AMP_ACTIVATIONS, INFERENCE_ACTIVATIONS = 0.7, 0.15

_SHAPE = re.compile(r"(\w+)\[([\d, ]+)\]")


def estimated_mib(spec: TaskSpec) -> float:
    """What a task needs that no run has recorded."""
    row = _rows().get((spec.model.suite, spec.model.name))
    weights_mib = BYTES_PER_PARAMETER[spec.mode] * (row.parameters or 0 if row else 0) / 2**20
    measured_mib = _measured_mib(spec, row)
    if measured_mib is None:
        return CONTEXT_MIB + weights_mib + UNSURE * _activations_mib(spec, row)
    return CONTEXT_MIB + measured_mib


def held_mib(spec: TaskSpec) -> float | None:
    """What a task holds all the time; None for a model of which nobody knows the number of parameters."""
    row = _rows().get((spec.model.suite, spec.model.name))
    if row is None or not row.parameters:
        return None
    each = HELD_BYTES_PER_PARAMETER[spec.mode] + (HELD_BY_OPTIMIZER[spec.optimizer] if spec.mode == "training" else 0.0)
    return WORKER_MIB + each * row.parameters / 2**20


def recorded_mib(eager_mib: float | None, compiled_mib: float | None, attempt_mib: float | None) -> float | None:
    """What a task needs whose peaks a run has recorded: those of its steps, and that of the whole attempt; None if none is known."""
    peaks = [peak for peak in (eager_mib, compiled_mib, PASSING * attempt_mib if attempt_mib else None) if peak]
    return max(peaks) + CONTEXT_MIB if peaks else None


def _measured_mib(spec: TaskSpec, row: ModelRow | None) -> float | None:
    """The measured peak, with its activations scaled to the task's batch size and mode; None for another model or other options."""
    dtypes = _peaks().get(f"{spec.model.suite}/{spec.model.name}")
    if dtypes is None or row is None or not row.batch_size or dict(row.options) != dict(spec.model.options):
        return None
    peak_mib = dtypes.get(spec.precision.dtype) or max(dtypes.values())
    weights = float(row.parameters or 0) / 2**20
    activations_mib = max(0.0, peak_mib - BYTES_PER_PARAMETER["training"] * weights)
    scale = (spec.model.batch_size or row.batch_size) / row.batch_size * (INFERENCE_ACTIVATIONS if spec.mode == "inference" else 1.0)
    kept_mib = min(peak_mib, BYTES_PER_PARAMETER["training"] * weights)
    return kept_mib * BYTES_PER_PARAMETER[spec.mode] / BYTES_PER_PARAMETER["training"] + scale * activations_mib


def _activations_mib(spec: TaskSpec, row: ModelRow | None) -> float:
    """By the first input, where that is a batch of images or of tokens, at the task's own batch size."""
    scale = (AMP_ACTIVATIONS if spec.precision.dtype == "amp" else 1.0) * (INFERENCE_ACTIVATIONS if spec.mode == "inference" else 1.0)
    shape = _first_shape(row.inputs if row else None)
    parameters = float((row.parameters if row else None) or 0)
    one_mib: float
    match shape:
        case ("float32", (batch, _, height, width)):
            one_mib = height * width * BYTES_PER_PIXEL * (parameters / IMAGE_PARAMETERS) ** IMAGE_POWER / 2**20
        case ("int64", (batch, length)):
            one_mib = length * BYTES_PER_TOKEN * (parameters / TEXT_PARAMETERS) ** TEXT_POWER / 2**20
        case _:
            return scale * OTHER_ACTIVATIONS_MIB
    return scale * (spec.model.batch_size or batch) * one_mib


def _first_shape(inputs: str | None) -> tuple[str, tuple[int, ...]] | None:
    """``float32[2, 3]`` of ``float32[2, 3], int64[2]``."""
    found = _SHAPE.match(inputs or "")
    return (found[1], tuple(int(size) for size in found[2].split(","))) if found else None


@cache
def _rows() -> dict[tuple[str, str], ModelRow]:
    return {(row.suite, row.name): row for row in known()}


@cache
def _peaks() -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = json.loads(PEAKS.read_text(encoding="utf-8"))
    return found

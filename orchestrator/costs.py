"""What a task is expected to take: seconds of its own, seconds of a device alone, and device memory.

What an earlier run recorded beats any estimate. Paused and waiting seconds are not in it: they depend on who else was there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from tasks.spec import Status, TaskSpec

if TYPE_CHECKING:
    from orchestrator.model_table import ModelRow

RUNS_LOOKED_AT = 20
"""How many runs back ``recorded`` looks."""

START_S = 10.0
COMPILE_S = {"huggingface": 45.0, "timm": 60.0, "torchbench": 40.0, "toy": 0.5}
OTHER_COMPILE_S = 60.0
SLOW_COMPILE_S = {
    "timm/coat_lite_mini": 362.0,
    "timm/fbnetv3_b": 160.0,
    "timm/ghostnet_100": 226.0,
    "timm/hrnet_w18": 237.0,
    "timm/mobilevit_s": 182.0,
    "timm/rexnet_100": 271.0,
    "timm/twins_pcpvt_base": 431.0,
    "torchbench/densenet121": 77.0,
    "torchbench/hf_T5_large": 163.0,
    "torchbench/resnet152": 71.0,
    "torchbench/timm_efficientdet": 168.0,
    "torchbench/yolov3": 410.0,
}
"""Cold compile seconds of a training step that were published for an A100 in 2022 and 2023: old, but the order is what counts."""
INFERENCE_SHARE = 0.4
USUAL_TIMING_S = {"cuda": 4.0, "cpu": 10.0}

USUAL_PARAMETERS = 50e6
SIZE_POWER = 0.25
SIZE_BOUNDS = (0.5, 2.0)
"""A larger model tends to have more layers, and layers are what compiling takes time for; sixteen times the parameters count twice."""

BASE_MIB = 2048.0
"""CUDA and its libraries, work spaces, fragments."""
BYTES_PER_PARAMETER = {"training": 24.0, "inference": 12.0}
"""Weights and gradients in float32, and the copies that the accuracy check keeps of them."""
OTHER_ACTIVATIONS_MIB = 4096.0
BYTES_PER_PIXEL, IMAGE_PARAMETERS, IMAGE_POWER = 2000.0, 25e6, 0.4
BYTES_PER_TOKEN, TEXT_PARAMETERS, TEXT_POWER = 1.2e6, 110e6, 0.5
AMP_ACTIVATIONS, INFERENCE_ACTIVATIONS = 0.6, 0.15
"""Activations that a training step in float32 keeps for its backward pass: a ResNet-50's and a BERT's, and how larger models differ."""

RECORDED_MARGIN = 1.15
CONTEXT_MIB = 1024.0
"""Beyond a recorded peak of torch's allocator: fragments, and what CUDA and its libraries take for a process."""

_SHAPE = re.compile(r"(\w+)\[([\d, ]+)\]")
_SHARED_COLUMNS = ("start_s", "build_s", "compile_phase_s", "write_s")
_EXCLUSIVE_COLUMNS = ("eager_s", "verify_s", "time_s")
_COLUMNS = ("task_id", "status", "started", "ended", "eager_peak_mib", "compiled_peak_mib", *_SHARED_COLUMNS, *_EXCLUSIVE_COLUMNS)


@dataclass(frozen=True, slots=True)
class Cost:
    """One attempt. ``shared_s``: while neighbours may run; ``exclusive_s``: alone on the device; ``peak_mib``: of device memory."""

    shared_s: float
    exclusive_s: float = 0.0
    peak_mib: float | None = None

    @property
    def total_s(self) -> float:
        return self.shared_s + self.exclusive_s


def recorded(root: str) -> dict[str, Cost]:
    """Costs by ``task_id``, each from the newest attempt that ran, over the newest ``RUNS_LOOKED_AT`` runs of the store at ``root``."""
    from orchestrator.store import Store

    store = Store(root)
    costs: dict[str, Cost] = {}
    for record in [record for record in store.runs() if not record.aa][: -RUNS_LOOKED_AT - 1 : -1]:
        for row in store.resolve(record.run_id).rows(_COLUMNS).to_pylist():
            ran = row["status"] not in {Status.SKIPPED, Status.INFRA_ERROR}
            if ran and row["task_id"] not in costs and row["started"] and row["ended"]:
                costs[row["task_id"]] = _of_row(row)
    return costs


def estimated(spec: TaskSpec) -> Cost:
    """Rough: only the order of tasks, and how many of them share a device, rest on it."""
    if spec.model.suite == "toy":
        return Cost(spec.measure.processes * COMPILE_S["toy"] * _mode_share(spec))
    row = _rows().get((spec.model.suite, spec.model.name))
    parameters = row.parameters if row else None
    usual_s = COMPILE_S.get(spec.model.suite, OTHER_COMPILE_S) * _size_factor(parameters)
    compile_s = SLOW_COMPILE_S.get(f"{spec.model.suite}/{spec.model.name}", usual_s)
    timing_s = min(spec.measure.max_time_s, USUAL_TIMING_S[spec.resources.device])
    peak_mib = BASE_MIB + BYTES_PER_PARAMETER[spec.mode] * (parameters or 0) / 2**20 + _activations_mib(spec, row)
    return Cost(spec.measure.processes * (START_S + _mode_share(spec) * compile_s), spec.measure.processes * timing_s, peak_mib)


def _of_row(row: Mapping[str, Any]) -> Cost:
    shared_s, exclusive_s = (sum(row[name] or 0.0 for name in names) for names in (_SHARED_COLUMNS, _EXCLUSIVE_COLUMNS))
    if not shared_s + exclusive_s:  # run without a process of its own
        shared_s = (row["ended"] - row["started"]).total_seconds()
    peaks = [row[name] for name in ("eager_peak_mib", "compiled_peak_mib") if row[name]]
    return Cost(shared_s, exclusive_s, RECORDED_MARGIN * max(peaks) + CONTEXT_MIB if peaks else None)


def _mode_share(spec: TaskSpec) -> float:
    return 1.0 if spec.mode == "training" else INFERENCE_SHARE


def _size_factor(parameters: int | None) -> float:
    low, high = SIZE_BOUNDS
    return min(high, max(low, (parameters / USUAL_PARAMETERS) ** SIZE_POWER)) if parameters else 1.0


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
    from orchestrator.model_table import known

    return {(row.suite, row.name): row for row in known()}

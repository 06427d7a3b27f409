"""Manifest -> ordered tasks, each complete for its worker, with its digest, its cost estimate and why it will run. Pure: no I/O, no clock.

Order: tasks that will run first, the longest expected first, ties by ``task_id``; excluded ones last. Long tasks that start late are what
leaves a cluster idle at the end. A recorded duration beats the estimate.

Digest: over everything that can move a task's number, and nothing else. Deadlines, retries, weights, notes and resources other than the
threads change no number; neither does what a value is called or whether a default was spelled out.
"""

from __future__ import annotations

import fnmatch
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from orchestrator import catalogue
from orchestrator.fields import Exclude, Manifest, Model
from orchestrator.manifest import DIGEST_LENGTH, LoadedManifest
from tasks import PROTOCOL_VERSION
from tasks.spec import (
    AccuracySpec,
    CompileSpec,
    DeadlineSpec,
    MeasureSpec,
    ModelSpec,
    PrecisionSpec,
    ResourceSpec,
    TaskSpec,
    encode,
)

DEFAULT_CPUS = {"cuda": 1.0, "cpu": 2.0}
"""Cores per task where the manifest names none: compiling for CUDA keeps one busy, a CPU model is timed on two threads."""

AUTOCAST = {"cuda": "float16", "cpu": "bfloat16"}
"""What amp casts to where the manifest names nothing."""

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
USUAL_TIMING_S = 10.0


class Reason(StrEnum):
    """Why a task is in the plan as it is."""

    NEW = "new"  # no earlier run has decided it
    CHANGED = "changed"  # one has, but something that can move the number is different now
    DONE = "done"  # one has, with the same digest
    EXCLUDED = "excluded"  # the manifest says so; ``skip`` has its words


@dataclass(frozen=True, slots=True)
class PlannedTask:
    """One task of a plan. ``cost_s`` is the wall time expected of one attempt, or that of an earlier run."""

    spec: TaskSpec
    reason: Reason
    skip: str | None
    cost_s: float
    note: str | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """The tasks of a manifest on a kind of device, in the order in which they should start."""

    tasks: tuple[PlannedTask, ...]
    device: str
    manifest_digest: str

    @property
    def to_run(self) -> tuple[PlannedTask, ...]:
        """The tasks that are not excluded."""
        return tuple(task for task in self.tasks if task.skip is None)


def plan_tasks(
    loaded: LoadedManifest,
    device: str,
    durations: Mapping[str, float] | None = None,
    finished: Mapping[str, str] | None = None,
    sharing: int | None = None,
    aa: bool = False,
) -> Plan:
    """Every task of the manifest, on ``device`` ("cpu" or "cuda").

    Args:
        loaded: a manifest without problems.
        device: what ``execution.device`` comes to on the cluster in question.
        durations: seconds that tasks took earlier, by ``task_id``.
        finished: digests of tasks that an earlier run has decided, by ``task_id``; only ``reason`` depends on it.
        sharing: tasks per GPU, where ``execution.sharing`` is ``auto`` and somebody has worked it out.
        aa: measure each arm against itself.
    """
    manifest = loaded.manifest
    shared = sharing or (manifest.execution.sharing if isinstance(manifest.execution.sharing, int) else 1)
    tasks: list[PlannedTask] = []
    for suite, models in manifest.suites.items():
        for model, (dtype, mode, backend) in itertools.product(models, _combinations(manifest)):
            if dtype in (model.dtypes or (dtype,)):
                spec = _spec(loaded, suite, model, dtype, mode, backend, device, shared, aa)
                skip = _exclusion(manifest.exclude, suite, model.name, dtype, mode, backend)
                cost_s = (durations or {}).get(spec.task_id, _estimate_s(spec))
                tasks.append(PlannedTask(spec, _reason(spec, skip, finished or {}), skip, cost_s, model.note))
    tasks.sort(key=lambda task: (task.skip is not None, -task.cost_s, task.spec.task_id))
    return Plan(tuple(tasks), device, loaded.digest)


def digest(spec: TaskSpec) -> str:
    """The identity of a measurement: equal for two tasks if and only if their numbers may be compared or one reused for the other."""
    resources = spec.resources
    cpus = max(1, int(resources.num_cpus))
    identity = {
        "protocol": PROTOCOL_VERSION,
        "model": encode(spec.model),
        "mode": spec.mode,
        "precision": encode(spec.precision),
        "compile": encode(spec.compile),
        "measure": encode(spec.measure),
        "accuracy": encode(spec.accuracy),
        "optimizer": spec.optimizer,
        "cache": spec.cache,
        "seed": spec.seed,
        "device": resources.device,
        "threads": resources.threads or cpus,
        "compile_threads": resources.compile_threads or cpus,
    } | ({"aa": True} if spec.aa else {})
    return hashlib.sha256(json.dumps(identity, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:DIGEST_LENGTH]


def _combinations(manifest: Manifest) -> Iterator[tuple[str, str, str]]:
    yield from itertools.product(manifest.matrix.dtype, manifest.matrix.mode, manifest.matrix.backend)


def _spec(
    loaded: LoadedManifest, suite: str, model: Model, dtype: str, mode: str, backend: str, device: str, sharing: int, aa: bool
) -> TaskSpec:
    manifest = loaded.manifest
    values: dict[str, Any] = {
        "task_id": f"{suite}/{model.name}/{dtype}/{mode}/{backend}",
        "model": _model_spec(suite, model, mode),
        "mode": mode,
        "backend": backend,
        "precision": _precision(manifest, dtype, device),
        "compile": CompileSpec(**manifest.backends[backend].model_dump()),
        "measure": MeasureSpec(**_layered(manifest.measurement, model.measurement)),
        "accuracy": _accuracy(manifest, model, mode),
        "deadlines": DeadlineSpec(**_layered(manifest.deadlines, model.deadlines)),
        "resources": _resources(manifest, model, device, sharing),
        "optimizer": (model.optimizer or manifest.training.optimizer) if mode == "training" else "none",
        "cache": manifest.execution.cache,
        "seed": manifest.seed,
        "aa": aa,
        "manifest_digest": loaded.digest,
    }
    return TaskSpec(**values, digest=digest(TaskSpec(**values)))


def _model_spec(suite: str, model: Model, mode: str) -> ModelSpec:
    batch_size = model.eval_batch_size if mode == "inference" and model.eval_batch_size else model.batch_size
    if batch_size is None and model.factory is None:
        batch_size = catalogue.default_batch_size(suite, model.name, mode)
    return ModelSpec(suite, model.name, batch_size, model.factory, dict(model.options), model.source)


def _precision(manifest: Manifest, dtype: str, device: str) -> PrecisionSpec:
    autocast = (manifest.precision.autocast_dtype or AUTOCAST[device]) if dtype == "amp" else None
    return PrecisionSpec(dtype, manifest.precision.tf32, autocast)


def _accuracy(manifest: Manifest, model: Model, mode: str) -> AccuracySpec:
    own = getattr(model.tolerance, mode) if model.tolerance else None
    fields = manifest.accuracy.model_dump()
    return AccuracySpec(**fields | ({} if own is None else {"tolerance": own}))


def _resources(manifest: Manifest, model: Model, device: str, sharing: int) -> ResourceSpec:
    execution = manifest.execution
    cuda = device == "cuda"
    return ResourceSpec(
        device=device,
        num_cpus=model.num_cpus or execution.num_cpus or DEFAULT_CPUS[device],
        num_gpus=execution.num_gpus / sharing if cuda else 0.0,
        accelerator=execution.accelerator if cuda else None,
        memory_mib=execution.memory_mib,
        threads=execution.threads,
        compile_threads=execution.compile_threads,
        isolation=execution.isolation,
    )


def _layered(settings: Any, own: Any) -> dict[str, Any]:
    below: dict[str, Any] = settings.model_dump()
    return below | (own.model_dump(exclude_unset=True) if own else {})


def _exclusion(excludes: list[Exclude], suite: str, name: str, dtype: str, mode: str, backend: str) -> str | None:
    for exclude in excludes:
        here = (exclude.dtype in (None, dtype), exclude.mode in (None, mode), exclude.backend in (None, backend))
        if all(here) and fnmatch.fnmatchcase(f"{suite}/{name}", exclude.model):
            return exclude.reason
    return None


def _reason(spec: TaskSpec, skip: str | None, finished: Mapping[str, str]) -> Reason:
    if skip is not None:
        return Reason.EXCLUDED
    if spec.task_id not in finished:
        return Reason.NEW
    return Reason.DONE if finished[spec.task_id] == spec.digest else Reason.CHANGED


def _estimate_s(spec: TaskSpec) -> float:
    """Seconds of one attempt: start, then compile and time in each process. Rough; only the order of tasks rests on it."""
    usual_s = COMPILE_S.get(spec.model.suite, OTHER_COMPILE_S)
    compile_s = SLOW_COMPILE_S.get(f"{spec.model.suite}/{spec.model.name}", usual_s)
    share = 1.0 if spec.mode == "training" else INFERENCE_SHARE
    start_s = 0.0 if spec.model.suite == "toy" else START_S
    timing_s = 0.0 if spec.model.suite == "toy" else min(spec.measure.max_time_s, USUAL_TIMING_S)
    return spec.measure.processes * (start_s + share * compile_s + timing_s)

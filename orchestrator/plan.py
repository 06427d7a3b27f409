"""Manifest -> ordered tasks, each complete for its worker, with its digest, its cost estimate and why it will run. Pure: no I/O, no clock.

Order: tasks that will run first, the longest expected first, ties by ``task_id``; excluded ones last. Long tasks that start late are what
leaves a cluster idle at the end. A recorded cost beats the estimate. They start ``side_by_side``: where it is memory that decides how many
fit beside each other, large and small ones are mixed.

Digest: over everything that can move a task's number, and nothing else. Deadlines, retries, weights, notes and resources other than the
threads change no number; neither does what a value is called or whether a default was spelled out.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from orchestrator import catalogue
from orchestrator.costs import Cost, estimated
from orchestrator.fields import Exclude, Manifest, Model
from orchestrator.manifest import DIGEST_LENGTH, LoadedManifest
from orchestrator.memory import held_mib
from orchestrator.sharing import Sharing
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


class Reason(StrEnum):
    """Why a task is in the plan as it is."""

    NEW = "new"  # no earlier run has decided it
    CHANGED = "changed"  # one has, but something that can move the number is different now
    DONE = "done"  # one has, with the same digest
    EXCLUDED = "excluded"  # the manifest says so; ``skip`` has its words


@dataclass(frozen=True, slots=True)
class PlannedTask:
    """One task of a plan. ``cost`` is what one attempt is expected to take, or what an earlier one took."""

    spec: TaskSpec
    reason: Reason
    skip: str | None
    cost: Cost
    note: str | None = None

    @property
    def cost_s(self) -> float:
        """Seconds of an attempt that nobody disturbs."""
        return self.cost.total_s


@dataclass(frozen=True, slots=True)
class Plan:
    """The tasks of a manifest on a kind of device, the longest first."""

    tasks: tuple[PlannedTask, ...]
    device: str
    manifest_digest: str

    @property
    def to_run(self) -> tuple[PlannedTask, ...]:
        """The tasks that are not excluded."""
        return tuple(task for task in self.tasks if task.skip is None)

    @property
    def left(self) -> tuple[PlannedTask, ...]:
        """Of those, the ones that no earlier run has decided as they are now: what a resume would run."""
        return tuple(task for task in self.to_run if task.reason is not Reason.DONE)


def plan_tasks(
    loaded: LoadedManifest,
    device: str,
    costs: Mapping[str, Cost] | None = None,
    finished: Mapping[str, str] | None = None,
    sharing: Sharing | None = None,
    aa: bool = False,
    devices: int = 1,
    per_node: int = 1,
) -> Plan:
    """Every task of the manifest, on ``device`` ("cpu" or "cuda").

    Args:
        loaded: a manifest without problems.
        device: what ``execution.device`` comes to on the cluster in question.
        costs: what a process of each task took earlier, by ``task_id``.
        finished: digests of tasks that an earlier run has decided, by ``task_id``: ``reason`` says so, and they count for no helpers.
        sharing: as worked out for the cluster; None: the manifest's number, and a device for each task where that is ``auto``.
        aa: measure each arm against itself.
        devices: how many of them the cluster has; only which tasks get ``execution.compile_helpers`` depends on it.
        per_node: how many of them a node has, at the most; only what tasks are estimated to take depends on it.
    """
    manifest = loaded.manifest
    wanted = manifest.execution.sharing
    shared = sharing or Sharing(wanted if isinstance(wanted, int) else 1)
    tasks: list[PlannedTask] = []
    for suite, models in manifest.suites.items():
        for model, (dtype, mode, backend) in itertools.product(models, _combinations(manifest)):
            if dtype in (model.dtypes or (dtype,)):
                spec = _spec(loaded, suite, model, dtype, mode, backend, device, aa)
                skip = _exclusion(manifest.exclude, suite, model.name, dtype, mode, backend)
                cost = _cost(spec, costs or {}, per_node)
                spec = _with_share(spec, shared, cost.peak_mib)
                tasks.append(PlannedTask(spec, _reason(spec, skip, finished or {}), skip, cost, model.note))
    tasks.sort(key=lambda task: (task.skip is not None, *_longest_first(task)))
    return _with_helpers(Plan(tuple(tasks), device, loaded.digest), manifest.execution.compile_helpers, shared.tasks * devices)


def _with_helpers(plan: Plan, helpers: int, places: int) -> Plan:
    """Let ``helpers`` more processes compile the tasks that take longer than a place has to do on average: all others end sooner.

    Of the tasks that are left; where none is, of all that would run again.
    """
    left = plan.left or plan.to_run
    average_s = sum(task.cost_s for task in left) / max(1, places)
    helped = {task.spec.task_id for task in left if helpers and task.cost_s > average_s}
    with_them = (
        dataclasses.replace(task, spec=_with(task.spec, compile_helpers=helpers)) if task.spec.task_id in helped else task
        for task in plan.tasks
    )
    return dataclasses.replace(plan, tasks=tuple(with_them))


def _with(spec: TaskSpec, **resources: Any) -> TaskSpec:
    return dataclasses.replace(spec, resources=dataclasses.replace(spec.resources, **resources))


def side_by_side(tasks: Iterable[PlannedTask], sharing: Sharing, devices: int = 1, per_node: int = 1) -> list[PlannedTask]:
    """``tasks`` in the order in which they should start: the longest first, and beside large ones small ones.

    Where shares of a device are of its memory alone, large tasks one after the other would fill it with half of its places empty. So the
    first ``sharing.tasks`` are the longest that fit on it together. Of the others the longest comes next that leaves the memory asked for,
    times seconds, at what the places have of it, ``1 / tasks`` each; where none does, the one that asks for the least.

    Ray fills a node's first GPU, of ``per_node``, before it takes the second. Where tasks have helpers, which need cores of their GPU's,
    the longest are dealt out over them.
    """
    left = sorted(tasks, key=_longest_first)
    if sharing.cores_decide:
        return [*_fill(left, sharing.tasks), *_balance(left, sharing.tasks)]
    if any(task.spec.resources.compile_helpers for task in left):
        first = left[: sharing.tasks * devices]
        return [*_dealt(first, max(1, devices // per_node), per_node), *left[len(first) :]]
    return left


def _dealt(first: list[PlannedTask], nodes: int, per_node: int) -> list[PlannedTask]:
    """``first``, one for each place, so that each GPU of a node gets every ``per_node``-th of those that the node gets."""
    ranks = sorted(range(len(first)), key=lambda rank: (rank // nodes % per_node, rank))
    return [first[rank] for rank in ranks]


def _fill(left: list[PlannedTask], places: int) -> Iterator[PlannedTask]:
    """Take from ``left`` the longest that fit on a device together, one for each place."""
    free = 1.0
    for place in range(min(places, len(left))):
        lightest = sorted(map(_share, left))[: places - place]  # what the places to be filled ask for at the least
        fitting = (task for task in left if max(0.0, _share(task) - lightest[-1]) <= free - sum(lightest))
        task = next(fitting, None) or min(left, key=_share)
        free -= _share(task)
        left.remove(task)
        yield task


def _balance(left: list[PlannedTask], places: int) -> Iterator[PlannedTask]:
    """Take all of ``left``: always the longest for which those before it have left memory over."""
    credit_s = 0.0
    while left:
        task = next((task for task in left if _excess_s(task, places) <= credit_s), None) or min(left, key=_share)
        credit_s -= _excess_s(task, places)
        left.remove(task)
        yield task


def _excess_s(task: PlannedTask, places: int) -> float:
    """How much more of a device's memory, times seconds, a task asks for than its place has of it."""
    return task.cost_s * (_share(task) - 1 / places)


def _share(task: PlannedTask) -> float:
    return task.spec.resources.num_gpus


def _longest_first(task: PlannedTask) -> tuple[float, str]:
    return -task.cost_s, task.spec.task_id


def digest(spec: TaskSpec) -> str:
    """The identity of a measurement in short: equal for two tasks if and only if their numbers may be compared or one reused."""
    return hashlib.sha256(json.dumps(identity(spec), sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:DIGEST_LENGTH]


def identity(spec: TaskSpec) -> dict[str, Any]:
    """Everything that can move the number of ``spec``."""
    resources = spec.resources
    cpus = max(1, int(resources.num_cpus))
    return {
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


def _combinations(manifest: Manifest) -> Iterator[tuple[str, str, str]]:
    yield from itertools.product(manifest.matrix.dtype, manifest.matrix.mode, manifest.matrix.backend)


def _spec(loaded: LoadedManifest, suite: str, model: Model, dtype: str, mode: str, backend: str, device: str, aa: bool) -> TaskSpec:
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
        "resources": _resources(manifest, model, device),
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


def _resources(manifest: Manifest, model: Model, device: str) -> ResourceSpec:
    execution = manifest.execution
    cuda = device == "cuda"
    return ResourceSpec(
        device=device,
        num_cpus=model.num_cpus or execution.num_cpus or DEFAULT_CPUS[device],
        num_gpus=float(execution.num_gpus) if cuda else 0.0,
        accelerator=execution.accelerator if cuda else None,
        labels=tuple(sorted(execution.labels.items())),
        memory_mib=execution.memory_mib,
        threads=execution.threads,
        compile_threads=execution.compile_threads,
        isolation=execution.isolation,
    )


def _with_share(spec: TaskSpec, sharing: Sharing, peak_mib: float | None) -> TaskSpec:
    """``spec`` asking for its share of a device. Its threads stay what they would be without neighbours: they move its number."""
    own = spec.resources
    if sharing.tasks == 1:
        return spec
    cpus = max(1, int(own.num_cpus))
    return _with(
        spec,
        num_cpus=sharing.cpus(own.num_cpus),
        num_gpus=sharing.gpu_share(peak_mib, held_mib(spec)) if own.num_gpus == 1 else own.num_gpus,
        peak_mib=peak_mib,
        threads=own.threads or cpus,
        compile_threads=own.compile_threads or cpus,
    )


def _cost(spec: TaskSpec, recorded: Mapping[str, Cost], per_node: int) -> Cost:
    """The recorded cost, of as many processes as the task has; where it lacks the memory, that of the estimate."""
    estimate = estimated(spec, per_node)
    found = recorded.get(spec.task_id, estimate).times(spec.measure.processes)
    return dataclasses.replace(found, peak_mib=found.peak_mib or estimate.peak_mib)


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

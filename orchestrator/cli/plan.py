"""``sweep plan``: what would run, in which order and why. Nothing is started, and neither torch nor Ray is imported."""

from __future__ import annotations

import json as jsonlib
import os
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from orchestrator.costs import Cost
    from orchestrator.manifest import LoadedManifest
    from orchestrator.plan import Plan, PlannedTask
    from orchestrator.sharing import Machine, Sharing
    from orchestrator.simulate import Fleet, Forecast

NVIDIA_DRIVER = Path("/dev/nvidiactl")
DRIVER_GPUS = Path("/proc/driver/nvidia/gpus")
DEFAULT_GPU_GIB = 80.0
DEFAULT_CPUS_PER_GPU = 16.0
"""Of a fleet that is not this machine, where nothing is said: what clouds put beside a data centre GPU, roughly."""

EPILOG = (
    "Examples: sweep plan manifests/pt2.yaml | sweep plan manifests/smoke.yaml --results results --json | "
    "sweep plan manifests/pt2.yaml --gpus 8 --cpus-per-gpu 24 --price 3.50"
)


def plan(
    manifest: Annotated[Path, typer.Argument(help="The manifest. " + EPILOG)],
    results: Annotated[str | None, typer.Option(help="A results store: say what it has already, and use the times recorded there.")] = None,
    carry: Annotated[
        str | None, typer.Option(help="With --results: done is what passed in this run, as for `sweep run --carry` on nodes like its own.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; without it the manifest's, where auto looks for a GPU here.")] = None,
    gpus: Annotated[int | None, typer.Option(min=1, help="Forecast for so many GPUs instead of this machine.")] = None,
    cpus_per_gpu: Annotated[float, typer.Option(min=1, help="Cores for each of them.")] = DEFAULT_CPUS_PER_GPU,
    gpu_memory: Annotated[float, typer.Option(min=1, help="Memory of each of them, in GiB.")] = DEFAULT_GPU_GIB,
    price: Annotated[float | None, typer.Option(min=0, help="What an hour of a GPU costs; of the node, on the CPU.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
    expand: Annotated[bool, typer.Option("--expand", help="Print the manifest instead, with everything resolved.")] = False,
) -> ExitCode:
    """Show every task of a manifest: why it would run or not, about how long it takes, and what the whole comes to on a fleet."""
    from orchestrator import source
    from orchestrator.manifest import expanded, load_manifest
    from orchestrator.plan import plan_tasks, side_by_side
    from orchestrator.sharing import work_out
    from orchestrator.simulate import forecast

    loaded = load_manifest(manifest)
    if expand:
        sys.stdout.write(source.dump(expanded(loaded)))
        return ExitCode.PASSED
    execution = loaded.manifest.execution
    kind = "cuda" if gpus and device is None else _device(device, execution.device)
    there = _there(kind, gpus, cpus_per_gpu, gpu_memory)
    finished, costs = _from_store(results, loaded.manifest.name, kind, there.gpu_name, carry)
    unshared = plan_tasks(loaded, kind, costs, finished)
    sharing = work_out(execution.sharing, kind, [there.machine], execution.num_cpus, len(unshared.left or unshared.to_run))
    fleet = _fleet(kind, there.machine)
    planned = plan_tasks(loaded, kind, costs, finished, sharing, devices=fleet.devices, per_node=fleet.per_node)
    left = side_by_side(planned.left or planned.to_run, sharing, fleet.devices, fleet.per_node)
    expected = forecast(left, fleet, execution.max_in_flight)
    if json:
        data = _as_data(planned, loaded.manifest.name) | {"forecast": _forecast_as_data(expected, sharing, there, price)}
        data["environments"] = list(loaded.manifest.environments)
        sys.stdout.write(jsonlib.dumps(data, indent=2) + "\n")
    else:
        lines = [*_as_text(planned), *_forecast_as_text(planned, expected, sharing, there, price), *_environments(loaded)]
        sys.stdout.writelines(f"{line}\n" for line in lines)
    return ExitCode.PASSED


@dataclass(frozen=True, slots=True)
class _There:
    """The machine that the forecast is for. ``assumed``: why it is neither this one nor one that was asked for."""

    machine: Machine
    gpu_name: str | None = None
    assumed: str | None = None


def _device(wanted: str | None, manifest_device: str) -> str:
    device = wanted or manifest_device
    if device == "auto":
        return "cuda" if NVIDIA_DRIVER.exists() else "cpu"
    if device not in ("cpu", "cuda"):
        raise UsageError(f"--device {device}: must be cpu or cuda")
    return device


def _there(device: str, gpus: int | None, cpus_per_gpu: float, gpu_memory_gib: float) -> _There:
    """This machine; or one with the GPUs that were asked for, or with a single one where there is none."""
    from orchestrator.sharing import Machine

    here = _here()
    if device == "cpu" or (gpus is None and here.machine.gpus):
        return here
    count = gpus or 1
    machine = Machine(count * cpus_per_gpu, count, None, int(gpu_memory_gib * 1024))
    return _There(machine, None, None if gpus else "there is no GPU here")


def _here() -> _There:
    from orchestrator.sharing import Machine

    cores, memory_mib = len(os.sched_getaffinity(0)), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**20
    if not NVIDIA_DRIVER.exists():
        return _There(Machine(cores, 0, memory_mib))
    from tasks.probe import probe

    found = probe().gpus
    count = len(found) or len(list(DRIVER_GPUS.glob("*")))
    smallest = min((gpu.memory_mib for gpu in found), default=None)
    return _There(Machine(cores, count, memory_mib, smallest), found[0].name if found else None)


def _fleet(device: str, machine: Machine) -> Fleet:
    from orchestrator.simulate import Fleet

    return Fleet(machine.gpus, machine.cores / machine.gpus, machine.gpus) if device == "cuda" else Fleet(1, machine.cores)


def _from_store(
    results: str | None, name: str, kind: str, gpu_name: str | None, carry: str | None
) -> tuple[dict[str, str], dict[str, Cost]]:
    if results is None:
        if carry:
            raise UsageError("--carry names a run of a results store: add --results")
        return {}, {}
    from orchestrator.carry import passes
    from orchestrator.costs import recorded
    from orchestrator.store import Store, finished_tasks

    finished = passes(Store(results).resolve(carry)) if carry else finished_tasks(results, name)
    return finished, recorded(results, kind, gpu_name)


def _as_data(planned: Plan, name: str) -> dict[str, Any]:
    return {
        "manifest": name,
        "manifest_digest": planned.manifest_digest,
        "device": planned.device,
        "planned": len(planned.tasks),
        "reasons": dict(_counts(planned.tasks)),
        "cost_s": sum(task.cost_s for task in planned.left),
        "tasks": [_task_as_data(task) for task in planned.tasks],
    }


def _task_as_data(task: PlannedTask) -> dict[str, Any]:
    from tasks.spec import encode

    spec = encode(task.spec)
    model = spec["model"]
    short = {"task_id": task.spec.task_id, "suite": model["suite"], "model": model["name"], "dtype": task.spec.precision.dtype}
    why = {"reason": task.reason.value, "skip": task.skip, "cost_s": task.cost_s, "note": task.note}
    return short | {"mode": task.spec.mode, "backend": task.spec.backend, "digest": task.spec.digest} | why | {"spec": spec}


def _as_text(planned: Plan) -> Iterable[str]:
    width = max(len(task.spec.task_id) for task in planned.tasks)
    yield f"{'task':{width}}  {'batch':>6}  {'about':>7}  why"
    for task in planned.tasks:
        batch = task.spec.model.batch_size or "-"
        why = task.reason.value if task.skip is None else f"{task.reason.value}: {task.skip}"
        yield f"{task.spec.task_id:{width}}  {batch:>6}  {task.cost_s:6.0f}s  {why}"
    left_h = sum(task.cost_s for task in planned.left) / 3600
    counted = ", ".join(f"{count} {reason}" for reason, count in _counts(planned.tasks))
    yield f"{len(planned.tasks)} tasks on {planned.device} ({counted}); what is left takes about {left_h:.1f} h, one after the other"
    helped = [task for task in planned.to_run if task.spec.resources.compile_helpers]
    if helped:
        least_s = min(task.cost_s for task in helped)
        yield f"{len(helped)} of them, from {least_s:.0f} s on, are longer than what a place has to do on average: helpers compile, too"


def _environments(loaded: LoadedManifest) -> Iterable[str]:
    if names := loaded.manifest.environments:
        yield f"all of this for a run in each of {len(names)} environments: {', '.join(names)}"


def _counts(tasks: Iterable[PlannedTask]) -> list[tuple[str, int]]:
    return sorted(Counter(task.reason.value for task in tasks).items())


def _forecast_as_data(expected: Forecast, sharing: Sharing, there: _There, price: float | None) -> dict[str, Any]:
    return {
        "tasks": len(expected.spans),
        "assumed": there.assumed,
        "devices": expected.fleet.devices,
        "cores_per_device": expected.fleet.cores,
        "sharing": sharing.tasks,
        "slots": expected.slots,
        "makespan_s": expected.makespan_s,
        "lower_bound_s": expected.bound_s,
        "efficiency": expected.efficiency,
        "device_hours": expected.device_hours,
        "cost": None if price is None else expected.device_hours * price,
    }


def _forecast_as_text(planned: Plan, expected: Forecast, sharing: Sharing, there: _There, price: float | None) -> Iterable[str]:
    from orchestrator.sessions import hours

    fleet, cuda = expected.fleet, planned.device == "cuda"
    what = f"{fleet.devices} GPU{'s' * (fleet.devices > 1)}" if cuda else "1 node"
    each = " each" if fleet.devices > 1 else ""
    assumed = f" (assumed: {there.assumed})" if there.assumed else ""
    yield (
        f"{_which(planned)}on {what} with {fleet.cores:g} cores{each}{assumed}, {sharing.tasks} sharing a device, "
        f"{expected.slots} at once: about {hours(expected.makespan_s)}; "
        f"no order takes less than {hours(expected.bound_s)} ({expected.efficiency:.0%})"
    )
    cost = "" if price is None else f", {expected.device_hours * price:.2f} at {price:g} an hour"
    yield f"{expected.device_hours:.2f} {'GPU' if cuda else 'node'} hours{cost}"


def _which(planned: Plan) -> str:
    """What the forecast is of, where that is not all."""
    if not planned.left and planned.to_run:
        return "nothing is left; all of it again "
    return f"what is left, {len(planned.left)} of {len(planned.to_run)}, " if len(planned.left) < len(planned.to_run) else ""

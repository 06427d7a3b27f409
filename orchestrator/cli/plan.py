"""``sweep plan``: what would run, in which order and why. Nothing is started, and neither torch nor Ray is imported."""

from __future__ import annotations

import json as jsonlib
import os
import sys
from collections import Counter
from collections.abc import Iterable
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
    from orchestrator.plan import plan_tasks
    from orchestrator.sharing import work_out
    from orchestrator.simulate import forecast

    loaded = load_manifest(manifest)
    if expand:
        sys.stdout.write(source.dump(expanded(loaded)))
        return ExitCode.PASSED
    finished, costs = _from_store(results, loaded.manifest.name)
    execution = loaded.manifest.execution
    kind = "cuda" if gpus and device is None else _device(device, execution.device)
    machine = _machine(kind, gpus, cpus_per_gpu, gpu_memory)
    sharing = work_out(execution.sharing, kind, [machine], execution.num_cpus)
    planned = plan_tasks(loaded, kind, costs, finished, sharing)
    expected = forecast(planned.to_run, _fleet(kind, machine), execution.max_in_flight)
    if json:
        data = _as_data(planned, loaded.manifest.name) | {"forecast": _forecast_as_data(expected, sharing, price)}
        data["environments"] = list(loaded.manifest.environments)
        sys.stdout.write(jsonlib.dumps(data, indent=2) + "\n")
    else:
        lines = [*_as_text(planned), *_forecast_as_text(expected, sharing, kind, price), *_environments(loaded)]
        sys.stdout.writelines(f"{line}\n" for line in lines)
    return ExitCode.PASSED


def _device(wanted: str | None, manifest_device: str) -> str:
    device = wanted or manifest_device
    if device == "auto":
        return "cuda" if NVIDIA_DRIVER.exists() else "cpu"
    if device not in ("cpu", "cuda"):
        raise UsageError(f"--device {device}: must be cpu or cuda")
    return device


def _machine(device: str, gpus: int | None, cpus_per_gpu: float, gpu_memory_gib: float) -> Machine:
    """This machine; or one with the GPUs that were asked for, or with a single one where there is none."""
    from orchestrator.sharing import Machine

    here = _this_machine()
    if device == "cpu" or (gpus is None and here.gpus):
        return here
    count = gpus or 1
    return Machine(count * cpus_per_gpu, count, None, int(gpu_memory_gib * 1024))


def _this_machine() -> Machine:
    from orchestrator.sharing import Machine

    cores, memory_mib = len(os.sched_getaffinity(0)), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**20
    if not NVIDIA_DRIVER.exists():
        return Machine(cores, 0, memory_mib)
    from tasks.probe import probe

    sizes = [gpu.memory_mib for gpu in probe().gpus]
    count = len(sizes) or len(list(DRIVER_GPUS.glob("*")))
    return Machine(cores, count, memory_mib, min(sizes, default=None))


def _fleet(device: str, machine: Machine) -> Fleet:
    from orchestrator.simulate import Fleet

    return Fleet(machine.gpus, machine.cores / machine.gpus) if device == "cuda" else Fleet(1, machine.cores)


def _from_store(results: str | None, name: str) -> tuple[dict[str, str], dict[str, Cost]]:
    if results is None:
        return {}, {}
    from orchestrator.costs import recorded
    from orchestrator.store import finished_tasks

    return finished_tasks(results, name), recorded(results)


def _as_data(planned: Plan, name: str) -> dict[str, Any]:
    return {
        "manifest": name,
        "manifest_digest": planned.manifest_digest,
        "device": planned.device,
        "planned": len(planned.tasks),
        "reasons": dict(_counts(planned.tasks)),
        "cost_s": sum(task.cost_s for task in planned.to_run),
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
    hours = sum(task.cost_s for task in planned.to_run) / 3600
    counted = ", ".join(f"{count} {reason}" for reason, count in _counts(planned.tasks))
    yield f"{len(planned.tasks)} tasks on {planned.device} ({counted}); one after the other about {hours:.1f} h"


def _environments(loaded: LoadedManifest) -> Iterable[str]:
    if names := loaded.manifest.environments:
        yield f"all of this for a run in each of {len(names)} environments: {', '.join(names)}"


def _counts(tasks: Iterable[PlannedTask]) -> list[tuple[str, int]]:
    return sorted(Counter(task.reason.value for task in tasks).items())


def _forecast_as_data(expected: Forecast, sharing: Sharing, price: float | None) -> dict[str, Any]:
    return {
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


def _forecast_as_text(expected: Forecast, sharing: Sharing, device: str, price: float | None) -> Iterable[str]:
    fleet = expected.fleet
    what = f"{fleet.devices} GPU{'s' * (fleet.devices > 1)}" if device == "cuda" else "1 node"
    each = " each" if fleet.devices > 1 else ""
    yield (
        f"on {what} with {fleet.cores:g} cores{each}, {sharing.tasks} sharing a device, {expected.slots} at once: "
        f"about {expected.makespan_s / 3600:.2f} h; no order takes less than {expected.bound_s / 3600:.2f} h ({expected.efficiency:.0%})"
    )
    cost = "" if price is None else f", {expected.device_hours * price:.2f} at {price:g} an hour"
    yield f"{expected.device_hours:.2f} {'GPU' if device == 'cuda' else 'node'} hours{cost}"

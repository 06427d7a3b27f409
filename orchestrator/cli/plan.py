"""``sweep plan``: what would run, in which order and why. Nothing is started, and neither torch nor Ray is imported."""

from __future__ import annotations

import json as jsonlib
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from orchestrator.costs import Cost
    from orchestrator.plan import Plan, PlannedTask

NVIDIA_DRIVER = Path("/dev/nvidiactl")
EPILOG = "Examples: sweep plan manifests/pt2.yaml | sweep plan manifests/smoke.yaml --results results --json"


def plan(
    manifest: Annotated[Path, typer.Argument(help="The manifest. " + EPILOG)],
    results: Annotated[str | None, typer.Option(help="A results store: say what it has already, and use the times recorded there.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; without it the manifest's, where auto looks for a GPU here.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
    expand: Annotated[bool, typer.Option("--expand", help="Print the manifest instead, with everything resolved.")] = False,
) -> ExitCode:
    """Show every task of a manifest: why it would run or not, and about how long it takes."""
    from orchestrator import source
    from orchestrator.manifest import expanded, load_manifest
    from orchestrator.plan import plan_tasks

    loaded = load_manifest(manifest)
    if expand:
        sys.stdout.write(source.dump(expanded(loaded)))
        return ExitCode.PASSED
    finished, costs = _from_store(results, loaded.manifest.name)
    planned = plan_tasks(loaded, _device(device, loaded.manifest.execution.device), costs, finished)
    if json:
        sys.stdout.write(jsonlib.dumps(_as_data(planned, loaded.manifest.name), indent=2) + "\n")
    else:
        sys.stdout.writelines(f"{line}\n" for line in _as_text(planned))
    return ExitCode.PASSED


def _device(wanted: str | None, manifest_device: str) -> str:
    device = wanted or manifest_device
    if device == "auto":
        return "cuda" if NVIDIA_DRIVER.exists() else "cpu"
    if device not in ("cpu", "cuda"):
        raise UsageError(f"--device {device}: must be cpu or cuda")
    return device


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


def _counts(tasks: Iterable[PlannedTask]) -> list[tuple[str, int]]:
    return sorted(Counter(task.reason.value for task in tasks).items())

"""A standalone script for one task of a stored plan: builds the same model and inputs and compares eager with compiled.

The script is put together from text: a head with what the row recorded, the task's settings, a function that builds the model, and the
sources of ``tasks.dropout``, ``draws``, ``readings``, ``comparison``, ``judgement``, ``shaken`` and ``reproduction`` without their imports
of one another. Classifiers of timm and torchvision are built by a few lines of their own; every other model by this project's suites,
and the head then says so.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib.resources
import json
import pprint
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.errors import UsageError
from tasks.spec import ModelSpec, TaskSpec
from tasks.suites.reference import TIMM, TimmEntry
from tasks.suites.torchbench import MODELS

MODULES = ("dropout", "draws", "readings", "comparison", "judgement", "shaken", "reproduction")
COLUMNS = (
    "task_id",
    "status",
    "phase",
    "error",
    "accuracy",
    "accuracy_reason",
    "accuracy_margin",
    "accuracy_tolerance",
    "reference",
    "random_numbers",
    "speedup",
    "batch_size",
    "device",
    "threads",
    "code_version",
    "python",
    "torch",
    "triton",
    "transformers",
    "timm",
    "torchvision",
    "driver",
    "cuda",
    "other_versions",
)
"""What a script needs of the task's row."""

UNRECORDED_TOLERANCE = 1e-2  # for a task that failed before its tolerance was settled
_LIBRARIES = ("python", "torch", "triton", "transformers", "timm", "torchvision", "driver", "cuda")
_CLASSIFIER = "torchvision_models:build_classifier"


@dataclass(frozen=True, slots=True)
class _Building:
    """The source of ``build(device)``, and what it needs besides torch."""

    source: str
    needs: str


def script(task: TaskSpec, row: Mapping[str, Any] | None, run_id: str) -> str:
    """The text of the script; ``row`` has ``COLUMNS``, or is None for a task that has not ended.

    Raises:
        UsageError: the task is a toy, which computes nothing.
    """
    if task.model.suite == "toy":
        raise UsageError(f"{task.task_id} is a toy: it has no model, and nothing to reproduce")
    row = row or {}
    building = _building(task, row)
    imports, bodies = _sources()
    settings = pprint.pformat(_settings(task, row), width=120, sort_dicts=False)
    return "\n".join(
        [
            _docstring(task, building, run_id),
            *_verdict(task, row),
            "",
            *imports,
            "",
            "# --- the task ---",
            "",
            f"TASK = {settings}",
            "",
            "",
            building.source.strip("\n"),
            *bodies,
            "",
            'if __name__ == "__main__":',
            "    raise SystemExit(reproduce(build, Settings(**TASK)))",
            "",
        ]
    )


def _docstring(task: TaskSpec, building: _Building, run_id: str) -> str:
    lines = [
        f'"""Reproduces {task.task_id} of run {run_id}: eager, a float64 reference and compiled, from one state.',
        "",
        "Exit status: 0 if compiled agrees with eager within the recorded tolerance, 1 if not or if a step fails, 2 without the device.",
        f"Needs {building.needs}.",
        '"""',
    ]
    return "\n".join(line.replace("\\", "/") for line in lines)


def _verdict(task: TaskSpec, row: Mapping[str, Any]) -> list[str]:
    """What the row says, as comments."""
    if not row:
        return ["#", f"# Recorded: nothing yet; the task {task.task_id} has no row."]
    lines = [f"Recorded: {row['status']} in phase {row['phase']}, on {row['device'] or 'an unknown device'}"]
    if row["accuracy"]:
        margin = "" if row["accuracy_margin"] is None else f", margin {row['accuracy_margin']:.3g}"
        lines.append(f"accuracy: {row['accuracy']}{margin}, tolerance {row['accuracy_tolerance']}, reference {row['reference']}")
    lines += [str(row[name]) for name in ("accuracy_reason", "error") if row[name]]
    return ["#", *(f"# {line}".rstrip() for text in dict.fromkeys(lines) for line in text.splitlines())]


def _settings(task: TaskSpec, row: Mapping[str, Any]) -> dict[str, Any]:
    compiling = dataclasses.asdict(task.compile)
    resources = task.resources
    return {
        "mode": task.mode,
        "device": resources.device,
        "seed": task.seed,
        "dtype": task.precision.dtype,
        "tf32": task.precision.tf32,
        "autocast_dtype": task.precision.autocast_dtype,
        "optimizer": task.optimizer,
        "compile": compiling | {"options": compiling["options"] or None},
        "iterations": task.accuracy.iterations,
        "tolerance": row.get("accuracy_tolerance") or task.accuracy.tolerance or UNRECORDED_TOLERANCE,
        "random_numbers": row.get("random_numbers"),
        "threads": row.get("threads") or resources.threads or max(1, int(resources.num_cpus)),
        "versions": _versions(row),
    }


def _versions(row: Mapping[str, Any]) -> dict[str, str]:
    others = json.loads(row.get("other_versions") or "{}")
    found = {name: row.get(name) for name in _LIBRARIES} | others
    return {name: str(value) for name, value in found.items() if value is not None}


def _building(task: TaskSpec, row: Mapping[str, Any]) -> _Building:
    model, training = task.model, task.mode == "training"
    plain = not model.options and model.factory is None and model.source is None
    if plain and model.suite == "timm":
        entry = TIMM.get(model.name)
        batch_size = model.batch_size or (entry.default_batch_size(task.mode) if entry else row.get("batch_size"))
        if batch_size is not None:
            return _timm(model.name, entry, int(batch_size), training=training)
    if plain and model.suite == "torchbench" and model.name in MODELS and MODELS[model.name].builder == _CLASSIFIER:
        return _torchvision(model.name, model.batch_size or MODELS[model.name].default_batch_size(task.mode), training=training)
    return _by_suite(model, task)


_TIMM = """
def build(device):
    prepare_torchvision()
    import timm
    from timm.data import resolve_data_config

    module = timm.create_model({name!r}, pretrained=False, drop_rate=0.0).train({training})
    for part in module.modules():
        if isinstance(getattr(part, "drop_prob", None), float):
            part.drop_prob = 0.0
    channels, height, width = {size}
    images = torch.randint(0, 256, ({batch_size}, channels, height, width)).float()
    return module, ((images - images.mean()) / images.std(),), {{}}, {loss}
"""
_TORCHVISION = """
def build(device):
    prepare_torchvision()
    from torchvision import models

    module = models.get_model({name!r}, weights=None).train({training})
    return module, (torch.randn({batch_size}, 3, 224, 224),), {{}}, {loss}
"""
_MEAN = {"loss": "mean_of_outputs", "scale": ""}
_SCALED_MEAN = {"loss": "scaled_mean_of_outputs", "scale": " / 1000.0"}
"""By these names ``tasks.judgement`` knows a loss whose digits may cancel."""
_LOSS = '''

def {loss}(outputs):
    return torch.stack([outputs.float().mean()]).mean(){scale}


def prepare_torchvision():
    """Beside another torch than its own, torchvision's extension does not load, and neither does the package: declare what it misses."""
    try:
        import torchvision
    except RuntimeError:
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        for operator in ("nms", "qnms"):
            torch.library.define(f"torchvision::{{operator}}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
'''
_BY_SUITE = """
def build(device):
    from tasks.spec import ModelSpec
    from tasks.suites.loader import load

    made = load(ModelSpec(**MODEL), {mode!r}, device, {seed})
    return made.module, made.args, made.kwargs, made.loss
"""


def _timm(name: str, entry: TimmEntry | None, batch_size: int, *, training: bool) -> _Building:
    size = f"resolve_data_config({{}}, model=module, use_test_size={not training})['input_size']"
    if entry and entry.test_size and not training:
        size = f"3, {entry.test_size}, {entry.test_size}"
    fields = {"name": (entry.timm_name if entry else None) or name, "training": training, "size": size, "batch_size": batch_size}
    loss = _SCALED_MEAN if entry and entry.scaled_loss else _MEAN
    return _Building(_TIMM.format(**fields, **loss) + _LOSS.format(**loss), "torch, torchvision and timm; nothing of this project")


def _torchvision(name: str, batch_size: int, *, training: bool) -> _Building:
    source = _TORCHVISION.format(name=name, training=training, batch_size=batch_size, **_MEAN) + _LOSS.format(**_MEAN)
    return _Building(source, "torch and torchvision; nothing of this project")


def _by_suite(model: ModelSpec, task: TaskSpec) -> _Building:
    described = pprint.pformat(dataclasses.asdict(model), width=120, sort_dicts=False)
    source = f"MODEL = {described}\n\n{_BY_SUITE.format(mode=task.mode, seed=task.seed)}"
    needs = "torch, the model's library, and this project's package `tasks`, to build the model and its inputs and for nothing else"
    if model.factory is not None:
        needs += f"; and {model.factory.partition(':')[0]}, which has the model"
    return _Building(source, needs)


def _sources() -> tuple[list[str], list[str]]:
    """The import lines of ``MODULES``, without those of this project, and their bodies without docstrings."""
    imports: set[str] = set()
    bodies = []
    for name in MODULES:
        text = importlib.resources.files("tasks").joinpath(f"{name}.py").read_text(encoding="utf-8")
        statements = ast.parse(text).body
        own = [one for one in statements[1:] if isinstance(one, ast.Import | ast.ImportFrom)]
        imports |= {ast.unparse(one) for one in own if not (isinstance(one, ast.ImportFrom) and (one.module or "").startswith("tasks"))}
        last = own[-1].end_lineno or 0
        bodies += ["", "", f"# --- tasks/{name}.py ---", "", *text.splitlines()[last:]]
    future = [line for line in imports if line.startswith("from __future__")]
    return [*future, "", *sorted(imports.difference(future))], bodies

"""Who may import whom: the rules of docs/design.md, kept on the source text and, where it matters, in a fresh interpreter."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
STDLIB = sys.stdlib_module_names
OPEN_TO_ORCHESTRATOR = {
    "tasks",
    "tasks.spec",
    "tasks.estimator",
    "tasks.preload",
    "tasks.probe",
    "tasks.spool",
    "tasks.suites.entry",
    "tasks.suites.reference",
    "tasks.suites.torchbench",
    "tasks.suites.toy",
}
STDLIB_ONLY = {
    "tasks.spec",
    "tasks.channel",
    "tasks.cuda_driver",
    "tasks.devices",
    "tasks.file_lock",
    "tasks.forkable",
    "tasks.forkclient",
    "tasks.forked",
    "tasks.forkserver",
    "tasks.idle",
    "tasks.lease",
    "tasks.prepared",
    "tasks.reread",
    "tasks.ring",
    "tasks.spool",
    "tasks.preload",
    "tasks.supervisor",
    "tasks.suites.entry",
    "tasks.suites.reference",
    "tasks.suites.torchbench",
    "tasks.suites.toy",
}
PURE = {"orchestrator.sweep", "orchestrator.events", "orchestrator.policy", "orchestrator.sharing", "orchestrator.simulate"}
USERS_OF_RAY = {"orchestrator.cluster", "orchestrator.connection", "orchestrator.submit"}


def modules():
    for package in ("orchestrator", "tasks"):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), ast.parse(path.read_text())


MODULES = dict(modules())


def imports(tree, top_level_only=False):
    nodes = ast.walk(tree) if not top_level_only else _top_level(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names if f"{node.module}.{alias.name}" in MODULES)


def _top_level(tree):
    for node in tree.body:
        yield node
        if isinstance(node, (ast.If, ast.Try)):
            yield from ast.walk(node)


def reaches(name, seen=None):
    """Everything of this project that importing ``name`` imports with it."""
    seen = set() if seen is None else seen
    if name in MODULES and name not in seen:
        seen.add(name)
        for target in imports(MODULES[name], top_level_only=True):
            reaches(target, seen)
    return seen


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("tasks")])
def test_tasks_import_nothing_of_the_driver_side(name):
    forbidden = {"orchestrator", "ray", "pydantic", "pyarrow", "yaml"}
    assert not {target.split(".")[0] for target in imports(MODULES[name])} & forbidden


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("orchestrator")])
def test_the_driver_side_imports_no_torch_and_only_the_open_part_of_tasks(name):
    targets = set(imports(MODULES[name]))
    assert not {target.split(".")[0] for target in targets} & {"torch", "torchvision", "transformers", "timm"}
    of_tasks = {target for target in targets if target.split(".")[0] == "tasks"}
    allowed = OPEN_TO_ORCHESTRATOR | ({"tasks.supervisor"} if name == "orchestrator.cluster" else set())
    assert of_tasks & set(MODULES) <= allowed


def test_only_the_command_line_imports_the_command_line():
    users = {name for name, tree in MODULES.items() if any(target.startswith("orchestrator.cli") for target in imports(tree))}
    assert {name for name in users if not name.startswith("orchestrator.cli")} <= {"orchestrator.__main__"}


def test_ray_is_used_in_one_place_for_running_and_one_for_submitting():
    users = {name for name, tree in MODULES.items() if any(target.split(".")[0] == "ray" for target in imports(tree))}
    assert users <= USERS_OF_RAY


@pytest.mark.parametrize("name", sorted(PURE & set(MODULES)))
def test_the_core_is_pure(name):
    outside = {target.split(".")[0] for target in imports(MODULES[name])}
    assert outside <= {"__future__", "collections", "dataclasses", "enum", "heapq", "math", "typing", "orchestrator", "tasks"}


@pytest.mark.parametrize("name", sorted(STDLIB_ONLY & set(MODULES)))
def test_what_runs_beside_ray_needs_the_standard_library_only(name):
    reached = reaches(name)
    outside = {target.split(".")[0] for module in reached for target in imports(MODULES[module], top_level_only=True)}
    assert outside <= STDLIB | {"tasks"}


def test_every_module_says_what_it_is():
    assert [name for name, tree in MODULES.items() if not ast.get_docstring(tree)] == []


def run_without(blocked, code):
    block = f"import sys\nfor name in {sorted(blocked)!r}: sys.modules[name] = None\n"
    return subprocess.run([sys.executable, "-c", block + code], cwd=ROOT, capture_output=True, text=True)


def test_a_gpu_node_needs_nothing_of_the_driver_side():
    driver_side = {"pydantic", "pyarrow", "yaml", "ray", "typer", "rich", "scipy"}
    done = run_without(driver_side, "import tasks.worker, tasks.supervisor, tasks.estimator")
    assert done.returncode == 0, done.stderr


def test_an_analyst_needs_neither_torch_nor_ray():
    done = run_without({"torch", "ray", "transformers", "timm"}, "from orchestrator.cli import app; app()")
    assert done.returncode == 0, done.stderr

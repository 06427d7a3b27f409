"""torch's own minifier on one task: from a script of ``orchestrator.repro`` to the smallest graph that fails by itself.

Three processes, one after the other, all in one folder:

1. the task's script, with ``TORCHDYNAMO_REPRO_AFTER`` and ``TORCHDYNAMO_REPRO_LEVEL`` set. At level 2 torch catches a graph that does not
   compile or run, at level 4 one whose results differ; it then leaves ``minifier_launcher.py`` with that graph;
2. the launcher, which leaves out nodes as long as the graph still fails, and leaves ``repro.py``;
3. ``repro.py`` itself, to see that it fails.

Graphs are taken behind AOTAutograd for Inductor, which has forward and backward apart, and behind Dynamo for any other backend.
"""

from __future__ import annotations

import ast
import importlib.resources
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

TASK, LAUNCHER, REPRO, WHOLE = "task.py", "minifier_launcher.py", "repro.py", "whole_graph.py"
CRASH_LEVEL, ACCURACY_LEVEL = 2, 4


@dataclass(frozen=True, slots=True)
class Minified:
    """What came out. ``script`` is None if nothing did that fails by itself; ``message`` says why, and where the logs are."""

    script: Path | None
    message: str


def minify(text: str, folder: Path, *, backend: str, accuracy: bool) -> Minified:
    """Minify the task of the script ``text`` in ``folder``, which is made. ``accuracy``: look for wrong results, not for errors."""
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    for left in (*folder.rglob(LAUNCHER), folder / REPRO):
        left.unlink(missing_ok=True)
    (folder / TASK).write_text(text, encoding="utf-8")
    level = ACCURACY_LEVEL if accuracy else CRASH_LEVEL
    after = "aot" if backend == "inductor" else "dynamo"
    watched = {"TORCHDYNAMO_REPRO_AFTER": after, "TORCHDYNAMO_REPRO_LEVEL": str(level), "TORCH_COMPILE_DEBUG_DIR": str(folder)}
    status = _run(folder / TASK, watched)
    launcher = next(folder.rglob(LAUNCHER), None)
    if launcher is None:
        return Minified(None, _no_graph(folder, status, accuracy=accuracy))
    if (folder / REPRO).exists():
        (folder / REPRO).rename(folder / WHOLE)
    _run(launcher, {"TORCH_COMPILE_DEBUG_DIR": str(folder)}, folder)
    found = folder / REPRO
    if not found.exists():
        text = f"torch's minifier found a graph that fails ({launcher}) and left nothing smaller; see {folder / 'minifier_launcher.log'}"
        return Minified(None, text)
    if _run(found, {}) == 0:
        return Minified(None, f"torch's minifier left {found}, which does not fail when it runs by itself; see {folder / 'repro.log'}")
    what = "has other results compiled than in eager mode" if accuracy else "fails to compile or run"
    return Minified(found, f"{found}: a graph of {_counted(_calls(found))} that {what}; see {folder / 'repro.log'}")


def _run(script: Path, environment: dict[str, str], folder: Path | None = None) -> int:
    """Run ``script`` in ``folder`` (None: its own); its output goes to a log of its name there. The exit status, negative for a signal."""
    folder = folder or script.parent
    with (folder / f"{script.stem}.log").open("wb") as log:
        done = subprocess.run(
            [sys.executable, str(script)], cwd=folder, env=_environment(environment), stdout=log, stderr=subprocess.STDOUT, check=False
        )
    return done.returncode


def _environment(more: dict[str, str]) -> dict[str, str]:
    """This process's, in which this project's packages and the modules of the working directory are found."""
    project = str(Path(str(importlib.resources.files("tasks"))).parent)
    paths = [project, str(Path.cwd()), *filter(None, [os.environ.get("PYTHONPATH")])]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("TORCHDYNAMO_REPRO")}
    return inherited | {"PYTHONPATH": os.pathsep.join(paths)} | more


def _no_graph(folder: Path, status: int, *, accuracy: bool) -> str:
    log = folder / "task.log"
    if status < 0:
        return f"the task died by {signal.Signals(-status).name} before torch could write a graph down; see {log}"
    if status == 0:
        kind = "has other results compiled than in eager mode" if accuracy else "fails to compile or run"
        return f"no graph of the task {kind} here, by torch's own rule; see {log}"
    return f"the task fails here, but outside of the graphs that torch's minifier looks at; see {log}"


def _counted(calls: int) -> str:
    return f"{calls} call" if calls == 1 else f"{calls} calls"


def _calls(script: Path) -> int:
    """Calls in the forward of the script's module."""
    forwards = [node for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))) if getattr(node, "name", "") == "forward"]
    return sum(isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) for forward in forwards for node in ast.walk(forward))

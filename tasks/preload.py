"""Read a node's libraries once before its first task, so that it does not pay for a cold disk where the others do not.

The process that imports them stays, where it can, as the parent from which workers are forked (``tasks.forkserver``); else it ends. What
started it stays as it was. Standard library only.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

from tasks.forkclient import UnpreparedError, prepare
from tasks.launch import importable_paths
from tasks.lease import meeting_place
from tasks.processes import die_with_parent

_ROOT = Path(__file__).parent.parent

ALWAYS = ("torch", "torch._dynamo", "torch._inductor.compile_fx", "triton")
OF_SUITES = {"huggingface": ("transformers",), "timm": ("torchvision", "timm"), "torchbench": ("torchvision",)}

_IMPORT = "import sys; from tasks.forkserver import import_libraries; sys.exit(import_libraries(sys.argv[1:], 'cpu'))"


def modules_of(suites: Iterable[str]) -> tuple[str, ...]:
    """What tasks of these suites import; nothing for toys."""
    real = sorted(set(suites) - {"toy"})
    return tuple(dict.fromkeys((*ALWAYS, *(name for suite in real for name in OF_SUITES.get(suite, ()))))) if real else ()


def preload(modules: Iterable[str], limit_s: float, device: str) -> str | None:
    """Import ``modules``, as far as they are installed, for workers on ``device``; why that did not work, if it did not."""
    names = tuple(modules)
    try:
        return prepare(names, device, meeting_place(tempfile.gettempdir()), importable_paths(_ROOT), limit_s)
    except TimeoutError:
        return _too_long(names, limit_s)
    except UnpreparedError:
        return _read_once(names, limit_s)


def _read_once(modules: Sequence[str], limit_s: float) -> str | None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHONPATH": importable_paths(_ROOT)}
    die_with_me = partial(die_with_parent, os.getpid())
    command = [sys.executable, "-c", _IMPORT, *modules]
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=limit_s, preexec_fn=die_with_me, check=False
        )
    except subprocess.TimeoutExpired:
        return _too_long(modules, limit_s)
    return None if done.returncode == 0 else (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]


def _too_long(modules: Sequence[str], limit_s: float) -> str:
    return f"importing {', '.join(modules)} took more than {limit_s:g} s"

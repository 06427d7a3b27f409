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

FORKED_DEVICES = ("cpu",)
"""Kinds of devices whose workers may be forked from a parent that sees no GPU. Not CUDA: torch 2.11's Inductor decides at import how its
autotuner times kernels, by whether it sees one."""

ALWAYS = ("torch", "torch._dynamo", "torch._inductor.compile_fx", "triton")
OF_SUITES = {"huggingface": ("transformers",), "timm": ("torchvision", "timm"), "torchbench": ("torchvision",)}

_IMPORT = """
import importlib, importlib.util, sys
for name in sys.argv[1:]:
    if importlib.util.find_spec(name.partition(".")[0]):
        importlib.import_module(name)
"""


def modules_of(suites: Iterable[str]) -> tuple[str, ...]:
    """What tasks of these suites import; nothing for toys."""
    real = sorted(set(suites) - {"toy"})
    return tuple(dict.fromkeys((*ALWAYS, *(name for suite in real for name in OF_SUITES.get(suite, ()))))) if real else ()


def preload(modules: Iterable[str], limit_s: float, fork: bool) -> str | None:
    """Import ``modules``, as far as they are installed; why that did not work, if it did not. ``fork``: workers may be forked then."""
    names = tuple(modules)
    if not fork:
        return _read_once(names, limit_s)
    try:
        return prepare(names, meeting_place(tempfile.gettempdir()), importable_paths(Path(__file__).parent.parent), limit_s)
    except TimeoutError:
        return _too_long(names, limit_s)
    except UnpreparedError:
        return _read_once(names, limit_s)


def _read_once(modules: Sequence[str], limit_s: float) -> str | None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
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

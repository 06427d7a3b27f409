"""What a prepared parent and the worker that is to be forked from it must have in common. Standard library only.

All of it goes into a key, which is part of the name of the parent's socket: one that was prepared otherwise is not found. The key holds
the kind of device, the interpreter, where it imports from, what is installed there, this package's own files, and the environment. Of the
environment everything counts, but for what is set for each attempt anyway and for what tells one terminal from another: who cannot know
what a library reads while it is imported had better prepare another parent once too often.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from tasks.launch import SAME_FOR_ALL, inheritable
from tasks.scratch import user_directory

ANY_PARENT = "fork-*.lock"
"""Matches a file of each parent that there is or was; it stays, for whoever holds it would not see another in its place."""

_PER_ATTEMPT = frozenset(
    (
        *("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "TORCHINDUCTOR_COMPILE_THREADS"),
        *("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "TMPDIR", "PYTHONPATH"),
    )
)
_OF_A_TERMINAL = frozenset(("PWD", "OLDPWD", "SHLVL", "_", "TERM", "COLUMNS", "LINES", "WINDOWID", "LS_COLORS", "PYTEST_CURRENT_TEST"))
_OF_A_TERMINAL_PREFIXES = ("SSH_", "TMUX", "XDG_SESSION_")
_METADATA = (".dist-info", ".egg-info", ".egg-link", ".pth")

_ALONE = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
_UNLESS_SET = {"OPENBLAS_NUM_THREADS": "1", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}


def common(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that must be the same for the parent and for all that is forked from it."""
    return {
        name: value
        for name, value in sorted((inheritable(environment) | SAME_FOR_ALL).items())
        if name not in _PER_ATTEMPT | _OF_A_TERMINAL and not name.startswith(_OF_A_TERMINAL_PREFIXES)
    }


def parents_environment(environment: Mapping[str, str], python_path: str) -> dict[str, str]:
    """In which libraries start no thread and touch no GPU while they are imported."""
    kept = {name: environment[name] for name in ("TMPDIR",) if name in environment}
    return _UNLESS_SET | common(environment) | kept | _ALONE | {"PYTHONPATH": python_path}


def key(environment: Mapping[str, str], python_path: str, device: str) -> str:
    """Of a parent for workers on ``device``. Short, for a socket's name must be."""
    software = [[str(path), path.stat().st_mtime_ns] for path in (*_installed(python_path), *_own_files())]
    everything = [sys.executable, sys.version, python_path, device, common(environment), software]
    return hashlib.sha256(json.dumps(everything).encode()).hexdigest()[:16]


def socket_path(base: str, its_key: str) -> Path:
    """Where the parent with this key listens; ``base`` is the directory under which a node's processes meet.

    Raises:
        UnsafeDirectoryError, OSError: there is no such place.
    """
    return user_directory(base) / f"fork-{its_key}.sock"


def lock_path(socket: Path) -> Path:
    return socket.with_suffix(".lock")


def unfit_path(socket: Path) -> Path:
    """Where a parent that must not be forked says why."""
    return socket.with_suffix(".unfit")


def _installed(python_path: str) -> Iterator[Path]:
    """What an installation leaves anew: a directory's own time would also tell of files that were compiled or written by the way."""
    sites = {entry for entry in sys.path if Path(entry).name in ("site-packages", "dist-packages")}
    for site in sorted(sites | set(filter(None, python_path.split(os.pathsep)))):
        if Path(site).is_dir():
            yield from sorted(path for path in Path(site).iterdir() if path.suffix in _METADATA)


def _own_files() -> Iterator[Path]:
    return iter(sorted(Path(__file__).parent.rglob("*.py")))

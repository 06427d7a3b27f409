"""Compile caches that outlive their run: one file per task, device and versions, made and read by ``torch.compiler``.

A bundle fills the attempt's own empty cache before it compiles, so that workers never write to a cache together. Whatever in it does not
fit (other versions, another model) is not found by its key, and compiled. A bundle holds code that will run: it is trusted as much as
the directory that it lies in.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import torch

from tasks.launch import BUNDLES
from tasks.spec import TaskSpec, slug


def place(task: TaskSpec, device_name: str, versions: dict[str, str | None]) -> Path | None:
    """Where the bundle of ``task`` lies or will lie; None for a task that keeps none."""
    directory = os.environ.get(BUNDLES)
    if task.cache != "bundle" or not directory:
        return None
    made_by = "/".join((task.digest, device_name, *(f"{name}={versions.get(name)}" for name in ("torch", "triton", "python"))))
    return Path(directory) / f"{slug(task.task_id)}.{hashlib.sha256(made_by.encode()).hexdigest()[:16]}.bundle"


def load(path: Path | None) -> bool:
    """Fill this process's compile cache from ``path``; False if there is nothing to fill it from."""
    if path is None or not path.is_file():
        return False
    return torch.compiler.load_cache_artifacts(path.read_bytes()) is not None


def save(path: Path | None) -> bool:
    """Keep what this process has compiled or loaded at ``path``, by atomic rename; False if nothing could be kept."""
    if path is None:
        return False
    saved = torch.compiler.save_cache_artifacts()
    if saved is None:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_bytes(saved[0])
    partial.replace(path)
    return True

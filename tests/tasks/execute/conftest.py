"""What holds for every test of a whole task, and what those have that are not about compiling."""

from __future__ import annotations

import contextlib

import pytest
import torch
import torch._dynamo.utils

from tasks import compilation, execute


@pytest.fixture(autouse=True)
def tidy(monkeypatch):
    """Blocks of two iterations, no garbage collected before each, and no state of the compiler left behind."""
    monkeypatch.setattr("tasks.measure.quiet_collector", contextlib.nullcontext)
    monkeypatch.setattr("tasks.measure.SHORT_BLOCK_NS", 1)
    monkeypatch.setattr("tasks.warmup.WINDOW_NS", 1)
    monkeypatch.setattr(execute, "WARM_CPU_S", 0.0)
    threads = torch.get_num_threads()
    yield
    torch._dynamo.reset()
    torch._dynamo.utils.clear_compilation_metrics()
    torch._dynamo.config.suppress_errors = torch._dynamo.config.fail_on_recompile_limit_hit = False
    torch.set_num_threads(threads)


@pytest.fixture
def uncompiled(monkeypatch):
    """Where compiling is not the point: the compiled step is the eager one."""
    monkeypatch.setattr(compilation, "compile_step", lambda step, spec, **more: step)

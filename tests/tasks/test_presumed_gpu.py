"""Torch that is made to see a GPU, in processes of their own: an installation without CUDA is told that it has it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
HEAD = """
import os, sys, types
import torch
from tasks.forkable import spoils_cuda
from tasks.presumed_gpu import NoPresumptionError, presumed_gpu
def seen():
    return torch.cuda.is_available(), torch.cuda.device_count()
"""
WITH_CUDA = "torch.cuda._is_compiled = lambda: True; torch._C._cuda_getDeviceCount = lambda: 0\n"


def said(code):
    done = subprocess.run([sys.executable, "-c", HEAD + code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")[:-1]


def test_one_gpu_is_seen_inside_and_the_truth_before_and_after():
    code = "kept = torch.cuda.is_available\nprint(seen())\nwith presumed_gpu():\n    print(seen(), kept())\nprint(seen(), kept())"
    assert said(WITH_CUDA + code) == ["(False, 0)", "(True, 1) True", "(False, 0) False"]


@pytest.mark.parametrize("before", ["None", "'0'"])
def test_the_environment_is_what_it_was(before):
    name = "'PYTORCH_NVML_BASED_CUDA_CHECK'"
    code = f"before = {before}\nif before: os.environ[{name}] = before\nwith presumed_gpu(): pass\nprint(os.environ.get({name}) == before)"
    assert said(WITH_CUDA + code) == ["True"]


def test_it_does_not_outlive_an_error():
    code = "try:\n    with presumed_gpu():\n        1 / 0\nexcept ZeroDivisionError:\n    print(seen())"
    assert said(WITH_CUDA + code) == ["(False, 0)"]


def test_nothing_is_initialised_by_it():
    code = "with presumed_gpu(): pass\nprint(torch.cuda.is_initialized(), spoils_cuda())"
    assert said(WITH_CUDA + code) == ["False False"]


def test_a_torch_without_cuda_is_not_presumed_upon():
    code = "torch.cuda._is_compiled = lambda: False\ntry:\n    with presumed_gpu(): pass\nexcept NoPresumptionError as error: print(error)"
    assert "sees no GPU that it does not use" in said(code)[0]


def test_a_child_in_which_cuda_would_not_work_is_seen():
    """Torch says so in a child of a process that has asked the driver."""
    code = "torch._C._cuda_isInBadFork = lambda: {}\nprint(spoils_cuda())"
    assert said(code.format("True")) == ["True"]
    assert said(code.format("False")) == ["False"]
    assert said("sys.modules['torch'] = types.SimpleNamespace(_C=types.SimpleNamespace())\nprint(spoils_cuda())") == ["False"]


@pytest.mark.parametrize(("device", "seen"), [("cuda", "True 1"), ("cpu", "False 0")])
def test_a_parent_imports_as_its_workers_would(tmp_path, device, seen):
    (tmp_path / "asks.py").write_text("import torch\nprint(torch.cuda.is_available(), torch.cuda.device_count())")
    code = f"sys.path.append({str(tmp_path)!r})\nfrom tasks.forkserver import import_libraries\n"
    assert said(WITH_CUDA + code + f"print(import_libraries(['torch', 'asks'], {device!r}))") == [seen, "None"]


def test_a_parent_that_cannot_says_so():
    code = (
        "from tasks.forkserver import import_libraries\ntorch.cuda._is_compiled = lambda: False\nprint(import_libraries(['torch'], 'cuda'))"
    )
    assert said(code)[0].startswith("NoPresumptionError: torch ")

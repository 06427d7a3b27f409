"""Have a node read its libraries from disk once, before its first task: else that one pays for a cold disk with its deadlines.

A fresh interpreter imports them and ends; what stays is the operating system's page cache. Standard library only.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

LIMIT_S = 120.0

COMMON = ("torch", "torch._dynamo", "torch._inductor.compile_fx", "triton")
LIBRARIES = {"huggingface": ("transformers.modeling_utils",), "timm": ("timm",), "torchbench": ("torchvision",)}
"""What suites import beyond ``COMMON``."""

_PROGRAM = """
import importlib, sys
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except Exception:  # what is missing or broken is for the tasks that need it to tell
        pass
"""


def prefetch(suites: Sequence[str], limit_s: float = LIMIT_S) -> str | None:
    """Read what tasks of these suites import; None, or why it may not have been read."""
    names = [*COMMON, *(name for suite in suites for name in LIBRARIES.get(suite, ()))]
    # No GPU and no compile processes: nothing but reading.
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "TORCHINDUCTOR_COMPILE_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAM, *names], env=environment, capture_output=True, text=True, timeout=limit_s, check=False
        )
    except subprocess.TimeoutExpired:
        return f"its libraries were not imported within {limit_s:.0f} s"
    return None if done.returncode == 0 else f"importing its libraries ended with status {done.returncode}: {done.stderr[-300:].strip()}"

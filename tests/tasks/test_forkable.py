"""What speaks against a fork, in processes of their own: a test's own has threads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
HEAD = """
import os, sys, threading, time, types
from tasks import forkable
from tasks.forkable import descriptors, obstacle, strangers
def torch(initialized=False):
    sys.modules["torch"] = types.SimpleNamespace(cuda=types.SimpleNamespace(is_initialized=lambda: initialized))
"""


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("print(obstacle())", "None"),
        ("torch(); print(obstacle())", "None"),
        ("torch(initialized=True); print(obstacle())", "it uses CUDA"),
        ("threading.Thread(target=time.sleep, args=(1,)).start(); print(obstacle())", "it has 2 threads"),
        ("forkable._OF_A_GPU = '/dev/full'; file = open('/dev/full', 'wb'); print(obstacle())", "it has /dev/full open"),
        ("import socket; before = descriptors(); print(strangers(before))", "None"),
        ("before = descriptors(); file = open('/dev/zero'); print(strangers(before))", "(/dev/zero) was opened by an import"),
    ],
)
def test_what_speaks_against_a_fork(code, said):
    done = subprocess.run([sys.executable, "-c", HEAD + code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip().endswith(said), done

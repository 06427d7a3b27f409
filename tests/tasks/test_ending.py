"""In processes of their own, for each ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
HEAD = """
import atexit, os, sys, threading, time
from tasks.ending import leave

class Last:
    def __del__(self):
        os.write(1, b"taken apart\\n")

last = Last()
atexit.register(lambda: print("at exit"))
def raises(error):
    raise error
def later():
    time.sleep(0.2)
    print("thread")
"""


@pytest.mark.parametrize(
    ("code", "status", "said"),
    [
        ("leave(lambda: 3)", 3, ["at exit"]),
        ("leave(lambda: sys.exit('why'))", 1, ["why", "at exit"]),
        ("leave(lambda: raises(ValueError('why')))", 1, ["ValueError: why", "at exit"]),
        ("leave(lambda: threading.Thread(target=later).start() or 0)", 0, ["thread", "at exit"]),
        ("leave(lambda: 3, whole_end=False)", 3, []),
        ("try:\n    leave(lambda: 0)\nfinally:\n    print('frames above')", 0, ["at exit"]),
    ],
)
def test_it_ends_as_an_interpreter_would_but_takes_nothing_apart(code, status, said):
    done = subprocess.run([sys.executable, "-c", HEAD + code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines = [line for line in done.stdout.splitlines() if not line.startswith((" ", "Traceback"))]
    assert (done.returncode, lines) == (status, said)

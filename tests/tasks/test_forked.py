"""A forked process ends as an interpreter would end, and never gets into its parent's frames: in processes of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
HEAD = """
import atexit, ctypes, os, signal, sys, threading, time
from tasks.forked import Surroundings, fork
atexit.register(lambda: print("at exit"))
def run(program, first=lambda: None, **options):
    surroundings = Surroundings(dict(os.environ), "/", ("program",), output=1, errors=1)
    try:
        pid = fork(first, surroundings, program, **options)
    finally:
        if os.getpid() != own:
            print("in frames of the parent")
    _, status = os.waitpid(pid, 0)
    print("status", status)
    sys.stdout.flush()
    os._exit(0)
own = os.getpid()
def says(text):
    print(text)
def raises(error):
    raise error
def signalled(number):
    os.kill(os.getpid(), number)
    time.sleep(5)
"""


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("run(lambda: 3)", ["status 768"]),
        ("run(lambda: sys.exit(4))", ["status 1024"]),
        ("run(lambda: sys.exit())", ["status 0"]),
        ("run(lambda: sys.exit('why'))", ["why", "status 256"]),
        ("run(lambda: raises(ValueError('why')))", ["ValueError: why", "status 256"]),
        ("run(lambda: 0, first=lambda: raises(OSError('early')))", ["OSError: early", "status 256"]),
        ("run(lambda: 0, whole_end=True)", ["at exit", "status 0"]),
        ("run(lambda: sys.exit(4), whole_end=True)", ["at exit", "status 1024"]),
        ("run(lambda: 0)", ["status 0"]),
        (
            "run(lambda: threading.Thread(target=lambda: (time.sleep(0.2), says('thread'))).start() or 0, whole_end=True)",
            ["thread", "at exit", "status 0"],
        ),
        ("run(lambda: ctypes.CDLL(None).printf(b'from C\\n') and 0)", ["from C", "status 0"]),
        ("run(lambda: says(os.getcwd()) or 0)", ["/", "status 0"]),
        ("signal.signal(signal.SIGTERM, lambda *_: says('handled')); run(lambda: signalled(signal.SIGTERM))", ["status 15"]),
        ("run(lambda: signalled(signal.SIGINT))", ["KeyboardInterrupt", "status 2"]),
        ("run(lambda: os.read(0, 1) == b'' and 7)", ["status 1792"]),
    ],
)
def test_it_ends_as_an_interpreter_would(code, said):
    done = subprocess.run(
        [sys.executable, "-c", HEAD + code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, input="x"
    )
    lines = [line for line in done.stdout.splitlines() if not line.startswith((" ", "Traceback"))]
    assert lines == said, done

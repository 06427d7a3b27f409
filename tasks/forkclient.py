"""Those who want something of a prepared parent (``tasks.forkserver``): the node's warm-up, and supervisors. Standard library only.

Nobody depends on it. Where there is none, or it does not answer, an ``UnpreparedError`` says why, and its caller does without.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tasks.peer import peer
from tasks.prepared import ANY_PARENT, key, parents_environment, socket_path, unfit_path
from tasks.processes import identity, kill
from tasks.scratch import UnsafeDirectoryError, user_directory

SWITCH = "SWEEP_FORK"
"""Environment variable: ``0`` starts no parent and asks none."""

IDLE_S = 300.0
"""How long a parent that nobody needs stays."""

ASK_LIMIT_S = 2.0
"""How long a supervisor waits; a parent that imports something just then takes longer."""

START_LIMIT_S = 10.0
"""How long an interpreter may take until it listens."""

_POLL_S = 0.02
_ANSWER_BYTES = 1 << 16

# A fork at once, as for a guardian: what started it, a Ray worker as a rule, may end and take its children along. ``-c`` leaves the
# directory of whoever starts it as the first place to import from.
_START = (
    "import os, sys\n"
    "if os.fork(): os._exit(0)\n"
    "os.setsid()\n"
    "if sys.path[0] == '': del sys.path[0]\n"
    "from tasks.forkserver import main\n"
    "sys.exit(main(sys.argv[1:]))\n"
)


class UnpreparedError(Exception):
    """No prepared parent does what was asked of it."""


def prepare(modules: Sequence[str], device: str, base: str, python_path: str, limit_s: float, idle_s: float = IDLE_S) -> str | None:
    """Have the parent that fits this process and workers on ``device`` import ``modules``; what went wrong with the imports.

    It is started if there is none.

    ``base``: the directory under which the node's processes meet. A parent that takes longer than ``limit_s`` is ended.

    Raises:
        UnpreparedError: none can be started, or it ended.
        TimeoutError: its imports took too long.
    """
    if os.environ.get(SWITCH) == "0":
        raise UnpreparedError(f"{SWITCH} is 0")
    give_up_s = time.monotonic() + limit_s
    try:
        path = socket_path(base, key(os.environ, python_path, device))
        with _reach(path, python_path, idle_s, give_up_s) as connection:
            return _prepared(connection, modules, device, give_up_s - time.monotonic())
    except TimeoutError:
        raise
    except (OSError, ValueError, UnsafeDirectoryError) as error:
        raise UnpreparedError(f"{type(error).__name__}: {error}") from error


def fork_guardian(device: str, base: str, python_path: str, streams: Sequence[int]) -> None:
    """Have a guardian forked for a worker on ``device``.

    It has ``streams`` as its input, output and errors, and this process's environment, directory and cores.

    Raises:
        UnpreparedError: there is no parent that fits, or it does not answer, or must not be forked.
    """
    if os.environ.get(SWITCH) == "0":
        raise UnpreparedError(f"{SWITCH} is 0")
    try:
        if not any(user_directory(base).glob(ANY_PARENT)):  # said before a key is worked out: a run of toys needs none
            raise UnpreparedError("the node has no prepared parent")
        path = socket_path(base, key(os.environ, python_path, device))
        connection = _connected(path)
        if connection is None:
            raise UnpreparedError(_why_it_is_gone(path))
        with connection:
            socket.send_fds(connection, [json.dumps(_wanted()).encode()], list(streams))
            answer = _answer(connection)
    except (OSError, ValueError, UnsafeDirectoryError) as error:
        raise UnpreparedError(f"no answer from the prepared parent: {type(error).__name__}: {error}") from error
    if "pid" not in answer:
        raise UnpreparedError(f"the prepared parent must not be forked: {answer.get('obstacle')}")


def _wanted() -> dict[str, Any]:
    cores = sorted(os.sched_getaffinity(0))
    return {"ask": "guardian", "environment": dict(os.environ), "directory": str(Path.cwd()), "cores": cores}


def _why_it_is_gone(path: Path) -> str:
    with contextlib.suppress(OSError):
        return f"the prepared parent must not be forked: {unfit_path(path).read_text(encoding='utf-8')}"
    return "no prepared parent is like this process"


def _prepared(connection: socket.socket, modules: Sequence[str], device: str, limit_s: float) -> str | None:
    connection.settimeout(max(0.01, limit_s))
    try:
        connection.send(json.dumps({"ask": "prepare", "modules": list(modules), "device": device}).encode())
        problem = _answer(connection)["problem"]
    except TimeoutError:
        if (parent := identity(peer(connection).pid)) is not None:
            kill(parent)
        raise
    return None if problem is None else str(problem)


def _reach(path: Path, python_path: str, idle_s: float, give_up_s: float) -> socket.socket:
    """A connection to the parent at ``path``, which is started if it does not listen."""
    if (connection := _connected(path)) is not None:
        return connection
    _start(path, python_path, idle_s)
    give_up_s = min(give_up_s, time.monotonic() + START_LIMIT_S)
    while (connection := _connected(path)) is None:
        if time.monotonic() > give_up_s:
            raise UnpreparedError(f"no prepared parent listens at {path}")
        time.sleep(_POLL_S)
    return connection


def _start(path: Path, python_path: str, idle_s: float) -> None:
    with path.with_suffix(".log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", _START, str(path), str(idle_s)],
            env=parents_environment(os.environ, python_path),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    process.wait()


def _connected(path: Path) -> socket.socket | None:
    """None if nobody listens there."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.settimeout(ASK_LIMIT_S)
    try:
        connection.connect(str(path))
    except OSError as error:
        connection.close()
        if isinstance(error, (FileNotFoundError, ConnectionRefusedError)):
            return None
        raise
    return connection


def _answer(connection: socket.socket) -> dict[str, Any]:
    data = connection.recv(_ANSWER_BYTES)
    if not data:
        raise ConnectionResetError("it ended without an answer")
    answer: dict[str, Any] = json.loads(data)
    return answer

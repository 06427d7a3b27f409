"""A parent that has imported the libraries, from which guardians are forked, and from these their workers. Standard library only.

    python -c START PATH IDLE_S

listens at the socket PATH, one message and one answer for each connection (``tasks.forkclient``):

    {"ask": "prepare", "modules": [...], "device": "cuda"}             {"problem": null, "obstacle": null}
    {"ask": "guardian", "environment": {...}, "directory": "/",
     "cores": [0, 1]} with descriptors for input, output, errors       {"pid": 123}, or {"obstacle": "it has 2 threads"}

It is nobody's child, and ends when nobody has wanted anything for IDLE_S and no guardian of its own is left, or as soon as a fork of it
would not be sound. Guardians and workers do not need it once they run.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.util
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tasks import guardian
from tasks.file_lock import try_lock
from tasks.forkable import descriptors, obstacle, spoils_cuda, strangers
from tasks.forked import Surroundings, fork
from tasks.peer import peer
from tasks.prepared import lock_path, unfit_path
from tasks.presumed_gpu import presumed_gpu
from tasks.processes import reap

MESSAGE_LIMIT_BYTES = 1 << 18
LISTEN = 128
HEAR_LIMIT_S = 1.0
"""How long somebody who has connected may take to say what is wanted."""

_STREAMS = 3


def main(arguments: Sequence[str]) -> int:
    path, idle_s = Path(arguments[0]), float(arguments[1])
    os.chdir("/")
    lock = os.open(lock_path(path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    if not try_lock(lock):  # another one was first
        return 0
    unfit_path(path).unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        _listen(listener, path)
        try:
            why = _Server(listener, _wake_up_at_the_end_of_children(), idle_s).run()
            if why is not None:
                unfit_path(path).write_text(why, encoding="utf-8")
        finally:
            path.unlink(missing_ok=True)
    return 0


class _Server:
    """For one thread, as everything here."""

    def __init__(self, listener: socket.socket, ended: int, idle_s: float) -> None:
        self._listener = listener
        self._ended = ended
        self._idle_s = idle_s
        self._wanted_s = time.monotonic()
        self._guardians: set[int] = set()
        self._prepared = False
        self._unfit: str | None = None

    def run(self) -> str | None:
        """Serve until nobody wants anything; or until it must not be forked any more, and why."""
        while self._unfit is None:
            left_s = None if self._guardians else self._wanted_s + self._idle_s - time.monotonic()
            if left_s is not None and left_s <= 0:
                break
            readable, _, _ = select.select([self._listener.fileno(), self._ended], [], [], left_s)
            if self._ended in readable:
                self._collect()
            if self._listener.fileno() in readable:
                self._attend()
        return self._unfit

    def _collect(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._ended, 4096)
        ended = reap()
        self._guardians = self._guardians - set(ended) if ended is not None else set()
        self._wanted_s = time.monotonic()

    def _attend(self) -> None:
        """Whatever goes wrong with one who asks is no reason to end: they do without."""
        connection, _ = self._listener.accept()
        with connection:
            connection.settimeout(HEAR_LIMIT_S)
            received: list[int] = []
            try:
                data, received, _, _ = socket.recv_fds(connection, MESSAGE_LIMIT_BYTES, _STREAMS)
                if peer(connection).uid == os.getuid():
                    connection.send(json.dumps(self._answer(json.loads(data), received)).encode())
            except (OSError, ValueError, TypeError, KeyError) as error:
                print(f"not served: {type(error).__name__}: {error}", file=sys.stderr)  # noqa: T201 - its log
            finally:
                for descriptor in received:
                    os.close(descriptor)
        self._wanted_s = time.monotonic()

    def _answer(self, message: dict[str, Any], received: Sequence[int]) -> dict[str, Any]:
        match message:
            case {"ask": "prepare", "modules": list(modules), "device": str(device)}:
                return self._prepare(modules, device)
            case {"ask": "guardian"} if len(received) == _STREAMS:
                return self._fork_guardian(message, received)
        raise ValueError(f"a message that is none: {message}")

    def _prepare(self, modules: Sequence[str], device: str) -> dict[str, Any]:
        before = descriptors()
        problem = import_libraries(modules, device)
        self._prepared = True
        gc.collect()
        gc.freeze()  # what is never looked at for garbage is never written to, and stays one with the children's
        self._unfit = obstacle() or strangers(before) or ("CUDA would not work in its children" if spoils_cuda() else None)
        return {"problem": problem, "obstacle": self._unfit}

    def _fork_guardian(self, message: dict[str, Any], received: Sequence[int]) -> dict[str, Any]:
        if not self._prepared:
            return {"obstacle": "it has imported nothing yet"}
        self._unfit = obstacle()
        if self._unfit is not None:
            return {"obstacle": self._unfit}
        source, output, errors = received
        surroundings = Surroundings(
            dict(message["environment"]), str(message["directory"]), ("tasks.guardian",), input=source, output=output, errors=errors
        )
        pid = fork(_leader_on([int(core) for core in message["cores"]]), surroundings, partial(guardian.main, forked=True))
        self._guardians.add(pid)
        return {"pid": pid}


def import_libraries(modules: Sequence[str], device: str) -> str | None:
    """Import what is installed of ``modules``, and what of this project is used with it, for workers on ``device``; what went wrong."""
    try:
        with contextlib.ExitStack() as undone:
            for name in modules:
                if importlib.util.find_spec(name.partition(".")[0]):
                    importlib.import_module(name)
                if name == "torch" in sys.modules:
                    if device == "cuda":
                        undone.enter_context(presumed_gpu())
                    _import_what_uses_torch()
            importlib.import_module("tasks.worker")
    except Exception as error:  # noqa: BLE001 - a library may raise anything; in a worker that needs it, it will again
        return f"{type(error).__name__}: {error}"
    return None


def _import_what_uses_torch() -> None:
    from tasks import execute  # noqa: F401
    from tasks.suites import loader, torchvision_compat  # noqa: F401

    torchvision_compat.prepare()  # before anything imports torchvision


def _leader_on(cores: Sequence[int]) -> Callable[[], None]:
    def prepare() -> None:
        os.setsid()
        with contextlib.suppress(OSError):  # of a processor that is gone
            os.sched_setaffinity(0, cores)

    return prepare


def _listen(listener: socket.socket, path: Path) -> None:
    path.unlink(missing_ok=True)  # of a server that was killed: the lock is this one's
    mask = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(mask)
    listener.listen(LISTEN)


def _wake_up_at_the_end_of_children() -> int:
    read_end, write_end = os.pipe()
    for end in (read_end, write_end):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    return read_end

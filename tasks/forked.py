"""A forked process that is to be like a fresh one: what it must not keep of its parent, and how it ends. Standard library only.

An exec would close descriptors, reset signals and replace the environment; a bare fork does none of it. Nor may the child ever return to
the frames of its parent, which hold the parent's locks, directories and sockets: its program runs on top of them, and then the process
ends, after all that an interpreter does at its end for a program's sake.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NoReturn

from tasks.ending import flush, leave

_SET_BY_PYTHON = ("LC_CTYPE",)  # where the locale is C, by an interpreter for itself and all that it starts


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a forked process has in place of what its parent has."""

    environment: Mapping[str, str]
    directory: str
    arguments: tuple[str, ...]  # sys.argv
    output: int
    errors: int
    input: int | None = None  # None: nothing to read
    kept: frozenset[int] = frozenset()  # further descriptors


def fork(first: Callable[[], None], surroundings: Surroundings, program: Callable[[], int], *, whole_end: bool = False) -> int:
    """Run ``program`` in a child, which calls ``first`` before anything else; the child's process number. For a process with one thread.

    With ``whole_end`` the child waits for its threads when the program is over, and does what was registered for an interpreter's end.
    """
    flush()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # none may find the child with its parent's handlers
    try:
        pid = os.fork()
        if pid == 0:
            _live(first, surroundings, mask, program, whole_end)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return pid


def _live(
    first: Callable[[], None], surroundings: Surroundings, mask: Iterable[int], program: Callable[[], int], whole_end: bool
) -> NoReturn:
    try:
        first()
        _reset_signals()
        _settle(surroundings)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    except BaseException:  # noqa: BLE001 - nothing may get into the frames of the parent
        traceback.print_exc()
        leave(lambda: 1, whole_end=False)
    leave(program, whole_end=whole_end)


def _reset_signals() -> None:
    """Those with handlers in Python, as an exec does; what is ignored, or handled by faulthandler, is so in a fresh interpreter, too."""
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _settle(surroundings: Surroundings) -> None:
    source = os.open(os.devnull, os.O_RDONLY) if surroundings.input is None else surroundings.input
    for target, descriptor in enumerate((source, surroundings.output, surroundings.errors)):
        os.dup2(descriptor, target)
    _close_all_but({0, 1, 2} | surroundings.kept)
    coerced = {name: os.environ[name] for name in _SET_BY_PYTHON if name in os.environ}
    os.environ.clear()
    os.environ.update(coerced | dict(surroundings.environment))
    os.chdir(surroundings.directory)
    tempfile.tempdir = None
    sys.argv[:] = surroundings.arguments


def _close_all_but(kept: set[int] | frozenset[int]) -> None:
    """The objects that own these descriptors are in the parent's frames, and so are never told to close them again."""
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - numbers, not paths
        if int(name) not in kept:
            with contextlib.suppress(OSError):  # the one of this very listing
                os.close(int(name))

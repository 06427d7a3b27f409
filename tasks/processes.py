"""Whole process trees on Linux: find them, stop them, let them go on, end them. Standard library only.

A process that calls ``become_subreaper`` inherits every descendant whose own parent dies, whatever session or group it moved to. So its
tree is complete, and it is empty exactly when ``wait`` finds no child.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
PR_SET_CHILD_SUBREAPER = 36

KILL_LIMIT_S = 10.0
"""A process that SIGKILL has not ended by then is stuck in the kernel, most likely in a driver."""

EXEC_LIMIT_S = 1.0
"""A process that shows no arguments for longer was started without any."""

STOP_LIMIT_S = 2.0
"""A process that SIGSTOP has not stopped by then sleeps in the kernel; it stops before it runs again."""

_FIRST_POLL_S, _POLL_S = 0.0001, 0.002
_MARK_LIMIT = 240  # bytes of a memfd's name
_INACTIVE = frozenset("TtZX")
_CHILDREN_ARE_LISTED = Path(f"/proc/self/task/{os.getpid()}/children").exists()
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Identity:
    """A process for good: its number may be used again, its number and start time together not."""

    pid: int
    started: int  # clock ticks since boot


@dataclass(frozen=True, slots=True)
class _Stat:
    """The fields of /proc/PID/stat that matter here."""

    state: str
    parent: int
    started: int


def become_subreaper() -> None:
    """Adopt orphaned descendants from now on."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(parent: int) -> None:
    """Let the kernel kill this process as soon as the thread that forked it is gone; call it between fork and exec."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the kernel was asked
        os.kill(os.getpid(), signal.SIGKILL)


def identity(pid: int) -> Identity | None:
    """The process that has this number now; None if there is none, or only a zombie."""
    stat = _stat(pid)
    return None if stat is None or stat.state in "ZX" else Identity(pid, stat.started)


def is_alive(process: Identity) -> bool:
    return identity(process.pid) == process


def kill(process: Identity) -> None:
    """End ``process``, unless it has ended already and its number is another's."""
    if is_alive(process):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(process.pid, signal.SIGKILL)


def descendants(root: int) -> dict[int, str]:
    """State letter of each process below ``root``, zombies included, by process number."""
    return _walk(root) if _CHILDREN_ARE_LISTED else _scan(root)


def _walk(root: int) -> dict[int, str]:
    """From parent to child: a tenth of what it takes to look at all processes, and neighbours that want to time wait for it.

    A child whose parent ends just then becomes the root's before that parent is seen as a zombie. So the root's are looked at again.
    """
    found: dict[int, str] = {}
    pending = _children(root)
    while pending:
        pid = pending.pop()
        if pid not in found and (stat := _stat(pid)) is not None:
            found[pid] = stat.state
            pending += _children(pid)
        if not pending:
            pending = [pid for pid in _children(root) if pid not in found and _stat(pid) is not None]
    return found


def _children(pid: int) -> list[int]:
    """Of all threads of process ``pid``."""
    found: list[int] = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for thread in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208 - often, and somebody waits for it
            with contextlib.suppress(FileNotFoundError, ProcessLookupError), open(f"/proc/{pid}/task/{thread}/children", "rb") as file:  # noqa: PTH123
                found += map(int, file.read().split())
    return found


def _scan(root: int) -> dict[int, str]:
    """Where the kernel does not list the children of a thread."""
    stats = {pid: stat for pid in _process_numbers() if (stat := _stat(pid)) is not None}
    children: dict[int, list[int]] = {}
    for pid, stat in stats.items():
        children.setdefault(stat.parent, []).append(pid)
    found: dict[int, str] = {}
    pending = list(children.get(root, ()))
    while pending:
        pid = pending.pop()
        if pid not in found:
            found[pid] = stats[pid].state
            pending += children.get(pid, ())
    return found


def stop_descendants(root: int) -> None:
    """SIGSTOP everything below ``root`` and return when nothing there runs, or after ``STOP_LIMIT_S``."""
    give_up, pause_s = time.monotonic() + STOP_LIMIT_S, _FIRST_POLL_S
    while active := [pid for pid, state in descendants(root).items() if state not in _INACTIVE]:
        _signal_all(active, signal.SIGSTOP)
        if time.monotonic() > give_up:
            return
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, _POLL_S)


def continue_descendants(root: int) -> None:
    """SIGCONT everything below ``root``."""
    _signal_all(descendants(root), signal.SIGCONT)


def reap() -> dict[int, int] | None:
    """Collect ended children: wait status by process number. None when this process has no child left at all."""
    ended: dict[int, int] = {}
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended or None
        if pid == 0:
            return ended
        ended[pid] = status


def end_descendants() -> tuple[dict[int, int], tuple[int, ...]]:
    """SIGKILL and collect everything below this process, which must be a subreaper.

    Returns:
        Wait status of every child that was collected, and the numbers of processes that outlived ``KILL_LIMIT_S``.
    """
    ended: dict[int, int] = {}
    give_up = time.monotonic() + KILL_LIMIT_S
    while (collected := reap()) is not None:
        ended |= collected
        left = descendants(os.getpid())  # with zombies: threads may outlive the first thread of a process
        if time.monotonic() > give_up:
            return ended, tuple(sorted(left))
        _signal_all(left, signal.SIGKILL)
        time.sleep(_POLL_S)
    return ended, ()


@contextlib.contextmanager
def mark(variable: str, value: str) -> Iterator[int]:
    """A descriptor by which ``marked`` finds those who inherit it in a fork: the kernel shows the environment of an exec only."""
    descriptor = os.memfd_create(os.fsdecode(_name_of_mark(variable, value)))
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def marked(variable: str, value: str) -> Iterator[Identity]:
    """Processes of this user that were started with ``variable=value`` in their environment, or were forked with a ``mark`` of it."""
    wanted = f"{variable}={value}".encode()
    name = _name_of_mark(variable, value)
    for pid in _process_numbers():
        process = identity(pid)
        with contextlib.suppress(OSError):
            if process is not None and (wanted in _environment(pid).split(b"\0") or _has_open(pid, name)):
                yield process


def end_marked(variable: str, value: str) -> tuple[int, ...]:
    """SIGKILL every process that is ``marked``; for trees that have lost their subreaper.

    Returns:
        The numbers of those that outlived ``KILL_LIMIT_S``.
    """
    give_up = time.monotonic() + KILL_LIMIT_S
    while processes := [process for process in marked(variable, value) if process.pid != os.getpid()]:
        if time.monotonic() > give_up:
            return tuple(process.pid for process in processes)
        for process in processes:
            kill(process)
        time.sleep(_POLL_S)
    return ()


def _name_of_mark(variable: str, value: str) -> bytes:
    """The end of it, for the kernel takes no longer one: the value is unique there."""
    return os.fsencode(f"{variable}={value}")[-_MARK_LIMIT:]


def _has_open(pid: int, name: bytes) -> bool:
    folder, wanted = f"/proc/{pid}/fd".encode(), b"/memfd:" + name + b" (deleted)"
    for descriptor in os.listdir(folder):  # noqa: PTH208 - a scan of all processes
        with contextlib.suppress(FileNotFoundError):  # it has closed it meanwhile
            if os.readlink(folder + b"/" + descriptor) == wanted:  # noqa: PTH115 - what it says is no path
                return True
    return False


def _environment(pid: int) -> bytes:
    """What process ``pid`` was started with. In the middle of an exec the kernel shows neither environment nor arguments: look again."""
    path, give_up = Path(f"/proc/{pid}/environ"), time.monotonic() + EXEC_LIMIT_S
    while not (environment := path.read_bytes()) and time.monotonic() < give_up:
        if _has_arguments(pid) or not _has_program(pid):
            return path.read_bytes()  # the exec may have ended between the two looks
        time.sleep(_POLL_S)
    return environment


def _has_arguments(pid: int) -> bool:
    return bool(Path(f"/proc/{pid}/cmdline").read_bytes())


def _has_program(pid: int) -> bool:
    """A kernel thread has none, and no arguments either."""
    try:
        return bool(Path(f"/proc/{pid}/exe").readlink().name)
    except FileNotFoundError:
        return False


def _process_numbers() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())  # noqa: PTH208 - a scan of all processes, often


def _stat(pid: int) -> _Stat | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123 - as above
            text = file.read()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text[text.rindex(b")") + 2 :].split()  # the name before it may hold spaces and parentheses
    return _Stat(state=fields[0].decode(), parent=int(fields[1]), started=int(fields[19]))


def _signal_all(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

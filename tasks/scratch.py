"""Directories on a node: one of this user, one per attempt, and what dead attempts have left there. Standard library only.

An attempt's directory has a lock file beside it, locked while its guardian lives. The kernel frees the lock however the guardian ends, so
the next attempt on the node can tell what is left over, removes it, and ends processes that were started there.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import stat
from collections.abc import Collection, Iterator
from pathlib import Path

from tasks.file_lock import try_lock
from tasks.processes import end_marked

MARK = "SWEEP_ATTEMPT"
"""Environment variable of every process of an attempt: the attempt's directory."""

_LOCK_SUFFIX = ".lock"


class UnsafeDirectoryError(Exception):
    """A directory that this project would use belongs to somebody else."""


def user_directory(base: str) -> Path:
    """A private directory of this user under ``base``, made if need be.

    Raises:
        UnsafeDirectoryError: the name is taken by something that another user controls.
        OSError: it cannot be made.
    """
    path = Path(base) / f"sweep-{os.getuid()}"
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise UnsafeDirectoryError(f"{path} is not a directory that only this user can write; remove it or set TMPDIR")
    return path


@contextlib.contextmanager
def attempt_directory(parent: Path) -> Iterator[Path]:
    """A fresh, locked directory under ``parent``; removed at the end with all that is in it."""
    path = parent / secrets.token_hex(6)  # short: multiprocessing puts Unix sockets below it
    lock = _lock_path(path)
    descriptor = _create_locked(lock)
    try:
        path.mkdir(mode=0o700)
        yield path
    finally:
        remove(path)
        os.close(descriptor)


def renew(path: Path, keep: Collection[Path]) -> None:
    """Empty an attempt's directory for the task's next process, but for the files in ``keep``."""
    for entry in path.iterdir():
        if entry in keep:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink()


def remove(path: Path) -> None:
    """Delete an attempt's directory and its lock file; what cannot be deleted now is left to ``clear_leftovers``."""
    shutil.rmtree(path, ignore_errors=True)
    if not path.exists():
        _lock_path(path).unlink(missing_ok=True)


def clear_leftovers(parent: Path) -> None:
    """End the processes and delete the directories of attempts whose guardian is dead."""
    for lock in parent.glob(f"*{_LOCK_SUFFIX}"):
        with contextlib.suppress(FileNotFoundError):  # a neighbour clears up, too
            descriptor = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
            try:
                if try_lock(descriptor):
                    path = lock.with_suffix("")
                    end_marked(MARK, str(path))
                    remove(path)
            finally:
                os.close(descriptor)


def _create_locked(lock: Path) -> int:
    """A locked file at ``lock``, made again if a neighbour took it for a leftover before it was locked."""
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with contextlib.suppress(FileNotFoundError):
            if try_lock(descriptor) and os.path.samestat(lock.stat(), os.fstat(descriptor)):
                return descriptor
        os.close(descriptor)


def _lock_path(path: Path) -> Path:
    return path.with_name(path.name + _LOCK_SUFFIX)

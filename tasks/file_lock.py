"""A lock on an open file, which the kernel frees when the last process that has the file open is gone. Standard library only."""

from __future__ import annotations

import fcntl


def try_lock(descriptor: int, kind: int = fcntl.LOCK_EX) -> bool:
    """Lock the file if that can be done at once; again, by the same descriptor, does nothing."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True

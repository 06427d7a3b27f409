"""The file that a finished attempt leaves on its node, for a driver that died meanwhile and resumes. Standard library only."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

from tasks.spec import Attempt, Outcome, encode, slug

PARTIAL = ".partial"


def spool_name(task_id: str, attempt: int) -> str:
    """The name of the file of one attempt."""
    return f"{slug(task_id)}.{attempt}.json"


def leave(outcome: Outcome, attempt: Attempt) -> Path | None:
    """Write ``outcome`` to ``attempt.spool``, whole or not at all; None where there is no such directory, or it cannot be written.

    That is no error: the outcome also goes to the driver that asked for it, and the spool serves only those that shared one with it.
    """
    if attempt.spool is None or not Path(attempt.spool).is_dir():
        return None
    path = Path(attempt.spool) / spool_name(outcome.task_id, outcome.attempt)
    partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")
    try:
        with partial.open("w", encoding="utf-8") as file:
            json.dump(encode(outcome), file)
            file.flush()
            os.fsync(file.fileno())
        return partial.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        return None

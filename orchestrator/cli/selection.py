"""Which task a user means by a part of its id."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from orchestrator.errors import UsageError


def only_task(wanted: str, task_ids: Sequence[str]) -> str:
    """The one of ``task_ids`` that is ``wanted``, or that alone contains it.

    Raises:
        UsageError: none does, or several do.
    """
    matches = [wanted] if wanted in task_ids else [task_id for task_id in task_ids if wanted in task_id]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise UsageError(f"{wanted!r} fits {len(matches)} tasks: {', '.join(matches[:8])}")
    close = difflib.get_close_matches(wanted, task_ids, n=3, cutoff=0.4)
    raise UsageError(f"no task is called {wanted!r}" + (f"; did you mean {', '.join(close)}?" if close else ""))

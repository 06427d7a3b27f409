"""What a run leaves for people who follow it: each task's story, and how the run stands at the moment. No result depends on it.

DIR/RUN_ID/stories/NNNNNN.jsonl   one line per task with news since the last file: what has happened to it meanwhile
DIR/RUN_ID/standing.json          what the driver has in flight, a few seconds old
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from typing import Any

from orchestrator.files import Files
from orchestrator.sweep import Progress, StoryEntry

STANDING_FILE = "standing.json"
STORIES = "stories"


class Journal:
    """The driver's end. ``clock`` is the clock of the entries' times; they are written as seconds since the epoch."""

    def __init__(self, files: Files, now_s: float) -> None:
        self._files = files
        self._epoch_s = time.time() - now_s
        names = files.names(STORIES)
        self._next = int(names[-1].partition(".")[0]) + 1 if names else 1
        self._told: dict[str, int] = {}  # task -> how many entries of its story are kept

    def stories(self, stories: Iterable[tuple[str, Sequence[StoryEntry]]]) -> None:
        """Keep what happened to these tasks, each given with its whole story.

        Raises:
            StoreError: it cannot be written; the run may go on without.
        """
        news = [(task_id, story, self._told.get(task_id, 0)) for task_id, story in stories]
        news = [(task_id, story, told) for task_id, story, told in news if len(story) > told]
        lines = [json.dumps({"task_id": task_id, "story": list(map(self._entry, story[told:]))}) for task_id, story, told in news]
        if lines:
            self._files.write(f"{STORIES}/{self._next:06d}.jsonl", ("\n".join(lines) + "\n").encode(), durable=False)
            self._next += 1
            self._told |= {task_id: len(story) for task_id, story, _ in news}

    def standing(self, active: Iterable[Progress]) -> None:
        """Show what is in flight.

        Raises:
            StoreError: it cannot be written; the run may go on without.
        """
        tasks = [
            {
                "task_id": progress.task_id,
                "state": progress.state.value,
                "attempt": progress.attempt,
                "phase": progress.phase.value if progress.phase else None,
                "node": progress.node or None,
                "started": progress.started_s + self._epoch_s if progress.started_s else None,
            }
            for progress in active
        ]
        self._files.write(STANDING_FILE, json.dumps({"at": time.time(), "active": tasks}).encode(), durable=False)

    def _entry(self, entry: StoryEntry) -> dict[str, Any]:
        return {"at": round(entry.at_s + self._epoch_s, 3), "state": entry.state.value, "what": entry.what}


def read_standing(files: Files) -> dict[str, Any]:
    """What the last driver had in flight when it last said so; empty if it never did."""
    try:
        found: dict[str, Any] = json.loads(files.read(STANDING_FILE))
    except (FileNotFoundError, ValueError):
        return {}
    return found


def read_story(files: Files, task_id: str) -> list[dict[str, Any]]:
    """All that happened to a task, by every driver of the run, in order."""
    story: list[dict[str, Any]] = []
    for name in files.names(STORIES):
        for line in files.read(f"{STORIES}/{name}").splitlines():
            if task_id.encode() in line and (entry := json.loads(line))["task_id"] == task_id:
                story += entry["story"]
    return story

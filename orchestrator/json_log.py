"""Progress for programs: one JSON object per line, in place of the text that people read. Each has ``at`` (UTC) and ``event``."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import IO, Any

from rich.console import Console

from orchestrator.events import ClusterLost, Event, Lost, NodesChanged, PhaseStarted, Started, StoreFailed
from orchestrator.sweep import Sweep
from tasks.spec import Outcome, TaskSpec


class JsonConsole(Console):
    """A console of which every message becomes a line of JSON."""

    def print(self, *objects: Any, **_: Any) -> None:
        """Tell people's words as an event of their own."""
        self.emit("message", text=" ".join(str(entry) for entry in objects))

    def emit(self, event: str, **fields: Any) -> None:
        """Write one line."""
        line = {"at": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **fields}
        self.file.write(json.dumps(line) + "\n")
        self.file.flush()


class JsonProgress:
    """What happens to tasks, as it happens."""

    def __init__(self, console: JsonConsole, planned: int, done: int = 0) -> None:
        self._console = console
        self._planned = planned
        self._done = done
        self._nodes: frozenset[str] | None = None
        self._quarantined: frozenset[str] = frozenset()

    def event(self, event: Event) -> None:
        match event:
            case Started():
                self._console.emit("started", task_id=event.task_id, attempt=event.attempt, node=event.node)
            case PhaseStarted():
                self._console.emit("phase", task_id=event.task_id, attempt=event.attempt, phase=event.phase.value)
            case Lost():
                self._console.emit(
                    "lost", task_id=event.task_id, attempt=event.attempt, failure_class=event.failure_class.value, error=event.error
                )
            case NodesChanged():
                self._nodes_changed(event.nodes)
            case StoreFailed() | ClusterLost():
                self._console.emit("failed", error=event.error)
            case _:
                return

    def row(self, task: TaskSpec, outcome: Outcome) -> None:
        self._done += 1
        self._console.emit(
            "row",
            task_id=task.task_id,
            attempt=outcome.attempt,
            status=outcome.status.value,
            failure_class=outcome.failure_class.value if outcome.failure_class else None,
            error=outcome.error,
            speedup=outcome.measurement.speedup,
            node=outcome.node or None,
            done=self._done,
            planned=self._planned,
        )

    def tick(self, sweep: Sweep) -> None:
        """The nodes that the sweep has given up meanwhile; whatever else changed has been told."""
        for node in sorted(sweep.quarantined - self._quarantined):
            self._console.emit("quarantined", node=node)
        self._quarantined = sweep.quarantined

    def _nodes_changed(self, nodes: frozenset[str]) -> None:
        known = nodes if self._nodes is None else self._nodes  # those of the beginning are no news
        for event, changed in (("node_lost", known - nodes), ("node_joined", nodes - known)):
            for node in sorted(changed):
                self._console.emit(event, node=node, nodes=len(nodes))
        self._nodes = nodes


class JsonHandler(logging.Handler):
    """Warnings of this program's own loggers, as lines of the same kind."""

    def __init__(self, console: JsonConsole) -> None:
        super().__init__(logging.WARNING)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        self._console.emit("log", level=record.levelname.lower(), logger=record.name, text=record.getMessage())


def json_console(stream: IO[str]) -> JsonConsole:
    """A console on ``stream``; this program's warnings go there too."""
    console = JsonConsole(file=stream, force_terminal=False)
    logging.getLogger("orchestrator").addHandler(JsonHandler(console))
    return console

"""From a guardian to its supervisor: events as lines of JSON. Standard library only."""

from __future__ import annotations

import json
import os
from typing import Any

from tasks.processes import Identity
from tasks.spec import Outcome, encode
from tasks.supervisor import Event, Finished

BACKLOG_LIMIT_BYTES = 64 * 1024
"""Events beyond this, for a supervisor that does not read, are dropped; the last one never is."""


class SupervisorGoneError(Exception):
    """Nobody waits for the outcome any more."""


class Uplink:
    """Events to the supervisor, one JSON object per line; never blocks but for the last."""

    def __init__(self, descriptor: int) -> None:
        os.set_blocking(descriptor, False)
        self._descriptor = descriptor
        self._backlog = b""

    def introduce(self, guardian: Identity | None) -> None:
        """Say who is to be killed should the worst come to the worst."""
        if guardian is not None:
            self._write({"guardian": [guardian.pid, guardian.started]})

    def tell(self, event: Event) -> None:
        """Send ``event``, or drop it while the supervisor does not read; raises ``SupervisorGoneError`` if it never will."""
        self._write({"event": type(event).__name__, **encode(event)})

    def finish(self, outcome: Outcome) -> None:
        os.set_blocking(self._descriptor, True)
        self._write({"event": Finished.__name__, "outcome": encode(outcome)})

    def _write(self, message: dict[str, Any]) -> None:
        if len(self._backlog) < BACKLOG_LIMIT_BYTES:
            self._backlog += json.dumps(message).encode() + b"\n"
        try:
            while self._backlog:
                self._backlog = self._backlog[os.write(self._descriptor, self._backlog) :]
        except BlockingIOError:
            return
        except BrokenPipeError as error:
            raise SupervisorGoneError from error

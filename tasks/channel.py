"""The line between a worker and its supervisor: phases go up, permission to own the device comes down.

Both ends are one Unix socket pair, inherited by the worker as the file descriptor named in ``SWEEP_CONTROL_FD``; messages are JSON
lines. A worker started by hand, without a supervisor, gets a channel that records nothing and grants everything at once.
Standard library only.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tasks.spec import Phase

CONTROL_FD = "SWEEP_CONTROL_FD"


@dataclass(frozen=True, slots=True)
class Grant:
    """What it took to own the device: seconds waited, and how many neighbours are paused meanwhile."""

    waited_s: float = 0.0
    neighbours: int = 0


class Channel:
    """The worker's end. Not thread-safe but for ``exclusive``, which is re-entrant on one thread."""

    def __init__(self, connection: socket.socket | None) -> None:
        self._connection = connection
        self._lines = connection.makefile("r", encoding="utf-8") if connection else None
        self._depth = 0
        self._grant = Grant()

    @classmethod
    def from_environment(cls) -> Channel:
        """The channel of the supervisor that started this process, or a mute one."""
        number = os.environ.pop(CONTROL_FD, None)
        return cls(socket.socket(fileno=int(number)) if number else None)

    def phase(self, phase: Phase) -> None:
        """Tell the supervisor that ``phase`` begins, and with it that phase's deadline."""
        self._send({"phase": phase.value})

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[Grant]:
        """Own the device: no neighbour runs on it until the block ends."""
        if self._depth == 0:
            self._grant = self._acquire()
        self._depth += 1
        try:
            yield self._grant
        finally:
            self._depth -= 1
            if self._depth == 0:
                self._send({"lease": "release"})

    def _acquire(self) -> Grant:
        self._send({"lease": "acquire"})
        if self._lines is None:
            return Grant()
        line = self._lines.readline()
        if not line:
            raise ConnectionError("the supervisor closed the control channel")
        answer = json.loads(line)
        return Grant(waited_s=float(answer["waited_s"]), neighbours=int(answer["neighbours"]))

    def _send(self, message: dict[str, Any]) -> None:
        if self._connection is not None:
            self._connection.sendall((json.dumps(message) + "\n").encode())

"""The line between a worker and its guardian: phases go up, permission to own the device comes down.

Both ends are one Unix socket pair, inherited by the worker as the file descriptor named in ``SWEEP_CONTROL_FD``; messages are JSON
lines. A worker started by hand, without a guardian, gets a channel that records nothing and grants everything at once.
Standard library only.

    worker                          guardian
    {"phase": "build"}
    {"lease": "time"}               {"waited_s": 0.2, "neighbours": 3}      or "tune", or "warm"; "time" also while it warms up
    {"lease": "ease"}                                                       back from "time" to what it was before
    {"lease": "release"}
    {"device": "leave"}
    {"device": "return"}            {"returned": true}
    {"ask": "halted_s"}             {"halted_s": 1.5}
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from tasks.spec import Phase

CONTROL_FD = "SWEEP_CONTROL_FD"

MESSAGE_LIMIT_BYTES = 4096
"""A longer line is not ours; the guardian drops it rather than keep it."""


class Use(StrEnum):
    """What a worker wants to own its device for."""

    TIME = "time"
    TUNE = "tune"  # to compare candidates of a kernel, by the device's own clock
    WARM = "warm"  # to step what will be timed until it is steady

    @property
    def stops_all(self) -> bool:
        """Whether neighbours that use no more than processors stand still, too."""
        return self is Use.TIME


@dataclass(frozen=True, slots=True)
class Grant:
    """What it took to own the device: seconds waited, and how many neighbours there are. All are paused while it is owned to time."""

    waited_s: float = 0.0
    neighbours: int = 0


class Channel:
    """The worker's end, for one thread; ``exclusive`` is re-entrant, and a block that times may be within one that does not."""

    def __init__(self, connection: socket.socket | None) -> None:
        self._connection = connection
        self._lines = connection.makefile("r", encoding="utf-8") if connection else None
        self._held: list[Use] = []  # for each block entered, the outermost first
        self._grant = Grant()

    @classmethod
    def from_environment(cls) -> Channel:
        """The channel of the guardian that started this process, or a mute one. Processes that this one starts do not inherit it."""
        number = os.environ.pop(CONTROL_FD, None)
        if number is None:
            return cls(None)
        connection = socket.socket(fileno=int(number))
        connection.set_inheritable(False)
        return cls(connection)

    def phase(self, phase: Phase) -> None:
        """Tell the guardian that ``phase`` begins, and with it that phase's deadline."""
        self._send({"phase": phase.value})

    @contextlib.contextmanager
    def exclusive(self, use: Use = Use.TIME) -> Iterator[Grant]:
        """Own the device until the block ends. Unless it is owned to time, neighbours that are off the device go on."""
        more = not self.owns_for(use)
        if more:
            self._grant = self._acquire(use)
        self._held.append(use if more else self._held[-1])
        try:
            yield self._grant
        finally:
            self._held.pop()
            if not self._held:
                self._send({"lease": "release"})
            elif more:
                self._send({"lease": "ease"})

    @contextlib.contextmanager
    def off_device(self) -> Iterator[None]:
        """In the block this worker computes on the processors, and uses the device for moments or when it owns it."""
        self._send({"device": "leave"})
        try:
            yield
        finally:
            self._ask({"device": "return"})

    def owns_for(self, use: Use) -> bool:
        """Whether the device is this worker's now, and as much of the machine as ``use`` asks for."""
        return bool(self._held) and (self._held[-1].stops_all or not use.stops_all)

    def running_s(self, clock: Callable[[], float] = time.monotonic) -> float:
        """``clock`` as it would be if it stood still while this worker is paused or waits to own the device.

        A pause between the two readings of one moment would count for or against it: then both are taken again.
        """
        halted_s = self._halted_s()
        while True:
            now = clock()
            before, halted_s = halted_s, self._halted_s()
            if halted_s == before:
                return now - halted_s

    def _halted_s(self) -> float:
        answer = self._ask({"ask": "halted_s"})
        return float(answer["halted_s"]) if answer else 0.0

    def _acquire(self, use: Use) -> Grant:
        answer = self._ask({"lease": use.value})
        return Grant(waited_s=float(answer["waited_s"]), neighbours=int(answer["neighbours"])) if answer else Grant()

    def _ask(self, message: dict[str, Any]) -> dict[str, Any] | None:
        self._send(message)
        if self._lines is None:
            return None
        line = self._lines.readline()
        if not line:
            raise ConnectionError("the guardian closed the control channel")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _send(self, message: dict[str, Any]) -> None:
        if self._connection is not None:
            self._connection.sendall((json.dumps(message) + "\n").encode())


class GuardianEnd:
    """The guardian's end: never blocks, and takes anything that a worker may write."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._connection = connection
        self._buffer = b""

    def fileno(self) -> int:
        return self._connection.fileno()

    def receive(self) -> list[dict[str, Any]] | None:
        """Messages that have arrived; what is not a JSON object is dropped. None once the worker has closed its end."""
        try:
            data = self._connection.recv(65536)
        except BlockingIOError:
            return []
        except ConnectionError:
            return None
        if not data:
            return None
        *lines, rest = (self._buffer + data).split(b"\n")
        self._buffer = rest if len(rest) <= MESSAGE_LIMIT_BYTES else b""
        return [message for line in lines if (message := _parse(line)) is not None]

    def answer(self, message: dict[str, Any]) -> None:
        """Send ``message``; a worker that is gone, or does not read, misses it."""
        with contextlib.suppress(OSError):
            self._connection.send((json.dumps(message) + "\n").encode())

    def grant(self, grant: Grant) -> None:
        self.answer({"waited_s": grant.waited_s, "neighbours": grant.neighbours})

    def close(self) -> None:
        self._connection.close()


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        message = json.loads(line) if len(line) <= MESSAGE_LIMIT_BYTES else None
    except (ValueError, RecursionError):
        return None
    return message if isinstance(message, dict) else None

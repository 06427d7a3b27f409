"""What a worker prints, within bounds: the first and the last of it, fit to be shown. Standard library only."""

from __future__ import annotations

import re

HEAD_BYTES = 64 * 1024
TAIL_BYTES = 192 * 1024
SHOWN_BYTES = 8 * 1024

# Sequences that move the cursor, set colours or titles; then what is left of control and bidirectional override characters.
_SEQUENCE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -/]*[0-~])")
_UNSAFE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class CappedLog:
    """Keeps the first ``HEAD_BYTES`` and the last ``TAIL_BYTES`` of what it is fed."""

    def __init__(self, head_bytes: int = HEAD_BYTES, tail_bytes: int = TAIL_BYTES) -> None:
        self._head_bytes = head_bytes
        self._tail_bytes = tail_bytes
        self._head = bytearray()
        self._tail = bytearray()
        self._fed = 0

    def feed(self, data: bytes) -> None:
        self._fed += len(data)
        room = self._head_bytes - len(self._head)
        self._head += data[:room]
        self._tail += data[room:]
        if len(self._tail) > 2 * self._tail_bytes:  # not every time: a cut costs a copy
            self._cut()

    def text(self) -> str:
        """All that was kept, with a line that says how many bytes were cut where some were."""
        self._cut()
        cut = self._fed - len(self._head) - len(self._tail)
        between = f"\n[... {cut} bytes cut ...]\n".encode() if cut else b""
        return printable(bytes(self._head) + between + bytes(self._tail))

    def tail(self, size_bytes: int = SHOWN_BYTES) -> str:
        """The last ``size_bytes``, which must not exceed the bytes kept."""
        self._cut()
        return printable(bytes((self._head + self._tail)[-size_bytes:]))

    def _cut(self) -> None:
        del self._tail[: max(0, len(self._tail) - self._tail_bytes)]


def printable(data: bytes | str) -> str:
    """``data`` as text that cannot confuse a terminal: no control characters but newline and tab, no escape sequences."""
    text = data.decode("utf-8", errors="replace") if isinstance(data, bytes) else data
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return _UNSAFE.sub("", _SEQUENCE.sub("", text))

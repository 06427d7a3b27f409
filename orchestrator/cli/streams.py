"""stdout and stderr whose readers may go: ``sweep run ... 2>&1 | head -1`` finishes its sweep, and exits with its own status.

What is written to a closed pipe is dropped, whoever writes it: a command, rich, a logging handler, Ray's log lines.
"""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class _Pipe(io.FileIO):
    """A file descriptor that becomes the null device when its reader has gone."""

    unread = False

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            self.unread = True
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())  # for whatever writes to the descriptor itself, too
            os.close(null)
            return memoryview(data).nbytes


def outlive_readers() -> None:
    """Let no closed pipe end this process. Streams that somebody has put in place of the real ones stay."""
    if sys.stdout is sys.__stdout__ and sys.stdout is not None:
        sys.stdout = _guarded(sys.stdout)
    if sys.stderr is sys.__stderr__ and sys.stderr is not None:
        sys.stderr = _guarded(sys.stderr)


def is_read(stream: TextIO) -> bool:
    """Whether anybody may still read what is written to ``stream``, for commands that would write for ever."""
    raw = getattr(getattr(stream, "buffer", None), "raw", None)
    return not (isinstance(raw, _Pipe) and raw.unread)


def _guarded(stream: TextIO) -> TextIO:
    stream.flush()
    unbuffered = getattr(stream, "write_through", False)
    lines = bool(unbuffered or getattr(stream, "line_buffering", False))
    pipe = io.BufferedWriter(_Pipe(stream.fileno(), "w", closefd=False))
    return io.TextIOWrapper(pipe, stream.encoding, stream.errors, line_buffering=lines)

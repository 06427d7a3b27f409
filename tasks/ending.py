"""How a process ends that does not take itself apart. Standard library only.

An interpreter at its end lets go of every module and looks for garbage among all objects: with torch and the model libraries that is two
seconds of a core, for memory that the system takes back at once.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from typing import NoReturn

_libc = ctypes.CDLL(None)


def leave(program: Callable[[], int], *, whole_end: bool = True) -> NoReturn:
    """Run ``program`` and end this process with its exit status; nothing that it raises gets to the frames above.

    With ``whole_end`` the process waits for its threads first, and does what was registered for an interpreter's end.
    """
    status = 1
    try:
        status = _run(program)
        if whole_end:  # an interpreter's own order, which has no public name
            threading._shutdown()  # type: ignore[attr-defined]  # noqa: SLF001
            atexit._run_exitfuncs()  # noqa: SLF001
    except BaseException:  # noqa: BLE001 - as it says
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            flush()
        os._exit(status)


def _run(program: Callable[[], int]) -> int:
    """Its exit status, as an interpreter would make it of what it returns or raises."""
    try:
        return program()
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return (end.code or 0) & 0xFF
        print(end.code, file=sys.stderr)  # noqa: T201 - where an interpreter says it
        return 1
    except KeyboardInterrupt:
        traceback.print_exc()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
        return 128 + signal.SIGINT
    except BaseException:  # noqa: BLE001 - as above
        traceback.print_exc()
        return 1


def flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
    _libc.fflush(None)  # of C code, whose buffers no ``os._exit`` empties

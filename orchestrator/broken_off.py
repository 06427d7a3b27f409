"""What is owed to a run that is broken off outside its driver's loop, by an error, by Ctrl-C or by SIGTERM."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from orchestrator.errors import ExitCode, RunLockedError, StoreError
from orchestrator.record import RunState
from orchestrator.store import RunStore

log = logging.getLogger(__name__)


@contextmanager
def resumable(command: str | None) -> Iterator[None]:
    """Whatever breaks off the run says how to go on: by ``command``, as a note; None while there is no run to go on with."""
    try:
        yield
    except BaseException as error:
        note = f"to go on: {command}"
        if command and note not in getattr(error, "__notes__", ()):
            error.add_note(note)
        raise


@contextmanager
def marked_when_broken_off(run_store: RunStore) -> Iterator[None]:
    """The record of a run that an error ends says so, if it can be written."""
    try:
        yield
    except BaseException as error:
        code = ExitCode.INTERRUPTED if isinstance(error, KeyboardInterrupt) else getattr(error, "exit_code", ExitCode.BUG)
        try:
            run_store.set_state(RunState.INTERRUPTED if code is ExitCode.INTERRUPTED else RunState.INCOMPLETE, int(code))
        except RunLockedError:
            pass  # it is another driver's by now, and so is its record
        except StoreError as unwritten:
            log.error("run %s is not marked as ended: %s", run_store.run_id, unwritten)
        raise


@contextmanager
def sigterm_is_ctrl_c() -> Iterator[None]:
    """Outside the driver's loop, where signals drain, they end the run alike. To be entered after Ray, which sets its own."""
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)

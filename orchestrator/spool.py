"""The spool: finished outcomes that supervisors leave as files, so that a result survives the driver that asked for it.

One JSON file per attempt, an encoded ``Outcome``, published by atomic rename as ``SLUG.ATTEMPT.json``. A spool is a local or shared
folder; a run in an object store has none.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable
from pathlib import Path

from orchestrator.files import explain
from orchestrator.parts import CORRUPT
from tasks.spec import Outcome, decode
from tasks.spool import PARTIAL, spool_name

ABANDONED_S = 600.0
"""A file that has been half-written for this long has lost its writer."""

log = logging.getLogger(__name__)


class Spool:
    """The spool folder of one run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def create(self) -> None:
        """Make the folder; supervisors write only into one that is there."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise explain("create", str(self.folder), error) from error

    def find(self, task_id: str, attempt: int) -> Outcome | None:
        """What this attempt has left; None if there is nothing."""
        path = self.folder / spool_name(task_id, attempt)
        return _read(path) if path.exists() else None

    def outcomes(self) -> list[Outcome]:
        """Every outcome found, by task and attempt. A file that holds none is renamed to ``*.corrupt`` and named in the log."""
        found = [outcome for path in sorted(self.folder.glob("*.json")) if (outcome := _read(path))]
        return sorted(found, key=lambda outcome: (outcome.task_id, outcome.attempt))

    def clear(self, attempts: Iterable[tuple[str, int]]) -> None:
        """Remove the files of these attempts, given as (task_id, attempt), and of earlier ones; one that is not there is no error."""
        for task_id, last in attempts:
            for attempt in range(1, last + 1):
                _remove(self.folder / spool_name(task_id, attempt))

    def clear_abandoned(self) -> None:
        """Remove what guardians that died while they wrote have left."""
        for path in self.folder.glob(f"*{PARTIAL}"):
            try:
                abandoned = time.time() - path.stat().st_mtime > ABANDONED_S
            except FileNotFoundError:
                continue
            if abandoned:
                _remove(path)


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise explain("remove", str(path), error) from error


def _read(path: Path) -> Outcome | None:
    try:
        return decode(Outcome, json.loads(path.read_bytes()))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        aside = path.with_name(path.name + CORRUPT)
        log.warning("%s holds no outcome (%.200s) and is set aside as %s", path, error, aside.name)
        path.replace(aside)
        return None

"""The spool: finished outcomes that supervisors leave as files, so that a result survives the driver that asked for it.

One JSON file per attempt, an encoded ``Outcome``, published by atomic rename as ``SLUG.ATTEMPT.json``. A spool is a local or shared
folder; a run in an object store has none.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from pathlib import Path

from orchestrator.files import explain
from orchestrator.parts import CORRUPT
from tasks.spec import Outcome, decode, slug

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

    def outcomes(self) -> list[Outcome]:
        """Every outcome found, by task and attempt. A file that holds none is renamed to ``*.corrupt`` and named in the log."""
        found = [outcome for path in sorted(self.folder.glob("*.json")) if (outcome := _read(path))]
        return sorted(found, key=lambda outcome: (outcome.task_id, outcome.attempt))

    def clear(self, attempts: Iterable[tuple[str, int]]) -> None:
        """Remove the files of these attempts, given as (task_id, attempt); one that is not there is no error."""
        for task_id, attempt in attempts:
            path = self.folder / f"{slug(task_id)}.{attempt}.json"
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

"""Where a driver's rows go: the run's store, its spool, which is kept to what is not stored, and its journal."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from orchestrator.control import stop_requests
from orchestrator.errors import StoreError
from orchestrator.journal import Journal
from orchestrator.policy import Policy
from orchestrator.store import RunStore
from orchestrator.sweep import Sweep
from tasks.spec import Outcome, TaskSpec

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StoreSink:
    """The run's store, its spool kept to what is not stored, and its journal. ``first_attempts``: the first ones of this driver."""

    run_store: RunStore
    journal: Journal
    policy: Policy
    first_attempts: Mapping[str, int]

    def tell(self, sweep: Sweep, decided: Sequence[str]) -> None:
        try:
            self.journal.stories((task_id, sweep.story(task_id)) for task_id in decided)
            self.journal.standing(sweep.active())
        except StoreError as error:  # a run whose story cannot be told still has its results
            log.warning("the journal of run %s cannot be written: %s", self.run_store.run_id, error)

    def find(self, task_id: str, attempt: int) -> Outcome | None:
        for number in range(attempt, self.first_attempts[task_id] - 1, -1):
            try:
                outcome = self.run_store.find_spooled(task_id, number)
            except OSError as error:
                log.warning("what attempt %d of %s may have left cannot be read: %s", number, task_id, error)
                continue
            # An earlier attempt that was given up may have come to its end all the same; only a verdict is as good as a new attempt.
            if outcome is not None and outcome.task_id == task_id and (number == attempt or self.policy.is_verdict(outcome)):
                return outcome
        return None

    def append(self, batch: Sequence[tuple[TaskSpec, Outcome]]) -> None:
        store_rows(self.run_store, batch)

    def refresh_lock(self) -> None:
        self.run_store.refresh_lock()

    def stop_requests(self) -> int:
        try:
            return stop_requests(self.run_store.files)
        except StoreError as error:  # whether anybody asked is not worth a run
            log.warning("%s", error)
            return 0


def store_rows(run_store: RunStore, batch: Sequence[tuple[TaskSpec, Outcome]]) -> None:
    """Make the rows of ``batch`` durable, and forget what the spool has of these tasks."""
    run_store.append(batch)
    clear_spool(run_store, [outcome for _, outcome in batch])


def clear_spool(run_store: RunStore, outcomes: Sequence[Outcome]) -> None:
    """Remove these outcomes from the spool, and those of earlier attempts."""
    try:
        run_store.clear_spool((outcome.task_id, outcome.attempt) for outcome in outcomes)
    except StoreError as error:  # what is stored is not stored once more: a resume leaves it where it is
        log.warning("%s", error)

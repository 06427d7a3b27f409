"""What earlier drivers left of a run: which one a resume goes on with, what of it stays, its lock, and results that nobody stored."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

from rich.console import Console

from orchestrator.control import clear_stop
from orchestrator.errors import RunLockedError, UsageError
from orchestrator.manifest import LoadedManifest
from orchestrator.policy import Policy
from orchestrator.record import PlannedTask, RunState
from orchestrator.request import RunRequest
from orchestrator.room import Room
from orchestrator.sharing import roomier
from orchestrator.sink import clear_spool, store_rows
from orchestrator.store import RunStore, Store
from orchestrator.sweep import SweepTask
from tasks.spec import Status, TaskSpec

LOCK_POLL_S = 2.0

RERUN_ALWAYS = frozenset({Status.INFRA_ERROR})
"""What a resume runs again without being asked: no verdict on the model, only on the machinery."""


def find(store: Store, request: RunRequest, loaded: LoadedManifest) -> RunStore | None:
    """The run that ``--resume`` goes on with; None to start a new one, also where there is none yet to go on with.

    Raises:
        UsageError: it is of another kind, or its manifest has changed.
    """
    if not request.resume:
        return None
    wanted = [
        record
        for record in store.runs()
        if record.run_id == request.run_id
        or (
            request.run_id is None
            and (record.manifest, record.aa, record.environment) == (loaded.manifest.name, request.aa, loaded.environment)
        )
    ]
    if not wanted:
        return None
    record = wanted[-1]
    if record.aa != request.aa:
        raise UsageError(f"run {record.run_id} was started {'with' if record.aa else 'without'} --aa: resume it likewise")
    if record.manifest_digest != loaded.digest:
        raise UsageError(
            f"{request.manifest} has changed since run {record.run_id} was planned: its rows would not be comparable. "
            "Start a new run without --resume, or undo the change"
        )
    return store.resolve(record.run_id)


def check_named(parts: Iterable[str], plan: Sequence[PlannedTask]) -> None:
    """Raises: UsageError, if a task that is to be run again is not of this plan."""
    for part in sorted(parts):
        if not any(part in planned.task.task_id for planned in plan):
            statuses = ", ".join(sorted(Status))
            raise UsageError(f"--rerun {part}: no task of this run has that in its id, and it is no status; statuses are: {statuses}")


def finished(earlier: RunStore, request: RunRequest) -> dict[str, str]:
    """Digests of the tasks that stay as they are, by ``task_id``."""
    digests = {planned.task.task_id: planned.task.digest for planned in earlier.plan()}
    rows = earlier.rows(("task_id", "status")).to_pylist()
    return {row["task_id"]: digests[row["task_id"]] for row in rows if not _again(request, row["task_id"], Status(row["status"]))}


def reopen(run_store: RunStore, console: Console, lock_wait_s: float) -> None:
    """Take over a run: its lock, which another driver may hold for up to ``lock_wait_s``, and what a dead driver left behind.

    Raises:
        RunLockedError: it holds it still.
    """
    _acquire(run_store, console, lock_wait_s)
    clear_stop(run_store.files)
    run_store.set_state(RunState.RUNNING)
    console.print(f"going on with run {run_store.run_id}", highlight=False)


def _acquire(run_store: RunStore, console: Console, wait_s: float) -> None:
    """Take the run's lock; a driver that died on another machine holds it until its silence has lasted long enough."""
    give_up_s, told = time.monotonic() + wait_s, False
    while True:
        try:
            run_store.acquire()
        except RunLockedError as error:
            if time.monotonic() >= give_up_s:
                raise
            if not told:
                console.print(f"{error}; waiting up to {wait_s:.0f} s", soft_wrap=True, highlight=False)
                told = True
            time.sleep(min(LOCK_POLL_S, wait_s))
        else:
            return


def store_orphans(run_store: RunStore, plan: Sequence[PlannedTask], policy: Policy, console: Console) -> None:
    """Results that finished while no driver was there to store them. What policy would try again is left to be run again."""
    specs = {planned.task.task_id: planned.task for planned in plan}
    found = run_store.ingest_orphans()
    final = {
        outcome.task_id: outcome
        for outcome in found  # of several attempts the last counts
        if policy.retry(outcome, _shares(specs[outcome.task_id]), (outcome.failure_class,) if outcome.failure_class else ()) is None
    }
    if final:
        store_rows(run_store, [(specs[task_id], outcome) for task_id, outcome in final.items()])
        console.print(f"stored {len(final)} result(s) that the last driver did not live to store", highlight=False)
    clear_spool(run_store, found)


def sweep_tasks(run_store: RunStore, plan: Sequence[PlannedTask], asked: RunRequest, room: Room) -> list[SweepTask]:
    """The plan for the scheduler: what has its row is done, unless it is to be run again."""
    stored = {row["task_id"]: row for row in run_store.rows(("task_id", "status", "attempt")).to_pylist()}
    tasks = []
    for planned in plan:
        row = stored.get(planned.task.task_id)
        status = Status(row["status"]) if row else None
        keep = status is not None and not _again(asked, planned.task.task_id, status)
        # A later attempt wins over the row that is there.
        first = row["attempt"] + 1 if row and not keep else 1
        done, shares = status if keep else None, _shares(planned.task)
        request = room.request(planned.task.resources) if planned.skip_reason is None else 0
        tasks.append(
            SweepTask(
                *(planned.task.task_id, planned.task.deadlines, planned.skip_reason, done, first, shares, request),
                small=_small(planned.task),
            )
        )
    return tasks


def _again(request: RunRequest, task_id: str, status: Status) -> bool:
    return status in request.rerun | RERUN_ALWAYS or any(part in task_id for part in request.rerun_tasks)


def _shares(task: TaskSpec) -> bool:
    """Whether other tasks may be placed on the device beside it."""
    return task.resources.device == "cuda" and task.resources.num_gpus < 1


def _small(task: TaskSpec) -> bool:
    """Whether they may be even if it asks for more, after it ran out of memory."""
    return _shares(task) and roomier(task.resources.num_gpus) < 1

"""``sweep stop``: end a run that is driven elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Annotated

import typer

from orchestrator.errors import UsageError


def stop(
    run: Annotated[str, typer.Argument(help="A run id, the beginning of one, or 'latest'. Example: sweep stop latest")],
    results: Annotated[str, typer.Option(help="The results store: a folder or an object-store URI.")] = "results",
    address: Annotated[str | None, typer.Option(help="Stop a submitted run through the cluster's head, http://HEAD:8265.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Do not wait for what runs.")] = False,
) -> None:
    """Launch nothing more and let what runs come to its end; called again, stop at once. Either way the run can be resumed.

    The driver reads the request from the results store within seconds. With --address nothing of the store needs to be visible here.
    """
    sys.stdout.write((_through_head(run, address, force) if address else _through_store(run, results, force)) + "\n")


def _through_store(run: str, results: str, force: bool) -> str:
    from orchestrator.control import FORCE, request_stop
    from orchestrator.record import RunState
    from orchestrator.store import Store

    run_store = Store(results).resolve(run)
    record, holder = run_store.record, run_store.holder()
    if record.state is not RunState.RUNNING:
        return f"run {record.run_id} is {record.state.value}: there is nothing to stop"
    if holder is None or holder.is_dead(time.time()):
        return f"run {record.run_id} has no driver: it died; a resume goes on with the run"
    forced = request_stop(run_store.files, force=force) >= FORCE
    how = "to stop at once" if forced else "to launch nothing more; once more stops what runs"
    return f"asked the driver of {record.run_id} ({holder.host} pid {holder.pid}) {how}"


def _through_head(run: str, address: str, force: bool) -> str:
    from orchestrator.jobs import Head
    from orchestrator.submit import jobs_of, stop

    head = Head.find(address)
    jobs = jobs_of(head, run)
    if not jobs:
        raise UsageError(f"the cluster at {address} knows no run {run!r}; `sweep list --address {address}` shows those that it knows")
    if jobs[-1].over:
        return f"{jobs[-1].submission_id} {jobs[-1].describe()}: there is nothing to stop"
    return stop(head, jobs[-1], force=force)

"""``sweep stop``: end a run that is driven elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Annotated

import typer

from orchestrator.errors import InfrastructureError


def stop(
    run: Annotated[str, typer.Argument(help="A run id, the beginning of one, or 'latest'. Example: sweep stop latest")],
    results: Annotated[str, typer.Option(help="The results store: a folder or an object-store URI.")] = "results",
    address: Annotated[str | None, typer.Option(help="Stop a submitted run through the cluster's head, http://HEAD:8265.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Do not wait for what runs.")] = False,
    driver: Annotated[bool, typer.Option("--driver", hidden=True, help="A run without a driver to ask is a failure.")] = False,
) -> None:
    """Launch nothing more and let what runs come to its end; called again, stop at once. Either way the run can be resumed.

    The driver reads the request from the results store within seconds. With --address nothing of the store needs to be visible here.
    """
    sys.stdout.write((_through_head(run, address, force) if address else _through_store(run, results, force, driver)) + "\n")


def _through_store(run: str, results: str, force: bool, driver: bool) -> str:
    from orchestrator.control import FORCE, request_stop
    from orchestrator.record import RunState
    from orchestrator.store import Store

    run_store = Store(results).resolve(run)
    record, holder = run_store.record, run_store.holder()
    if record.state is not RunState.RUNNING:
        return _nothing(f"run {record.run_id} is {record.state.value}: there is nothing to stop", driver)
    if holder is None or holder.is_dead(time.time()):
        return _nothing(f"run {record.run_id} has no driver: it died; a resume goes on with the run", driver)
    forced = request_stop(run_store.files, force=force) >= FORCE
    how = "to stop at once" if forced else "to launch nothing more; once more stops what runs"
    return f"asked the driver of {record.run_id} ({holder.host} pid {holder.pid}) {how}"


def _nothing(said: str, driver: bool) -> str:
    if driver:  # whoever asks knows that one is on its way
        raise InfrastructureError(said)
    return said


def _through_head(run: str, address: str, force: bool) -> str:
    from orchestrator.beside import stop
    from orchestrator.cli.head import find_head
    from orchestrator.submit import find_run, jobs_of

    head = find_head(address)
    job = jobs_of(head, find_run(head, run))[-1]
    if job.over:
        return f"{job.submission_id} {job.describe()}: there is nothing to stop"
    return stop(head, job, force=force)

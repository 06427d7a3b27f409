"""``sweep submit``: run a manifest on a remote cluster, through Ray Jobs."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from orchestrator.jobs import Head, Job
    from orchestrator.manifest import LoadedManifest

EPILOG = (
    "Examples: sweep submit manifests/pt2.yaml --address http://head:8265 --results s3://bucket/sweeps --wait | ... --kuberay > job.yaml"
)


def submit(
    manifest: Annotated[Path, typer.Argument(help="The manifest. " + EPILOG)],
    address: Annotated[str | None, typer.Option(help="The address of the head's dashboard, for example http://HEAD:8265.")] = None,
    results: Annotated[
        str | None,
        typer.Option(help="The results store as the cluster sees it: a URI, or a path that all nodes share. Default: submit.store."),
    ] = None,
    run_id: Annotated[str | None, typer.Option(help="Name of the run. Default: made from the manifest's content.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Follow the run to its end and exit with its status.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run whose job has ended; start it if there is none.")] = False,
    kuberay: Annotated[bool, typer.Option("--kuberay", help="Print a KubeRay RayJob with a cluster of its own, and send nothing.")] = False,
) -> ExitCode:
    """Send the project and a manifest to a cluster and start its driver there. Submitting twice is safe: a run has one driver.

    Exit status: 0 submitted; with --wait that of the run: 0 all passed, 3 some did not, 4 infrastructure, 130 stopped.
    """
    from orchestrator import submit as submission
    from orchestrator.manifest import load_manifest
    from orchestrator.store import check_run_id

    loaded = load_manifest(manifest)
    store = submission.results_on_cluster(loaded, results)
    run = run_id or submission.default_run_id(loaded)
    check_run_id(run)
    if kuberay:
        from orchestrator.kuberay import rayjob

        sys.stdout.write(rayjob(loaded, store, run))
        return ExitCode.PASSED
    if address is None:
        raise UsageError("--address http://HEAD:8265 says which cluster; --kuberay describes one instead")
    head = _head(address)
    job = _hand_over(head, loaded, store, run, resume)
    words = ["sweep", "submit", str(manifest), "--address", address, "--results", store, "--run-id", run]
    _say(f"to follow: {shlex.join([*words, '--wait'])}  or: sweep status {run} --address {address} --results {store} --watch")
    _say(f"to stop:   sweep stop {run} --address {address}")
    _say(f"to resume: {shlex.join([*words, '--resume'])}")
    sys.stdout.write(f"{job}\n")
    sys.stdout.flush()
    return _wait(head, job) if wait else ExitCode.PASSED


def _head(address: str) -> Head:
    from orchestrator.jobs import Head

    head = Head.find(address)
    if warning := head.warning():
        _say(f"WARNING: {warning}")
    return head


def _hand_over(head: Head, loaded: LoadedManifest, store: str, run: str, resume: bool) -> str:
    """The name of the job that drives the run: a new one, or the one that is there."""
    from orchestrator import submit as submission

    there = submission.jobs_of(head, run)
    if there and (there[-1].metadata or {}).get("manifest_digest") != loaded.digest:
        raise UsageError(f"run {run} on this cluster is of another manifest, or of an earlier version of it: choose another --run-id")
    if there and not (resume and there[-1].over):
        return _already(there[-1], run)
    job = submission.prepare(loaded, store, run, len(there) + 1, resume=resume)
    for line in job.package.describe():
        _say(line)
    if job.settings.image:
        _say("submit.image is for --kuberay: this cluster's nodes run in the image that they have")
    if not submission.submit(head, job):
        _say(f"{job.submission_id} is there already: somebody else has just submitted it")
    else:
        _say(f"submitted {job.submission_id}; rows go to {store.rstrip('/')}/{run}")
    return job.submission_id


def _already(job: Job, run: str) -> str:
    ended = "; --resume goes on with it, another --run-id starts anew" if job.over else ""
    _say(f"run {run} is there already, as {job.submission_id}: {job.describe()}{ended}")
    return job.submission_id


def _wait(head: Head, submission_id: str) -> ExitCode:
    from orchestrator import jobs

    try:
        job = jobs.follow(head, submission_id, _show, _say)
    except KeyboardInterrupt:
        _say("the run goes on without you; the same command follows it again")
        raise
    if job.status == jobs.FAILED and job.exit_code is None:
        _say(job.message)
    return jobs.exit_code(job)


def _show(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


def _say(line: str) -> None:
    _show(f"{line}\n")

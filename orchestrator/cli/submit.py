"""``sweep submit``: run a manifest on a remote cluster, through Ray Jobs."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.head import find_head
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
    environment: Annotated[str | None, typer.Option(help="Only this one of the manifest's environments. Default: a run in each.")] = None,
    start_timeout: Annotated[
        float | None, typer.Option(min=1, help="With --wait: seconds until a job that does not begin is given up. Default: 1200.")
    ] = None,
    log_json: Annotated[bool, typer.Option("--log-json", help="The driver's progress as JSON, one object per line.")] = False,
    kuberay: Annotated[bool, typer.Option("--kuberay", help="Print a KubeRay RayJob with a cluster of its own, and send nothing.")] = False,
) -> ExitCode:
    """Send the project and a manifest to a cluster and start its driver there. Submitting twice is safe: a run has one driver.

    Exit status: 0 submitted; with --wait that of the run: 0 all passed, 3 some did not, 4 infrastructure, 130 stopped. Of several runs, one
    in each environment of the manifest, the gravest.
    """
    from orchestrator import submit as submission
    from orchestrator.environments import run_name, selected
    from orchestrator.manifest import load_manifest
    from orchestrator.store import check_run_id

    if start_timeout is not None and not wait:
        raise UsageError("--start-timeout is about waiting: add --wait")
    loaded = load_manifest(manifest)
    store = submission.results_on_cluster(loaded, results)
    runs = {run_name(run_id, each) if run_id else submission.default_run_id(each): each for each in selected(loaded, environment)}
    for run in runs:
        check_run_id(run)
    if kuberay:
        from orchestrator.kuberay import rayjob

        sys.stdout.write("---\n".join(rayjob(each, store, run, log_json=log_json) for run, each in runs.items()))
        _say_compare(list(runs), store)
        return ExitCode.PASSED
    if address is None:
        raise UsageError("--address http://HEAD:8265 says which cluster; --kuberay describes one instead")
    _refuse_images(loaded)
    head = find_head(address)
    jobs = [_hand_over(head, each, store, run, resume, log_json) for run, each in runs.items()]
    words = ["sweep", "submit", str(manifest), "--address", address, "--results", store]
    words += ["--run-id", run_id or next(iter(runs))] if run_id or not loaded.manifest.environments else []
    words += ["--environment", environment] if environment else []
    _say(f"to follow: {shlex.join([*words, '--wait'])}")
    for run in runs:
        _say(f"           sweep status {run} --address {address} --results {store} --watch")
        _say(f"to stop:   sweep stop {run} --address {address}")
    _say(f"to resume: {shlex.join([*words, '--resume'])}")
    _say_compare(list(runs), store)
    sys.stdout.write("".join(f"{job}\n" for job in jobs))
    sys.stdout.flush()
    return _wait(head, jobs, start_timeout) if wait else ExitCode.PASSED


def _say_compare(runs: list[str], store: str) -> None:
    for run in runs[1:]:
        _say(f"to compare, once both are over: {shlex.join(['sweep', 'compare', runs[0], run, '--results', store])}")


def _refuse_images(loaded: LoadedManifest) -> None:
    """A cluster that runs has its image; runs that differ in nothing else would be compared for nothing."""
    named = [name for name, environment in loaded.manifest.environments.items() if environment.image]
    if named:
        raise UsageError(
            f"environments.{named[0]}.image: Ray cannot run a job in an image and send it code, so images are for --kuberay; on a "
            "cluster that is there use pip, uv or env_vars"
        )
    if loaded.manifest.submit and loaded.manifest.submit.image:
        _say("submit.image is for --kuberay: this cluster's nodes run in the image that they have")


def _hand_over(head: Head, loaded: LoadedManifest, store: str, run: str, resume: bool, log_json: bool) -> str:
    """The name of the job that drives the run: a new one, or the one that is there."""
    from orchestrator import submit as submission

    there = submission.jobs_of(head, run)
    if there:
        _refuse_another(there[-1], loaded, store, run)
    if there and not (resume and there[-1].over):
        return _already(there[-1], run)
    number = submission.number_of(there[-1].submission_id, run) + 1 if there else 1
    job = submission.prepare(loaded, store, run, number, resume=resume, log_json=log_json)
    for line in job.package.describe():
        _say(line)
    if not submission.submit(head, job):
        _say(f"{job.submission_id} is there already: somebody else has just submitted it")
    else:
        _say(f"submitted {job.submission_id}; rows go to {store.rstrip('/')}/{run}")
    return job.submission_id


def _refuse_another(job: Job, loaded: LoadedManifest, store: str, run: str) -> None:
    metadata = job.metadata or {}
    if metadata.get("manifest_digest") != loaded.digest:
        raise UsageError(f"run {run} on this cluster is of another manifest, or of an earlier version of it: choose another --run-id")
    if metadata.get("results", "").rstrip("/") != store.rstrip("/"):
        raise UsageError(
            f"run {run} on this cluster has its rows in {metadata.get('results')}: give --results so, or choose another --run-id"
        )


def _already(job: Job, run: str) -> str:
    ended = "; --resume goes on with it, another --run-id starts anew" if job.over else ""
    _say(f"run {run} is there already, as {job.submission_id}: {job.describe()}{ended}")
    return job.submission_id


def _wait(head: Head, submission_ids: list[str], start_s: float | None) -> ExitCode:
    from orchestrator import following
    from orchestrator.jobs import FAILED

    codes = []
    try:
        for submission_id in submission_ids:
            job = following.follow(head, submission_id, _show, _say, start_s or following.START_S)
            if job.status == FAILED and job.exit_code is None:
                _say(job.message)
            codes.append(following.exit_code(job))
    except KeyboardInterrupt:
        _say("the run goes on without you; the same command follows it again")
        raise
    return following.worst(codes)


def _show(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


def _say(line: str) -> None:
    _show(f"{line}\n")

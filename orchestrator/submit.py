"""A run on a remote cluster through Ray Jobs: what is submitted, and under which name.

The driver runs on the cluster, as ``sweep run`` in a job of its own, so a run does not depend on who submitted it. The job's name is made
from the run id, and Ray takes a name once: submitting twice starts one driver. A run is continued by a job with the next number.
"""

from __future__ import annotations

import math
import os
import shlex
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.environments import run_name
from orchestrator.errors import InfrastructureError, UsageError
from orchestrator.fields import Submit
from orchestrator.files import CREDENTIALS
from orchestrator.jobs import Head, Job
from orchestrator.manifest import LoadedManifest
from orchestrator.package import Package, pack, write
from orchestrator.secrecy import holds_credentials

GRACE_VARIABLE = "RAY_JOB_STOP_WAIT_TIME_S"
"""Ray's own name for the seconds between SIGTERM and SIGKILL; it waits 3 if not told."""

AGENT_S = 60.0
"""How long a head that has just started may take until it accepts jobs."""

NO_AGENT = (
    "the head at {address} has no agent that takes jobs. Another Ray on its machine may hold the agent's port: start the head with "
    "`ray start --head --dashboard-agent-listen-port 0 ...`"
)

LOCK_WAIT_S = 180
"""How long a resumed driver waits for the lock of one that died elsewhere: somewhat more than the silence after which a lock is stale."""

PLACED = "driver_placed"
"""Marks in a job's metadata that its driver is not simply on the head's node."""


@dataclass(frozen=True, slots=True)
class Submission:
    """One job that drives ``run_id``."""

    run_id: str
    results: str
    submission_id: str
    entrypoint: str
    env: dict[str, Any]  # the runtime environment, without the package
    metadata: dict[str, str]
    settings: Submit
    package: Package


def default_run_id(loaded: LoadedManifest) -> str:
    """The same for the same manifest and environment, so that submitting it twice is one run."""
    return run_name(f"{loaded.manifest.name}-{loaded.digest[:8]}", loaded)


def results_on_cluster(loaded: LoadedManifest, results: str | None) -> str:
    """Where the driver is to put its rows.

    Raises:
        UsageError: nowhere is given, or a place that only means something on this machine, or that holds credentials.
    """
    wanted = results or (loaded.manifest.submit.store if loaded.manifest.submit else None)
    if wanted is None:
        raise UsageError("where do results go? --results URI, or submit.store in the manifest: a URI, or a path that every node shares")
    if holds_credentials(wanted):
        raise UsageError(CREDENTIALS)
    if "://" not in wanted and not Path(wanted).is_absolute():
        raise UsageError(f"--results {wanted}: the driver runs on the cluster; give a URI, or an absolute path that every node shares")
    return wanted


def prepare(
    loaded: LoadedManifest, results: str, run_id: str, number: int = 1, *, resume: bool = False, log_json: bool = False
) -> Submission:
    """The job number ``number`` for a run."""
    settings = loaded.manifest.submit or Submit()
    package = pack(loaded)
    env = runtime_env(settings)
    env["env_vars"] = {GRACE_VARIABLE: str(math.ceil(settings.stop_grace_s))} | settings.env_vars
    words = [
        "python",
        "-m",
        "orchestrator",
        "run",
        *driver_words(loaded, package.manifest, results, run_id, resume=resume, log_json=log_json),
    ]
    metadata = {"run_id": run_id, "results": results, "manifest": loaded.manifest.name, "manifest_digest": loaded.digest}
    return Submission(
        run_id=run_id,
        results=results,
        submission_id=submission_name(run_id, number),
        # exec: Ray's signals are to reach the driver and not a shell.
        entrypoint="exec " + shlex.join(words),
        env=env,
        metadata=metadata | ({PLACED: "yes"} if _placement(settings) else {}),
        settings=settings,
        package=package,
    )


def driver_words(loaded: LoadedManifest, manifest: str, results: str, run_id: str, *, resume: bool, log_json: bool) -> list[str]:
    """The arguments of ``sweep run`` for a driver that works on the cluster, with the manifest at ``manifest`` there."""
    words = [manifest, "--results", results, "--run-id", run_id, "--address", "auto"]
    words += ["--environment", loaded.environment] if loaded.environment else []
    words += ["--resume", "--wait-for-lock", str(LOCK_WAIT_S)] if resume else []
    return words + (["--log-json"] if log_json else [])


def runtime_env(settings: Submit) -> dict[str, Any]:
    """Packages and variables as Ray takes them; empty where the nodes' own will do."""
    wanted: dict[str, Any] = {"env_vars": dict(settings.env_vars), "pip": list(settings.pip), "uv": list(settings.uv)}
    return {name: value for name, value in wanted.items() if value}


def submission_name(run_id: str, number: int) -> str:
    """What Ray calls the job number ``number`` of a run."""
    return f"sweep-{run_id}" if number == 1 else f"sweep-{run_id}.{number}"


def jobs_of(head: Head, run_id: str) -> list[Job]:
    """The jobs that drove or drive a run, in the order of their numbers. People may have deleted some."""
    jobs = {number_of(job.submission_id, run_id): job for job in head.jobs() if run_of(job) == run_id}
    return [jobs[number] for number in sorted(jobs) if number]


def number_of(submission_id: str, run_id: str) -> int:
    """The number of a job in its run; 0 for a name that ``submission_name`` does not give."""
    suffix = submission_id.removeprefix(f"sweep-{run_id}.")
    number = 1 if submission_id == submission_name(run_id, 1) else int(suffix) if suffix.isdecimal() else 0
    return number if number and submission_name(run_id, number) == submission_id else 0


def run_of(job: Job) -> str | None:
    """The run that the job drives; None for a job of another kind."""
    return (job.metadata or {}).get("run_id")


def find_run(head: Head, name: str) -> str:
    """The run called ``name``, as ``Store.resolve`` has it, among those that were submitted to this cluster.

    Raises:
        UsageError: there is none, or several begin so.
    """
    runs = list(dict.fromkeys(run for job in head.jobs() if (run := run_of(job)) and number_of(job.submission_id, run)))  # oldest first
    if name in runs:
        return name
    matches = runs[-1:] if name == "latest" else [run for run in runs if name and run.startswith(name)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise UsageError(f"run {name!r} on the cluster at {head.address} is ambiguous: {', '.join(matches)}")
    raise UsageError(
        f"the cluster at {head.address} knows no run {name!r}; `sweep list --address {head.address}` shows those that it knows"
    )


def submit(head: Head, submission: Submission) -> bool:
    """Hand the job over; False if one of this name is there already, which is then left as it is.

    Raises:
        InfrastructureError: the head takes neither the package nor the job.
    """
    with tempfile.TemporaryDirectory(prefix="sweep-submit-") as folder:
        write(submission.package.files, Path(folder), submission.submission_id)
        try:
            hand_over(
                head,
                entrypoint=submission.entrypoint,
                submission_id=submission.submission_id,
                runtime_env=submission.env | {"working_dir": folder},
                metadata=submission.metadata,
                **_placement(submission.settings),
            )
        except InfrastructureError:
            if head.job(submission.submission_id) is None:
                raise
            return False  # somebody was quicker, or the answer got lost
    return True


def hand_over(head: Head, **job: Any) -> None:
    """``submit_job`` of Ray's client, which packs and sends the working directory; a head that has just started is waited for.

    Raises:
        InfrastructureError: the head takes neither the package nor the job.
    """
    with _as_named():
        try:
            from ray.exceptions import RayError
            from ray.job_submission import JobSubmissionClient
        except ImportError as error:
            raise InfrastructureError("Ray is not installed here: pip install 'compile-sweep[cluster]'") from error
        give_up = time.monotonic() + AGENT_S
        while True:
            try:
                JobSubmissionClient(head.address, headers=head.headers).submit_job(**job)
            except (RuntimeError, ValueError, OSError, RayError) as error:
                if "No available agent" in str(error) and time.monotonic() < give_up:
                    time.sleep(1.0)
                    continue
                raise InfrastructureError(_refusal(head, error)) from error
            return


def _placement(settings: Submit) -> dict[str, Any]:
    """What the driver's node must have, as Ray Jobs takes it; empty for the head's node."""
    wanted = {
        "entrypoint_num_cpus": settings.entrypoint_num_cpus,
        "entrypoint_num_gpus": settings.entrypoint_num_gpus,
        "entrypoint_memory": (settings.entrypoint_memory_mib or 0) * 2**20,
        "entrypoint_resources": settings.entrypoint_resources,
        "entrypoint_label_selector": settings.entrypoint_label_selector,
    }
    return {name: value for name, value in wanted.items() if value}


def _refusal(head: Head, error: Exception) -> str:
    if "No available agent" in str(error):
        return NO_AGENT.format(address=head.address)
    return f"the head at {head.address} does not take the job: {error}"


@contextmanager
def _as_named() -> Iterator[None]:
    """Ray prefers the addresses in these variables to the one it is called with; the user has named one.

    RAY_AUTH_MODE, which Ray reads once when it is imported, would make its client send the token to a head that has not asked for one.
    """
    kept = {name: os.environ.pop(name) for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE") if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)

"""A run on a remote cluster through Ray Jobs: what is submitted, under which name, and how it is stopped.

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

from orchestrator.errors import InfrastructureError, UsageError
from orchestrator.fields import Submit
from orchestrator.jobs import STOPPED, Head, Job
from orchestrator.manifest import LoadedManifest
from orchestrator.package import Package, pack

GRACE_VARIABLE = "RAY_JOB_STOP_WAIT_TIME_S"
"""Ray's own name for the seconds between SIGTERM and SIGKILL; it waits 3 if not told."""

AGENT_S = 60.0
"""How long a head that has just started may take until it accepts jobs."""

NO_AGENT = (
    "the head at {address} has no agent that takes jobs. Another Ray on its machine may hold the agent's port: start the head with "
    "`ray start --head --dashboard-agent-listen-port 0 ...`"
)

CONTROL_S = 60.0
"""How long the small job that asks a driver to stop may take."""


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
    """The same for the same manifest, so that submitting it twice is one run."""
    return f"{loaded.manifest.name}-{loaded.digest[:8]}"


def results_on_cluster(loaded: LoadedManifest, results: str | None) -> str:
    """Where the driver is to put its rows.

    Raises:
        UsageError: nowhere is given, or a place that only means something on this machine.
    """
    wanted = results or (loaded.manifest.submit.store if loaded.manifest.submit else None)
    if wanted is None:
        raise UsageError("where do results go? --results URI, or submit.store in the manifest: a URI, or a path that every node shares")
    if "://" not in wanted and not Path(wanted).is_absolute():
        raise UsageError(f"--results {wanted}: the driver runs on the cluster; give a URI, or an absolute path that every node shares")
    return wanted


def prepare(loaded: LoadedManifest, results: str, run_id: str, number: int = 1, *, resume: bool = False) -> Submission:
    """The job number ``number`` for a run."""
    settings = loaded.manifest.submit or Submit()
    package = pack(loaded)
    words = ["python", "-m", "orchestrator", "run", package.manifest, "--results", results, "--run-id", run_id, "--address", "auto"]
    env: dict[str, Any] = {"env_vars": {GRACE_VARIABLE: str(math.ceil(settings.stop_grace_s))} | settings.env_vars}
    if settings.pip:
        env["pip"] = list(settings.pip)
    return Submission(
        run_id=run_id,
        results=results,
        submission_id=submission_name(run_id, number),
        # exec: Ray's signals are to reach the driver and not a shell.
        entrypoint="exec " + shlex.join(words + (["--resume"] if resume else [])),
        env=env,
        metadata={"run_id": run_id, "results": results, "manifest": loaded.manifest.name, "manifest_digest": loaded.digest},
        settings=settings,
        package=package,
    )


def submission_name(run_id: str, number: int) -> str:
    """What Ray calls the job number ``number`` of a run."""
    return f"sweep-{run_id}" if number == 1 else f"sweep-{run_id}.{number}"


def jobs_of(head: Head, run_id: str) -> list[Job]:
    """The jobs that drove or drive a run, in the order of their numbers."""
    names = {job.submission_id: job for job in head.jobs() if (job.metadata or {}).get("run_id") == run_id}
    numbered = [names.get(submission_name(run_id, number)) for number in range(1, len(names) + 1)]
    return [job for job in numbered if job is not None]


def submit(head: Head, submission: Submission) -> bool:
    """Hand the job over; False if one of this name is there already, which is then left as it is.

    Raises:
        InfrastructureError: the head takes neither the package nor the job.
    """
    try:
        from ray.exceptions import RayError
        from ray.job_submission import JobSubmissionClient
    except ImportError as error:
        raise InfrastructureError("Ray is not installed here: pip install 'compile-sweep[cluster]'") from error
    with tempfile.TemporaryDirectory(prefix="sweep-submit-") as folder, _no_other_address():
        submission.package.write(Path(folder))
        give_up = time.monotonic() + AGENT_S
        while True:
            try:
                _submit_job(JobSubmissionClient(head.address, headers=head.headers), submission, folder)
            except (RuntimeError, ValueError, OSError, RayError) as error:
                if "No available agent" in str(error) and time.monotonic() < give_up:
                    time.sleep(1.0)
                    continue
                if head.job(submission.submission_id) is not None:  # somebody was quicker, or the answer got lost
                    return False
                raise InfrastructureError(_refusal(head, error)) from error
            return True


def _submit_job(client: Any, submission: Submission, folder: str) -> None:
    client.submit_job(
        entrypoint=submission.entrypoint,
        submission_id=submission.submission_id,
        runtime_env=submission.env | {"working_dir": folder},
        metadata=submission.metadata,
        entrypoint_num_cpus=submission.settings.entrypoint_num_cpus or None,
        entrypoint_resources=submission.settings.entrypoint_resources or None,
    )


def _refusal(head: Head, error: Exception) -> str:
    if "No available agent" in str(error):
        return NO_AGENT.format(address=head.address)
    return f"the head at {head.address} does not take the job: {error}"


@contextmanager
def _no_other_address() -> Iterator[None]:
    """Ray prefers the addresses in these variables to the one it is called with; the user has named one."""
    kept = {name: os.environ.pop(name) for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS") if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


def stop(head: Head, job: Job, *, force: bool) -> str:
    """Ask the job's driver to stop; what was done, in words.

    The request goes into the run's folder, by a small job that runs beside the driver and sees the same store: so a drain may take as
    long as what runs. Where that does not work, Ray's own stop is used, which kills the driver after the grace of its submission.

    Raises:
        HeadError: the head takes no requests.
    """
    said = _control(head, job, force) if job.status == "RUNNING" else None
    if said is not None:
        return said
    head.stop(job.submission_id)
    return f"{job.submission_id} was told to stop by Ray, which kills it after its grace; a resume does the rest"


def _control(head: Head, job: Job, force: bool) -> str | None:
    """What ``sweep stop`` says on the cluster; None if it could not ask."""
    metadata = job.metadata or {}
    words = ["python", "-m", "orchestrator", "stop", metadata["run_id"], "--results", metadata["results"], *(["--force"] if force else [])]
    name = f"{job.submission_id}-stop-{time.time_ns()}"
    head.post(
        "/api/jobs/",
        {
            "entrypoint": "exec " + shlex.join(words),
            "submission_id": name,
            "runtime_env": job.runtime_env,
            "metadata": {"stops": job.submission_id},
        },
    )
    give_up = time.monotonic() + CONTROL_S
    while time.monotonic() < give_up:
        asked = head.job(name)
        if asked is not None and asked.over:
            return head.logs(name).strip().splitlines()[-1] if asked.status not in (STOPPED, "FAILED") else None
        time.sleep(0.5)
    return None

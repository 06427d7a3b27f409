"""Small jobs beside a run's driver, on its node: they see the same results store, so that nothing of it need be visible from here."""

from __future__ import annotations

import contextlib
import shlex
import tempfile
import time
from pathlib import Path
from typing import Any

from orchestrator.errors import HeadError, InfrastructureError
from orchestrator.jobs import RUNNING, SUCCEEDED, Head, Job
from orchestrator.package import own_code, write
from orchestrator.submit import PLACED, hand_over

CONTROL_S = 60.0
"""How long such a job may take."""
POLL_S = 0.5


def stop(head: Head, job: Job, *, force: bool) -> str:
    """Ask the job's driver to stop; what was done, in words.

    The request goes into the run's folder: so a drain may take as long as what runs. Where there is no driver yet that would read it, Ray's
    own stop is used, which kills the driver after the grace of its submission.

    Raises:
        HeadError: the head takes no requests.
    """
    said = _request(head, job, force) if job.status == RUNNING else None
    if said is not None:
        return said
    head.stop(job.submission_id)
    return f"{job.submission_id} was told to stop by Ray, which kills it after its grace; a resume does the rest"


def _request(head: Head, job: Job, force: bool) -> str | None:
    """What ``sweep stop`` says on the cluster; None if it could not ask."""
    metadata = job.metadata or {}
    words = ["stop", metadata["run_id"], "--results", metadata["results"], "--driver", *(["--force"] if force else [])]
    name = _name(job, "stop")
    # The package of a running job is still on the cluster, and sending nothing needs no Ray here.
    head.post("/api/jobs/", _description(job, name, words) | {"runtime_env": job.runtime_env})
    ended = _wait(head, name)
    if ended is None or ended.status != SUCCEEDED:
        return None
    lines = head.logs(name).strip().splitlines()
    return lines[-1] if lines else f"asked the driver of {metadata['run_id']} to stop"


def logs(head: Head, job: Job, task_id: str) -> str:
    """What ``sweep logs`` prints on the cluster for a task of the run that ``job`` drove.

    Raises:
        InfrastructureError: it prints nothing of use, or does not come to its end.
    """
    metadata = job.metadata or {}
    words = ["logs", task_id, "--run", metadata["run_id"], "--results", metadata["results"]]
    name = _name(job, "logs")
    software = {key: value for key, value in (job.runtime_env or {}).items() if key in ("pip", "uv", "env_vars")}
    with tempfile.TemporaryDirectory(prefix="sweep-logs-") as folder:
        write(own_code(), Path(folder), name)
        hand_over(head, **_description(job, name, words), runtime_env=software | {"working_dir": folder})
    ended = _wait(head, name)
    if ended is None:
        raise InfrastructureError(f"{name} did not come to its end within {CONTROL_S:.0f} s; `sweep logs` with --results needs no cluster")
    said = head.logs(name)
    if ended.status != SUCCEEDED:
        raise InfrastructureError(said.strip() or f"{name} {ended.describe()}: {ended.message}")
    before, command, after = said.partition(f"Running entrypoint for job {name}:")  # what Ray puts before it, up to the end of that line
    return after.partition("\n")[2] if command else before


def _name(job: Job, what: str) -> str:
    return f"{job.submission_id}-{what}-{time.time_ns()}"


def _description(job: Job, name: str, words: list[str]) -> dict[str, Any]:
    described: dict[str, Any] = {
        "entrypoint": "exec " + shlex.join(["python", "-m", "orchestrator", *words]),
        "submission_id": name,
        "metadata": {"beside": job.submission_id},
    }
    # What placed the driver may be used up by it; its node is known by now.
    placed = job.node and PLACED in (job.metadata or {})
    return described | ({"entrypoint_label_selector": {"ray.io/node-id": job.node}} if placed else {})


def _wait(head: Head, name: str) -> Job | None:
    """The job once it is over; None, and it is taken back, if that takes too long."""
    give_up = time.monotonic() + CONTROL_S
    while time.monotonic() < give_up:
        asked = head.job(name)
        if asked is not None and asked.over:
            return asked
        time.sleep(POLL_S)
    with contextlib.suppress(HeadError):
        head.stop(name)
    return None

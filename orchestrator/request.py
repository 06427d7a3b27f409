"""What the user asked ``sweep run`` for, and the command that goes on with it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field, replace
from pathlib import Path

from orchestrator.connection import in_submitted_job
from orchestrator.errors import ExitCode
from tasks.spec import Status

FAILED = frozenset(Status) - {Status.PASS, Status.SKIPPED}
"""What ``--retry-failed`` chooses."""


@dataclass(frozen=True, slots=True)
class RunRequest:
    """What the user asked for.

    ``rerun``: statuses whose tasks a resume runs again, beside those of ``RERUN_ALWAYS``; ``rerun_tasks``: parts of the ids of others.
    ``aa``: measure each arm against itself.
    ``carry``: the run whose results are taken over where nothing that moves them has changed.
    ``environment``: which of the manifest's this Python is. ``lock_wait_s``: how long a resume waits for a driver that holds the run.
    ``stop_after_s``: for how long to run; what would not end in it is left for a resume.
    """

    manifest: Path
    results: str = "results"
    run_id: str | None = None
    address: str | None = None
    resume: bool = False
    rerun: frozenset[Status] = field(default_factory=frozenset)
    aa: bool = False
    log_json: bool = False
    environment: str | None = None
    lock_wait_s: float = 0.0
    carry: str | None = None
    stop_after_s: float | None = None
    rerun_tasks: frozenset[str] = frozenset()


def resume_command(request: RunRequest, run_id: str) -> str:
    """The exact command that goes on with a run."""
    again = "".join(f" {word}" for word in _rerun_words(request))
    if in_submitted_job():  # paths are those of the job's copy
        return f"sweep submit MANIFEST, as before, with --run-id {shlex.quote(run_id)} --resume{again}"
    words = ["sweep", "run", str(request.manifest), "--results", request.results, "--run-id", run_id, "--resume"]
    words += ["--aa"] if request.aa else []
    words += ["--carry", request.carry] if request.carry else []
    words += ["--log-json"] if request.log_json else []
    words += ["--environment", request.environment] if request.environment else []
    words += ["--stop-after", f"{request.stop_after_s:g}"] if request.stop_after_s else []
    return shlex.join(words + (["--address", request.address] if request.address else [])) + again


def _rerun_words(request: RunRequest) -> list[str]:
    everything = ["--retry-failed"] if request.rerun >= FAILED else []
    statuses = request.rerun - FAILED if everything else request.rerun
    named = [*sorted(status.value for status in statuses), *(shlex.quote(part) for part in sorted(request.rerun_tasks))]
    return everything + [word for name in named for word in ("--rerun", name)]


def next_command(request: RunRequest, run_id: str, exit_code: ExitCode, *, finished: bool) -> str | None:
    """What is to be done next: the rest of the run, or, where all of it has ended, what only the machinery made fail."""
    if not finished:
        return resume_command(request, run_id)
    if exit_code is not ExitCode.INFRASTRUCTURE:
        return None
    return resume_command(replace(request, rerun=frozenset(), rerun_tasks=frozenset()), run_id)

"""Following a submitted job to its end, whatever becomes of the connection, and the exit status that its end means."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from orchestrator.errors import ExitCode, HeadError, InfrastructureError
from orchestrator.jobs import PENDING, REFUSALS, STOPPED, SUCCEEDED, Head, Job

POLL_S = 2.0
PENDING_S = 60.0
"""A job that has not begun after this long is worth a remark."""
START_S = 1200.0
"""After this long it is given up, where nothing else is said. Ray gives up itself after 900 s, unless the job waits for resources."""
LOST_S = 600.0
"""A head that does not answer for this long while a job is followed is given up; the job itself is not touched by that."""


def follow(
    head: Head,
    submission_id: str,
    show: Callable[[str], None],
    note: Callable[[str], None],
    start_s: float = START_S,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Job:
    """The job once it is over. What its driver prints goes to ``show``, what happens on the way to ``note``.

    The status decides, not the end of a log: each round asks for both anew, so that a dropped connection costs one round.

    Raises:
        InfrastructureError: the head did not answer for ``LOST_S``, or has forgotten the job, or the job did not begin within ``start_s``.
    """
    shown, status, heard_s, silent = 0, "", clock(), False
    start = _Start(heard_s, start_s)
    while True:
        try:
            job = head.job(submission_id)
            if job is None:
                raise InfrastructureError(f"the cluster at {head.address} does not know {submission_id} any more: its head was restarted")
            text = head.logs(submission_id) if job.status != PENDING else ""
        except HeadError as error:
            if error.code in REFUSALS:
                raise
            if clock() - heard_s > LOST_S:
                raise InfrastructureError(f"given up after {LOST_S:.0f} s: {error}") from error
            if not silent:
                note(f"{error}; the run does not depend on it, trying again")
                silent = True
        else:
            if silent:
                note("the head answers again")
            heard_s, silent = clock(), False
            show(text[shown:])
            shown = max(shown, len(text))
            if job.status != status:
                note(f"{submission_id}: {job.describe()}")
                status = job.status
            if job.over:
                return job
            start.look(job, clock(), note)
        sleep(POLL_S)


class _Start:
    """How long a job has been waiting to begin."""

    def __init__(self, since_s: float, limit_s: float) -> None:
        self._since_s = since_s
        self._limit_s = limit_s
        self._told = False

    def look(self, job: Job, now_s: float, note: Callable[[str], None]) -> None:
        waited_s = now_s - self._since_s
        if job.status != PENDING or waited_s <= min(PENDING_S, self._limit_s):
            return
        why = f"its packages are being installed, or no node has what submit.entrypoint_... asks for. Ray says: {job.message or 'nothing'}"
        if waited_s > self._limit_s:
            raise InfrastructureError(
                f"{job.submission_id} has not begun after {waited_s:.0f} s: {why}. It still waits; `sweep stop` takes it back"
            )
        if not self._told:
            note(f"{job.submission_id} has not begun yet: {why}")
            self._told = True


def exit_code(job: Job) -> ExitCode:
    """The exit status of the run whose driver ``job`` was: its own, or what its end means."""
    if job.status == STOPPED:
        return ExitCode.INTERRUPTED
    if job.status == SUCCEEDED:
        return ExitCode.PASSED
    known = job.exit_code in set(ExitCode) and job.exit_code != ExitCode.PASSED
    return ExitCode(job.exit_code or 0) if known else ExitCode.INFRASTRUCTURE  # a driver that was killed, or never started


def worst(codes: Iterable[ExitCode]) -> ExitCode:
    """The exit status of several runs together: that of the one that most needs somebody."""
    return max(codes, key=_GRAVITY.index)


_GRAVITY = (
    *(ExitCode.PASSED, ExitCode.SOME_FAILED, ExitCode.REGRESSION, ExitCode.INTERRUPTED, ExitCode.INFRASTRUCTURE),
    *(ExitCode.USAGE, ExitCode.BUG),
)

"""Following a job to its end, against a real HTTP server that answers as a head would."""

from __future__ import annotations

import itertools

import pytest

from orchestrator import following
from orchestrator.errors import ExitCode, HeadError, InfrastructureError
from orchestrator.jobs import Head, Job
from tests.orchestrator.fake_head import FakeHead, serving

NAME = "sweep-r"
PATH, LOGS = f"/api/jobs/{NAME}", f"/api/jobs/{NAME}/logs"


def standing(status, **fields):
    return {"submission_id": NAME, "status": status, **fields}


def follow(address, step_s=100, **settings):
    seconds = itertools.count(0, step_s)
    shown, notes = [], []
    job = following.follow(Head(address), NAME, shown.append, notes.append, clock=lambda: next(seconds), sleep=lambda _: None, **settings)
    return job, "".join(shown), notes


def test_a_token_that_is_taken_back_ends_the_following():
    head = FakeHead()
    head.answers |= {PATH: 403}
    with serving(head) as address, pytest.raises(HeadError, match="403"):
        follow(address)


def test_following_survives_dropped_connections_and_prints_every_line_once():
    head = FakeHead()
    head.answers |= {
        PATH: [standing("PENDING"), "drop", standing("RUNNING"), standing("RUNNING"), "drop", 500, standing("FAILED", driver_exit_code=3)],
        LOGS: [{"logs": "one\n"}, "drop", {"logs": "one\ntwo\n"}],
    }
    with serving(head) as address:
        job, shown, notes = follow(address)
    assert shown == "one\ntwo\n"
    assert following.exit_code(job) is ExitCode.SOME_FAILED
    assert notes.count("the head answers again") == 2
    assert notes[-1] == "sweep-r: ended with exit status 3"


def test_a_log_that_ends_early_does_not_end_the_following():
    head = FakeHead()
    head.answers |= {PATH: [standing("RUNNING")] * 4 + [standing("SUCCEEDED", driver_exit_code=0)], LOGS: {"logs": ""}}
    with serving(head) as address:
        job, _, _ = follow(address)
    assert following.exit_code(job) is ExitCode.PASSED


def test_a_head_that_stays_silent_is_given_up():
    head = FakeHead()
    head.answers |= {PATH: "drop"}
    with serving(head) as address, pytest.raises(InfrastructureError, match="given up after 600 s"):
        follow(address)


def test_a_head_that_has_forgotten_the_job_was_restarted():
    with serving(FakeHead()) as address, pytest.raises(InfrastructureError, match="was restarted"):
        follow(address)


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        ("SUCCEEDED", 0, ExitCode.PASSED),
        ("FAILED", 2, ExitCode.USAGE),
        ("FAILED", 130, ExitCode.INTERRUPTED),
        ("FAILED", None, ExitCode.INFRASTRUCTURE),  # it never started
        ("FAILED", -9, ExitCode.INFRASTRUCTURE),  # it was killed
        ("FAILED", 0, ExitCode.INFRASTRUCTURE),
        ("FAILED", 77, ExitCode.INFRASTRUCTURE),
        ("STOPPED", None, ExitCode.INTERRUPTED),  # never a success
    ],
)
def test_the_exit_status_is_that_of_the_run(status, code, expected):
    assert following.exit_code(Job(NAME, status, exit_code=code)) is expected


def test_a_job_that_does_not_begin_is_remarked_on_once_and_then_given_up():
    head = FakeHead()
    head.answers |= {PATH: standing("PENDING", message="Waiting for resources"), LOGS: {"logs": ""}}
    with (
        serving(head) as address,
        pytest.raises(InfrastructureError, match=r"not begun after .* Waiting for resources.*sweep stop") as caught,
    ):
        follow(address, step_s=20, start_s=300)
    assert caught.value.exit_code is ExitCode.INFRASTRUCTURE
    head.answers |= {PATH: [standing("PENDING")] * 6 + [standing("RUNNING")] * 90 + [standing("SUCCEEDED", driver_exit_code=0)]}
    with serving(head) as address:
        job, _, notes = follow(address, step_s=20, start_s=300)
    assert following.exit_code(job) is ExitCode.PASSED
    assert [note for note in notes if "has not begun yet" in note] == [notes[1]]


def test_of_several_runs_the_gravest_counts():
    assert following.worst([ExitCode.PASSED, ExitCode.PASSED]) is ExitCode.PASSED
    assert following.worst([ExitCode.SOME_FAILED, ExitCode.PASSED]) is ExitCode.SOME_FAILED
    assert following.worst([ExitCode.INTERRUPTED, ExitCode.SOME_FAILED]) is ExitCode.INTERRUPTED
    assert following.worst([ExitCode.INFRASTRUCTURE, ExitCode.INTERRUPTED]) is ExitCode.INFRASTRUCTURE

"""The client of Ray's Jobs service, against a real HTTP server that answers as a head would."""

from __future__ import annotations

import itertools

import pytest

from orchestrator import jobs
from orchestrator.errors import ExitCode, HeadError, InfrastructureError, UsageError
from orchestrator.jobs import Head, Job, Token
from tests.orchestrator.fake_head import FakeHead, serving

SECRET = "s3cr3t" * 6
NAME = "sweep-r"
PATH, LOGS = f"/api/jobs/{NAME}", f"/api/jobs/{NAME}/logs"


@pytest.fixture(autouse=True)
def no_token(monkeypatch, tmp_path):
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def standing(status, **fields):
    return {"submission_id": NAME, "status": status, **fields}


def follow(address, lost_after=None, monkeypatch=None):
    seconds = itertools.count(0, 100)
    shown, notes = [], []
    job = jobs.follow(Head(address), NAME, shown.append, notes.append, clock=lambda: next(seconds), sleep=lambda _: None)
    return job, "".join(shown), notes


def test_a_head_that_asks_for_no_token_gets_none(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", SECRET)
    head = FakeHead()
    with serving(head) as address:
        Head.find(address)
    assert [authorization for _, authorization, _ in head.seen] == [None]


def test_without_a_token_the_message_says_what_to_set():
    with serving(FakeHead(SECRET)) as address, pytest.raises(InfrastructureError, match=r"RAY_AUTH_TOKEN.*~/\.ray/auth_token"):
        Head.find(address)


@pytest.mark.parametrize("place", ["variable", "named file", "default file"])
def test_a_token_is_found_where_ray_looks(monkeypatch, tmp_path, place):
    if place == "variable":
        monkeypatch.setenv("RAY_AUTH_TOKEN", SECRET)
    else:
        path = tmp_path / "token" if place == "named file" else tmp_path / ".ray" / "auth_token"
        path.parent.mkdir(exist_ok=True)
        path.write_text(SECRET + "\n")
        if place == "named file":
            monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(path))
    with serving(FakeHead(SECRET)) as address:
        assert Head.find(address).headers == {"Authorization": f"Bearer {SECRET}"}


def test_a_token_of_another_cluster_is_told_apart_and_not_shown(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "another" + SECRET)
    with serving(FakeHead(SECRET)) as address, pytest.raises(InfrastructureError, match="refuses the token") as caught:
        Head.find(address)
    assert SECRET not in str(caught.value)


def test_a_named_token_file_that_is_not_there_is_an_error_and_not_the_default_file(monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(UsageError, match="cannot be read"):
        jobs.find_token()


def test_a_token_does_not_show_itself():
    assert SECRET not in repr(Token(SECRET, "RAY_AUTH_TOKEN"))


def test_a_redirection_does_not_take_the_token_along(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", SECRET)
    head, thief = FakeHead(SECRET), FakeHead()
    head.answers["/api/jobs/"] = 302
    with serving(head) as address, serving(thief) as elsewhere:
        head.elsewhere = f"{elsewhere}/api/jobs/"
        with pytest.raises(HeadError, match="302"):
            Head.find(address).jobs()
    assert thief.seen == []


def test_a_token_that_is_taken_back_ends_the_following():
    head = FakeHead()
    head.answers |= {PATH: 403}
    with serving(head) as address, pytest.raises(HeadError, match="403"):
        follow(address)


def test_nobody_there():
    with pytest.raises(InfrastructureError, match="no Ray head answers"):
        Head.find("http://127.0.0.1:1")
    with pytest.raises(UsageError, match="http://HEAD:8265"):
        Head.find("ray://head:10001")


def test_a_remote_head_is_warned_about():
    assert "any program" in Head("http://head.example:8265").warning()
    assert "unencrypted" in Head("http://head.example:8265", Token(SECRET, "x")).warning()
    assert Head("https://head.example:8265", Token(SECRET, "x")).warning() is None
    assert Head("http://127.0.0.1:8265").warning() is None
    assert Head("http://localhost:8265").warning() is None


def test_following_survives_dropped_connections_and_prints_every_line_once():
    head = FakeHead()
    head.answers |= {
        PATH: [standing("PENDING"), "drop", standing("RUNNING"), standing("RUNNING"), "drop", 500, standing("FAILED", driver_exit_code=3)],
        LOGS: [{"logs": "one\n"}, "drop", {"logs": "one\ntwo\n"}],
    }
    with serving(head) as address:
        job, shown, notes = follow(address)
    assert shown == "one\ntwo\n"
    assert jobs.exit_code(job) is ExitCode.SOME_FAILED
    assert notes.count("the head answers again") == 2
    assert notes[-1] == "sweep-r: ended with exit status 3"


def test_a_log_that_ends_early_does_not_end_the_following():
    head = FakeHead()
    head.answers |= {PATH: [standing("RUNNING")] * 4 + [standing("SUCCEEDED", driver_exit_code=0)], LOGS: {"logs": ""}}
    with serving(head) as address:
        job, _, _ = follow(address)
    assert jobs.exit_code(job) is ExitCode.PASSED


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
    assert jobs.exit_code(Job(NAME, status, exit_code=code)) is expected

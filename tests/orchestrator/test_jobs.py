"""The client of Ray's Jobs service, against a real HTTP server that answers as a head would."""

from __future__ import annotations

import pytest

from orchestrator import jobs
from orchestrator.errors import HeadError, InfrastructureError, UsageError
from orchestrator.jobs import Head, Token
from tests.orchestrator.fake_head import FakeHead, serving

SECRET = "s3cr3t" * 6


def silent(warning):
    raise AssertionError(warning)


@pytest.fixture(autouse=True)
def no_token(monkeypatch, tmp_path):
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def test_a_head_that_asks_for_no_token_gets_none(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", SECRET)
    head = FakeHead()
    with serving(head) as address:
        Head.find(address, silent)
    assert [authorization for _, authorization, _ in head.seen] == [None]


def test_without_a_token_the_message_says_what_to_set():
    with serving(FakeHead(SECRET)) as address, pytest.raises(InfrastructureError, match=r"RAY_AUTH_TOKEN.*~/\.ray/auth_token"):
        Head.find(address, silent)


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
        assert Head.find(address, silent).headers == {"Authorization": f"Bearer {SECRET}"}


def test_a_token_of_another_cluster_is_told_apart_and_not_shown(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "another" + SECRET)
    with serving(FakeHead(SECRET)) as address, pytest.raises(InfrastructureError, match="refuses the token") as caught:
        Head.find(address, silent)
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
            Head.find(address, silent).jobs()
    assert thief.seen == []


def test_nobody_there():
    with pytest.raises(InfrastructureError, match="no Ray head answers"):
        Head.find("http://127.0.0.1:1", silent)
    with pytest.raises(UsageError, match="http://HEAD:8265"):
        Head.find("ray://head:10001", silent)


def test_a_remote_head_is_warned_about():
    assert "any program" in Head("http://head.example:8265").warning()
    assert "unencrypted" in Head("http://head.example:8265", Token(SECRET, "x")).warning()
    assert Head("https://head.example:8265", Token(SECRET, "x")).warning() is None
    assert Head("http://127.0.0.1:8265").warning() is None
    assert Head("http://localhost:8265").warning() is None


@pytest.mark.parametrize("secret", [None, SECRET])
def test_the_warning_comes_before_the_token_is_sent(monkeypatch, secret):
    monkeypatch.setenv("RAY_AUTH_TOKEN", SECRET)
    monkeypatch.setattr(jobs, "is_loopback", lambda address: False)
    head = FakeHead(secret)
    told = []
    with serving(head) as address:
        Head.find(address, lambda warning: told.append((warning, [authorization for _, authorization, _ in head.seen])))
    [(warning, sent_before)] = told
    assert sent_before == [None]
    assert ("unencrypted" if secret else "asks for no token") in warning

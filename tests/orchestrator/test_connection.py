"""An address at which no run can be driven is refused in words that help, and with the right exit status."""

from __future__ import annotations

import os
import socket

import pytest

from orchestrator.connection import answers, connect
from orchestrator.errors import ExitCode, InfrastructureError, UsageError
from tests.orchestrator.test_cli import sweep


def test_ray_client_cannot_drive_a_run_and_the_message_says_what_can():
    with pytest.raises(UsageError, match=r"HEAD:6379.*sweep submit MANIFEST --address http://HEAD:8265"):
        connect("ray://head:10001")


def test_a_missing_token_is_no_bug(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    done = sweep("doctor", "--address", "127.0.0.1:1")
    assert done.returncode == ExitCode.INFRASTRUCTURE
    assert "RAY_AUTH_TOKEN" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_silent_head_may_be_one_that_wants_a_token(monkeypatch):
    def refuse(**_):
        raise ConnectionError("Failed to connect to Ray cluster")

    monkeypatch.setattr("ray.init", refuse)
    with socket.create_server(("127.0.0.1", 0)) as listener, pytest.raises(InfrastructureError, match="RAY_AUTH_MODE=token"):
        connect(f"127.0.0.1:{listener.getsockname()[1]}")
    with pytest.raises(InfrastructureError) as raised:
        connect("127.0.0.1:1")
    assert "TOKEN" not in str(raised.value)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "auto", "local", "127.0.0.1"])
def test_what_is_no_port_or_a_closed_one_does_not_answer(address):
    assert not answers(address)

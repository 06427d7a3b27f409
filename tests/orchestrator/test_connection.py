"""An address at which no run can be driven is refused in words that help, and with the right exit status."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading

import pytest

from orchestrator import connection
from orchestrator.connection import HeadState, HeadWatch, answers, connect, within
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


def test_a_ray_of_ones_own_has_the_cores_that_this_process_may_use():
    script = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); from orchestrator.connection import connect; "
    script += "print('cores', connect(None).cluster_resources()['CPU'])"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert "cores 1.0" in ended.stdout, ended.stderr


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


@pytest.mark.parametrize(
    ("listens", "first", "now", "state"),
    [
        (True, b"one", b"one", HeadState.THERE),
        (True, b"one", b"two", HeadState.REPLACED),
        (True, b"one", None, HeadState.SILENT),
        (False, b"one", b"one", HeadState.SILENT),
        (True, None, None, HeadState.THERE),  # it never said who it is
        (False, None, None, HeadState.SILENT),
    ],
)
def test_a_head_is_told_from_another_at_the_same_address(monkeypatch, listens, first, now, state):
    said = iter([first, now])
    monkeypatch.setattr(connection, "_cluster_id", lambda _: next(said))
    monkeypatch.setattr(connection, "answers", lambda _: listens)
    assert HeadWatch("head:6379").look() is state


def test_nobody_waits_longer_than_they_said():
    never = threading.Event()
    assert within(0.05, never.wait) is None
    never.set()
    assert within(5.0, lambda: "answer") == "answer"


def test_a_process_that_ray_does_not_let_go_ends_all_the_same():
    program = "import threading; from orchestrator.connection import end_process, let_go; let_go({}, 0.1); print('said'); end_process(4)"
    for shutdown, code in (("threading.Event().wait", ExitCode.INFRASTRUCTURE), ("lambda: None", ExitCode.PASSED)):
        done = subprocess.run([sys.executable, "-c", program.format(shutdown)], capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stdout) == (code, "said\n")

"""The command line as a user meets it: its surface, its exit statuses, its streams."""

from __future__ import annotations

import subprocess
import sys

import pytest

from orchestrator import __version__
from orchestrator.cli import COMMANDS
from orchestrator.errors import ExitCode


def sweep(*arguments, cwd=None, timeout=120):
    return subprocess.run([sys.executable, "-m", "orchestrator", *arguments], capture_output=True, text=True, cwd=cwd, timeout=timeout)


def test_the_surface_is_a_decision():
    assert set(COMMANDS) == {
        "validate", "plan", "run", "status", "logs", "report", "compare", "history", "export", "verify", "compact", "models", "schema",
        "doctor", "repro", "submit", "list", "stop",
    }  # fmt: skip


def test_help_lists_every_command():
    done = sweep("--help")
    assert done.returncode == 0
    assert all(f"  {name} " in done.stdout for name in COMMANDS)


def test_the_version():
    done = sweep("--version")
    assert (done.returncode, done.stdout) == (0, f"compile-sweep {__version__}\n")


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_explains_itself(name):
    done = sweep(name, "--help")
    assert done.returncode == 0
    assert f"sweep {name}" in done.stdout.replace("orchestrator", "sweep") or "Usage" in done.stdout


def test_usage_errors_exit_2_and_write_to_stderr():
    for arguments in (["nonsense"], ["run"], ["run", "m.yaml", "--rerun", "pass"], ["report", "--frobnicate"]):
        done = sweep(*arguments)
        assert done.returncode == ExitCode.USAGE, arguments
        assert done.stdout == ""
        assert done.stderr


def test_an_empty_store_is_a_clear_message(tmp_path):
    done = sweep("report", "latest", "--results", str(tmp_path))
    assert done.returncode == ExitCode.USAGE
    assert "there are no runs" in done.stderr
    assert "Traceback" not in done.stderr

"""What is settled where Kubernetes would try again."""

from __future__ import annotations

import pytest

from orchestrator.cli.settled import settled
from orchestrator.control import request_stop
from orchestrator.errors import ExitCode
from orchestrator.store import Store
from tests.orchestrator.stored import a_run, a_task


@pytest.mark.parametrize(
    ("code", "asked", "expected"),
    [
        (ExitCode.PASSED, False, True),
        (ExitCode.SOME_FAILED, False, True),
        (ExitCode.INTERRUPTED, True, True),
        (ExitCode.INTERRUPTED, False, False),  # a node that leaves sends SIGTERM
        (ExitCode.INFRASTRUCTURE, True, False),
        (ExitCode.USAGE, False, False),
        (ExitCode.BUG, False, False),
    ],
)
def test_only_an_end_that_another_try_would_not_change(tmp_path, code, asked, expected):
    with a_run(Store(str(tmp_path)), [a_task(1)]) as run:
        if asked:
            request_stop(run.files)
    assert settled(code, str(tmp_path), "run-1") is expected

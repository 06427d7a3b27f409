"""Requests to stop that go through the run's folder."""

from __future__ import annotations

import itertools

import pytest

from orchestrator.cli.stop import stop
from orchestrator.control import STOP_FILE, clear_stop, request_stop, stop_requests
from orchestrator.errors import ExitCode, InfrastructureError
from orchestrator.events import Ended, Started
from orchestrator.files import LocalFiles
from orchestrator.record import RunState
from orchestrator.store import Store
from tasks.spec import Status
from tests.orchestrator.fakes import NODE, FakeCluster, FakeSink, passed, task
from tests.orchestrator.stored import a_run, a_task
from tests.orchestrator.test_driver import drive


@pytest.fixture
def files(tmp_path):
    return LocalFiles(tmp_path)


def test_requests_count_up_to_force_and_are_forgotten(files):
    assert stop_requests(files) == 0
    assert [request_stop(files) for _ in range(3)] == [1, 2, 2]
    clear_stop(files)
    assert stop_requests(files) == 0
    assert request_stop(files, force=True) == 2


@pytest.mark.parametrize(("text", "requests"), [("", 1), ("[]", 1), ("{}", 1), ('{"requests": 99}', 2), ('{"requests": -1}', 0)])
def test_a_file_that_makes_no_sense_is_a_request(files, text, requests):
    files.write(STOP_FILE, text.encode())
    assert stop_requests(files) == requests


def asked_at(polls, *moments):
    """A sink that has been asked to stop once for each of ``moments`` that has passed."""
    return FakeSink(requests=lambda: sum(polls[0] >= moment for moment in moments))


def test_the_first_request_drains():
    polls, started = [0], []

    def behave(task_id, attempt):
        started.append((task_id, attempt))
        return [Started(0.0, task_id, attempt, NODE.name)]

    def polled():
        polls[0] += 1
        if polls[0] == 40:  # long after the request what runs comes to its end
            cluster.ready.extend(Ended(0.0, *key, passed(*key)) for key in started)

    cluster = FakeCluster(behave, polled)
    ending, sink, _ = drive([task(f"m{i}") for i in range(5)], cluster, asked_at(polls, 3), max_in_flight=2)
    assert ending.exit_code is ExitCode.INTERRUPTED
    assert len(cluster.launched) == 2
    assert [row.status for row in sink.rows] == [Status.PASS, Status.PASS]


@pytest.mark.parametrize("moments", [(3, 20), (3, 3)])
def test_the_second_request_takes_back_what_runs(moments):
    polls = [0]

    def polled():
        polls[0] += 1

    cluster = FakeCluster(lambda task_id, attempt: [Started(0.0, task_id, attempt, NODE.name)], polled)
    ending, sink, _ = drive([task(f"m{i}") for i in range(5)], cluster, asked_at(polls, *moments), max_in_flight=2)
    assert ending.exit_code is ExitCode.INTERRUPTED
    assert sorted(cluster.cancelled) == sorted(cluster.launched)
    assert sink.rows == []


def test_a_request_counts_like_a_signal_before_it():
    import os
    import signal

    polls = itertools.count()
    seen = [0]

    def polled():
        seen[0] = next(polls)
        if seen[0] == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    cluster = FakeCluster(lambda task_id, attempt: [Started(0.0, task_id, attempt, NODE.name)], polled)
    ending, _, _ = drive([task("m0")], cluster, asked_at(seen, 10), max_in_flight=2)
    assert ending.exit_code is ExitCode.INTERRUPTED
    assert cluster.cancelled == cluster.launched


def test_a_run_without_a_driver_has_nothing_to_stop_and_says_so_to_whoever_expects_one(tmp_path, capsys):
    with a_run(Store(str(tmp_path)), [a_task(1)]) as run:
        run.set_state(RunState.INTERRUPTED, ExitCode.INTERRUPTED)
    stop("run-1", str(tmp_path))
    assert "nothing to stop" in capsys.readouterr().out
    with pytest.raises(InfrastructureError, match="nothing to stop"):
        stop("run-1", str(tmp_path), driver=True)
    assert stop_requests(run.files) == 0

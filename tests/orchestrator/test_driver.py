"""The loop, with a fake cluster, a fake store and real signals."""

from __future__ import annotations

import itertools
import os
import signal

import pytest

from orchestrator.driver import Driver
from orchestrator.errors import ClusterLostError, ExitCode
from orchestrator.events import Ended, Lost, Started
from orchestrator.policy import Policy
from orchestrator.sweep import Sweep, SweepTask
from tasks.spec import Attempt, FailureClass, Status
from tests.orchestrator.fakes import NODE, FakeCluster, FakeProgress, FakeSink, passed, task


def drive(tasks, cluster, sink=None, policy=None, max_in_flight=2):
    ticks = itertools.count()
    sweep = Sweep([SweepTask(t.task_id) for t in tasks], policy or Policy(), max_in_flight)
    sink = sink or FakeSink()
    driver = Driver(tasks, sweep, cluster, sink, FakeProgress(), lambda n: Attempt("run", n), clock=lambda: float(next(ticks)))
    return driver.run(), sink, sweep


def test_every_task_gets_a_row():
    tasks = [task(f"m{i}") for i in range(10)]
    ending, sink, _ = drive(tasks, FakeCluster())
    assert ending.exit_code is ExitCode.PASSED
    assert sorted(row.task_id for row in sink.rows) == sorted(t.task_id for t in tasks)


def test_a_lost_worker_is_tried_again():
    def behave(task_id, attempt):
        return [Lost(0.0, task_id, attempt, FailureClass.WORKER_LOST, "killed")] if attempt == 1 else None

    ending, sink, _ = drive([task("m")], FakeCluster(behave))
    assert ending.exit_code is ExitCode.PASSED
    assert [row.attempt for row in sink.rows] == [2]


def test_a_store_that_fails_ends_the_run_as_infrastructure_with_what_was_written_kept():
    tasks = [task(f"m{i}") for i in range(6)]
    sink = FakeSink(fail_at=1)
    ending, sink, _ = drive(tasks, FakeCluster(), sink, max_in_flight=1)
    assert ending.exit_code is ExitCode.INFRASTRUCTURE
    assert "no space left" in ending.reason
    assert 0 < len(sink.rows) < 6


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_drains(number):
    polls = itertools.count()
    started = []

    def behave(task_id, attempt):
        started.append((task_id, attempt))
        return [Started(0.0, task_id, attempt, NODE.name)]

    def polled():
        count = next(polls)
        if count == 3:
            os.kill(os.getpid(), number)
        if count == 6:  # what runs comes to its end after the signal
            cluster.ready.extend(Ended(0.0, *key, passed(*key)) for key in started)

    cluster = FakeCluster(behave, polled)
    ending, sink, _ = drive([task(f"m{i}") for i in range(5)], cluster, max_in_flight=2)
    assert ending.exit_code is ExitCode.INTERRUPTED
    assert len(cluster.launched) == 2
    assert [row.status for row in sink.rows] == [Status.PASS, Status.PASS]


def test_the_second_signal_takes_back_what_runs():
    polls = itertools.count()

    def polled():
        if next(polls) in (3, 5):
            os.kill(os.getpid(), signal.SIGINT)

    cluster = FakeCluster(lambda task_id, attempt: [Started(0.0, task_id, attempt, NODE.name)], polled)
    ending, sink, _ = drive([task(f"m{i}") for i in range(5)], cluster, max_in_flight=2)
    assert ending.exit_code is ExitCode.INTERRUPTED
    assert sorted(cluster.cancelled) == sorted(cluster.launched)
    assert sink.rows == []


def test_the_process_gets_its_signal_handlers_back():
    before = signal.getsignal(signal.SIGINT)
    drive([task("m")], FakeCluster())
    assert signal.getsignal(signal.SIGINT) is before


def test_a_cluster_that_is_gone_ends_the_run_with_what_had_finished_kept():
    polls = itertools.count()

    class Doomed(FakeCluster):
        def nodes(self):
            if next(polls) > 3:
                raise ClusterLostError("the head has not answered for 40 s")
            return super().nodes()

    def behave(task_id, attempt):
        return None if task_id.startswith("toy/m0") else [Started(0.0, task_id, attempt, NODE.name)]

    ending, sink, sweep = drive([task(f"m{i}") for i in range(4)], Doomed(behave))
    assert ending.exit_code is ExitCode.INFRASTRUCTURE
    assert "has not answered" in ending.reason
    assert [row.task_id for row in sink.rows] == ["toy/m0/float32/training/inductor"]
    assert sweep.active() == ()

"""The loop, with a fake cluster, a fake store and real signals."""

from __future__ import annotations

import dataclasses
import itertools
import os
import signal
import time

import pytest

from orchestrator import driver as driving
from orchestrator.driver import Driver
from orchestrator.errors import ClusterLostError, ExitCode, RunLockedError, StoreError
from orchestrator.events import Ended, Lost, Started
from orchestrator.policy import Policy
from orchestrator.room import Room
from orchestrator.sweep import SILENCE_S, Sweep, SweepTask
from tasks.spec import Attempt, FailureClass, Outcome, Phase, ResourceSpec, Status
from tests.orchestrator.fakes import NODE, FakeCluster, FakeProgress, FakeSink, passed, task


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(driving, "LAST_TRIES_S", (0.0, 0.0))


def drive(tasks, cluster, sink=None, policy=None, max_in_flight=2, clock=None, planned=None):
    ticks = itertools.count()
    clock = clock or (lambda: float(next(ticks)))
    sweep = Sweep(planned or [SweepTask(t.task_id) for t in tasks], policy or Policy())
    sink = sink or FakeSink()
    driver = Driver(tasks, sweep, cluster, sink, FakeProgress(), lambda n: Attempt("run", n), Room.of(tasks, max_in_flight), clock)
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


def test_what_ends_as_the_signal_comes_makes_no_room():
    polls, started = itertools.count(), []

    def behave(task_id, attempt):
        started.append((task_id, attempt))
        return [Started(0.0, task_id, attempt, NODE.name)]

    def polled():
        if next(polls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
            cluster.ready.extend(Ended(0.0, *key, passed(*key)) for key in started)

    cluster = FakeCluster(behave, polled)
    ending, sink, _ = drive([task(f"m{i}") for i in range(5)], cluster, max_in_flight=2)
    assert ending.exit_code is ExitCode.INTERRUPTED
    assert len(cluster.launched) == len(sink.rows) == 2


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


def test_what_was_heard_before_the_head_was_found_lost_counts():
    polls = itertools.count()

    class Doomed(FakeCluster):
        def nodes(self):
            if next(polls) > 0:
                raise ClusterLostError("the head has not answered for 40 s")
            return super().nodes()

    ending, sink, _ = drive([task("m0"), task("m1")], Doomed())
    assert ending.exit_code is ExitCode.PASSED
    assert len(sink.rows) == 2


# --- what the store does not take -------------------------------------------------------------------------------------------------


class Hiccuping(FakeSink):
    """Does not take the batches of these numbers, nor ever a row of the task ``poison``."""

    def __init__(self, *numbers, poison=None):
        super().__init__()
        self.tries, self.numbers, self.poison = itertools.count(), numbers, poison

    def append(self, batch):
        if next(self.tries) in self.numbers or self.poison in {task.task_id for task, _ in batch}:
            raise StoreError("connection reset")
        super().append(batch)


@pytest.mark.parametrize("fails", [(0,), (0, 1), (2,)])
def test_rows_that_the_store_did_not_take_are_offered_again(fails):
    tasks = [task(f"m{i}") for i in range(4)]
    ending, sink, _ = drive(tasks, FakeCluster(), Hiccuping(*fails), max_in_flight=1)
    launched = {row.task_id for row in sink.rows}
    assert tasks[0].task_id in launched
    assert len(sink.rows) == len(launched), "a row was written twice"
    if len(launched) < len(tasks):
        assert (ending.exit_code, ending.reason) == (ExitCode.INFRASTRUCTURE, "connection reset")


def test_a_row_that_no_store_takes_keeps_no_other_out():
    tasks = [task(f"m{i}") for i in range(4)]
    ending, sink, _ = drive(tasks, FakeCluster(), Hiccuping(poison=tasks[1].task_id), max_in_flight=4)
    assert ending.exit_code is ExitCode.INFRASTRUCTURE
    assert sorted(row.task_id for row in sink.rows) == [tasks[number].task_id for number in (0, 2, 3)]


def slow(task_id, attempt):
    """An attempt that starts, and ends when the test says so."""
    return [Started(0.0, task_id, attempt, NODE.name)]


def ending_at(cluster, poll):
    polls = itertools.count()

    def polled():
        if next(polls) == poll:
            cluster.ready.extend(Ended(0.0, *key, passed(*key)) for key in cluster.launched)

    return polled


@pytest.mark.parametrize(("silent_s", "code"), [(1e9, ExitCode.PASSED), (20.0, ExitCode.INFRASTRUCTURE)])
def test_a_lock_that_cannot_be_renewed_is_borne_for_a_while(monkeypatch, silent_s, code):
    class Unreachable(FakeSink):
        def refresh_lock(self):
            raise StoreError("connection reset")

    monkeypatch.setattr(driving, "SILENT_S", silent_s)
    cluster = FakeCluster(slow)
    cluster.polled = ending_at(cluster, 20)
    ending, sink, _ = drive([task("m"), task("n")], cluster, Unreachable(), max_in_flight=1 if silent_s < 1e9 else 2)
    assert ending.exit_code is code
    assert sink.rows


def test_a_run_that_was_taken_over_ends_at_once():
    class TakenOver(FakeSink):
        def refresh_lock(self):
            raise RunLockedError("taken over")

    with pytest.raises(RunLockedError):
        drive([task("m")], FakeCluster(slow), TakenOver())


# --- what attempts left in the spool --------------------------------------------------------------------------------------------


def test_a_result_whose_message_was_lost_is_not_made_again():
    m = task("m")

    def behave(task_id, attempt):
        sink.left[task_id, attempt] = passed(task_id, attempt)
        return [Started(0.0, task_id, attempt, NODE.name), Lost(0.0, task_id, attempt, FailureClass.WORKER_LOST, "killed")]

    sink = FakeSink()
    ending, sink, _ = drive([m], FakeCluster(behave), sink)
    assert ending.exit_code is ExitCode.PASSED
    assert [row.attempt for row in sink.rows] == [1]


@pytest.mark.parametrize("fate", ["silent", "gone", "head"])
def test_before_an_attempt_is_given_up_its_result_is_looked_for(fate):
    now = [0.0]
    m = task("m")
    looks = itertools.count()

    class Fading(FakeCluster):
        def nodes(self):
            if next(looks) == 0 or fate == "silent":
                return super().nodes()
            if fate == "head":
                raise ClusterLostError("gone")
            return (dataclasses.replace(NODE, name="another"),)

    def polled():
        now[0] += SILENCE_S / 3
        sink.left[m.task_id, 1] = passed(m.task_id, 1)

    sink = FakeSink()
    cluster = Fading(slow, polled)
    _, sink, _ = drive([m], cluster, sink, clock=lambda: now[0])
    assert [(row.attempt, row.status) for row in sink.rows] == [(1, Status.PASS)]
    assert cluster.launched == cluster.cancelled == [(m.task_id, 1)]


# --- times and stories ----------------------------------------------------------------------------------------------------------


def test_rows_of_the_drivers_own_have_the_time_of_day():
    m, n = task("m"), task("n")
    cluster = FakeCluster(lambda task_id, attempt: [Lost(0.0, task_id, attempt, FailureClass.WORKER_LOST, "killed")])
    planned = [SweepTask(m.task_id, skip="not today"), SweepTask(n.task_id)]
    _, sink, _ = drive([m, n], cluster, policy=Policy(infrastructure_retries=0), planned=planned, clock=lambda: 5.0)
    assert {row.status for row in sink.rows} == {Status.SKIPPED, Status.INFRA_ERROR}
    assert [abs(row.ended - time.time()) < 60 and abs(row.started - time.time()) < 60 for row in sink.rows] == [True, True]


def test_times_of_a_node_are_left_as_they_are():
    m = task("m")
    outcome = dataclasses.replace(passed(m.task_id, 1), started=100.0, ended=200.0)
    _, sink, _ = drive([m], FakeCluster(lambda *key: [Ended(0.0, *key, outcome)]))
    assert sink.rows == [outcome]


def test_stories_of_tasks_without_a_row_are_told():
    m = task("m")
    sink = FakeSink()
    polls = itertools.count()

    def behave(task_id, attempt):
        return [Lost(0.0, task_id, attempt, FailureClass.WORKER_LOST, "killed")] if attempt == 1 else slow(task_id, attempt)

    def polled():
        if (number := next(polls)) == 30:
            assert m.task_id in sink.told, "not told when it was tried again"
            sink.told.clear()
        if number in (30, 31):
            os.kill(os.getpid(), signal.SIGINT)

    ending, sink, _ = drive([m], FakeCluster(behave, polled), sink)
    assert ending.exit_code is ExitCode.INTERRUPTED
    assert sink.rows == []
    assert m.task_id in sink.told, "not told at the end"


def test_a_node_that_comes_gets_its_share():
    looks, polls, in_flight = itertools.count(), itertools.count(), []

    class Growing(FakeCluster):
        def nodes(self):
            return (NODE,) if next(looks) < 2 else (NODE, dataclasses.replace(NODE, name="new"))

    def polled():
        in_flight.append(len(cluster.launched))
        if next(polls) in (20, 21):
            os.kill(os.getpid(), signal.SIGINT)

    cluster = Growing(slow, polled)
    drive([task(f"m{i}") for i in range(9)], cluster, max_in_flight=None)
    assert (in_flight[0], in_flight[-1]) == (3, 5)


def test_a_task_that_needs_room_asks_for_more_and_its_row_says_what_was_planned():
    asked = []

    class Device(FakeCluster):
        def launch(self, task, attempt, avoid, alone):
            asked.append((task.resources.num_gpus, alone))
            super().launch(task, attempt, avoid, alone)

    def behave(task_id, attempt):
        out = Outcome(task_id, attempt, Status.OOM, Phase.COMPILE, FailureClass.DEVICE_OOM, node=NODE.name)
        return [Ended(0.0, task_id, attempt, out if attempt < 3 else passed(task_id, attempt))]

    shared = task("pass", resources=ResourceSpec("cuda", 1.0, 0.25))
    ending, sink, _ = drive([shared], Device(behave), planned=[SweepTask(shared.task_id, shares=True, small=True)])

    assert ending.exit_code is ExitCode.PASSED
    assert asked == [(0.25, False), (0.75, False), (0.75, True)]
    assert [spec.resources.num_gpus for batch in sink.batches for spec, _ in batch] == [0.25]

"""What a run counts for a monitoring system."""

from __future__ import annotations

import dataclasses
import itertools

from orchestrator.driver import Driver
from orchestrator.events import Begin, Ended, Lost, NodesChanged, Started
from orchestrator.metrics import COUNTERS, GAUGES, Metered, Meters
from orchestrator.policy import Policy
from orchestrator.sweep import Sweep, SweepTask
from tasks.spec import Attempt, FailureClass
from tests.orchestrator.fakes import NODE, FakeCluster, FakeProgress, FakeSink, passed, task


def test_there_is_a_meter_for_every_name():
    assert len(GAUGES) + len(COUNTERS) == len(dataclasses.fields(Meters))


def test_states_rows_retries_and_waits_are_counted():
    def behave(task_id, attempt):
        key = (task_id, attempt)
        if task_id.startswith("toy/m0") and attempt == 1:
            return [Lost(0.0, *key, FailureClass.WORKER_LOST, "killed")]
        outcome = dataclasses.replace(passed(*key), waited_s=2.5)
        return [Started(0.0, *key, NODE.name), Started(0.0, *key, NODE.name), Ended(0.0, *key, outcome)]

    tasks = [task(f"m{i}") for i in range(4)]
    ticks = itertools.count()
    sweep = Sweep([SweepTask(t.task_id) for t in tasks] + [SweepTask("excluded", skip="not today")], Policy(), 2)
    cluster = FakeCluster(behave)
    meters = cluster.meters()
    progress = Metered(FakeProgress(), "run", [*(t.task_id for t in tasks), "excluded"], meters, lambda: 1, clock=lambda: 0.0)
    all_tasks = [*tasks, dataclasses.replace(task("x"), task_id="excluded")]
    Driver(all_tasks, sweep, cluster, FakeSink(), progress, lambda n: Attempt("run", n), clock=lambda: float(next(ticks))).run()
    assert meters.rows == {"pass": 4.0, "skipped": 1.0}
    assert meters.retries == {"all": 1.0}  # an event that comes twice is one retry
    assert meters.lease_wait_s == {"all": 10.0}
    assert meters.tasks["terminal"] == 5.0
    assert meters.tasks["running"] == 0.0
    assert meters.quarantined == {"all": 0.0}


def test_devices_without_a_task_are_idle():
    now = [0.0]
    sweep = Sweep([SweepTask("a"), SweepTask("b"), SweepTask("c")], Policy(), 3)
    meters = FakeCluster().meters()
    progress = Metered(FakeProgress(), "run", ["a", "b", "c"], meters, lambda: 4, clock=lambda: now[0])

    def happens(event):
        sweep.handle(event)
        progress.event(event)

    def after(seconds):
        now[0] += seconds
        progress.tick(sweep)

    happens(NodesChanged(0.0, frozenset({"x", "y"})))
    happens(Begin(0.0))
    after(0.0)  # looks how many devices there are
    after(2.0)
    assert meters.device_idle_s == {"all": 8.0}
    happens(Started(2.0, "a", 1, "x", ("0",)))
    happens(Started(2.0, "b", 1, "x", ("0",)))  # shares it
    happens(Started(2.0, "c", 1, "y", ("0", "1")))
    after(0.5)
    assert meters.device_idle_s == {"all": 8.0}  # it is too soon to look again
    after(0.5)
    assert meters.device_idle_s == {"all": 9.0}
    happens(Ended(3.0, "c", 1, passed("c", 1)))
    after(1.0)
    assert meters.device_idle_s == {"all": 12.0}

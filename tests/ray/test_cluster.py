"""Attempts through a real local Ray: what comes back, and what is left on the machine."""

from __future__ import annotations

import dataclasses
import os
import signal
import time

import psutil
import pytest
import ray.exceptions as raised

from orchestrator.cluster import RayCluster, _classify
from orchestrator.errors import InfrastructureError
from orchestrator.events import Ended, Lost, PhaseStarted, Started
from tasks.probe import NodeProbe, code_version
from tasks.spec import Attempt, DeadlineSpec, FailureClass, ModelSpec, Phase, PrecisionSpec, ResourceSpec, Status, TaskSpec

WAIT_S = 60.0


@pytest.fixture(scope="module")
def cluster():
    cluster = RayCluster()
    yield cluster
    cluster.close()


def toy(name, isolation="process", **options):
    return TaskSpec(
        task_id=f"toy/{name}/float32/training/inductor",
        model=ModelSpec("toy", name, options=options),
        mode="training",
        backend="inductor",
        precision=PrecisionSpec("float32"),
        deadlines=DeadlineSpec(task_s=120.0),
        resources=ResourceSpec(isolation=isolation),
    )


def events_until(cluster, ends, wait_s=WAIT_S):
    events = []
    give_up = time.monotonic() + wait_s
    while time.monotonic() < give_up:
        events += cluster.poll(0.2)
        if any(isinstance(event, ends) for event in events):
            return events
    raise AssertionError(f"nothing of {ends} in {events}")


def launch(cluster, task, number=1):
    cluster.launch(task, Attempt("run", number), frozenset(), alone=False)


def test_an_attempt_tells_its_story(cluster):
    launch(cluster, toy("pass"))
    events = events_until(cluster, Ended)
    assert isinstance(events[0], Started)
    assert events[0].node == cluster.nodes()[0].name
    phases = [event.phase for event in events if isinstance(event, PhaseStarted)]
    assert phases == [Phase.BUILD, Phase.EAGER, Phase.COMPILE, Phase.VERIFY, Phase.TIME, Phase.WRITE]
    outcome = events[-1].outcome
    assert outcome.status is Status.PASS
    assert outcome.node == cluster.nodes()[0].name
    assert outcome.environment["OMP_NUM_THREADS"] == "1"


def test_an_inline_toy_needs_no_process(cluster):
    launch(cluster, toy("pass", isolation="inline"))
    assert [type(event) for event in events_until(cluster, Ended)] == [Ended]


def test_a_crash_costs_one_task_and_no_ray_worker(cluster):
    launch(cluster, toy("crash"))
    outcome = events_until(cluster, Ended)[-1].outcome
    assert outcome.status is Status.CRASH
    assert outcome.failure_class is FailureClass.CRASH


def children_in(states, marker):
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or [])
        if marker in line and states(process):
            found.append(process)
    return found


def test_a_cancelled_attempt_leaves_nothing_behind(cluster):
    task = toy("hang")
    launch(cluster, task)
    events_until(cluster, PhaseStarted)
    assert children_in(lambda process: True, "tasks.worker")
    cluster.cancel(task.task_id, 1)
    give_up = time.monotonic() + WAIT_S
    while children_in(lambda process: True, "tasks.worker") and time.monotonic() < give_up:
        time.sleep(0.1)
    assert children_in(lambda process: True, "tasks.worker") == []
    assert cluster.poll(1.0) == []


def test_the_death_of_a_supervisor_is_a_lost_worker(cluster):
    launch(cluster, toy("hang"))
    events_until(cluster, PhaseStarted)
    (supervisor,) = children_in(lambda process: True, "ray::_run_attempt")
    os.kill(supervisor.pid, signal.SIGKILL)
    lost = events_until(cluster, Lost)[-1]
    assert lost.failure_class is FailureClass.WORKER_LOST


def test_a_mistake_on_the_node_is_no_death_of_it(cluster):
    broken = dataclasses.replace(toy("pass"), deadlines="not what a task has there")
    launch(cluster, broken)
    lost = events_until(cluster, Lost)[-1]
    assert lost.failure_class is FailureClass.INTERNAL
    assert "deadlines" in lost.error


@pytest.mark.parametrize(
    ("error", "failure_class"),
    [
        (raised.OutOfMemoryError("killed"), FailureClass.HOST_OOM),
        (raised.ObjectStoreFullError("no room"), FailureClass.DISK_FULL),
        (raised.OutOfDiskError("no room"), FailureClass.DISK_FULL),
        (raised.RayTaskError("f", "Traceback", raised.ObjectStoreFullError("no room")).as_instanceof_cause(), FailureClass.DISK_FULL),
        (raised.NodeDiedError("gone"), FailureClass.NODE_LOST),
        (raised.WorkerCrashedError(), FailureClass.WORKER_LOST),
        (raised.TaskUnschedulableError("no such node"), FailureClass.UNSCHEDULED),
        (raised.RayTaskError("f", "Traceback", ValueError("bug")).as_instanceof_cause(), FailureClass.INTERNAL),
    ],
)
def test_rays_failures_have_causes_of_their_own(error, failure_class):
    assert _classify(error)[0] is failure_class


def test_every_node_says_what_it_has(cluster):
    (answer,) = cluster.probe().values()
    assert isinstance(answer, NodeProbe)
    assert answer.code_version == code_version()
    assert answer.versions["torch"] is None or answer.versions["torch"][0].isdigit()


def test_a_node_that_dies_while_it_is_asked_is_left_out(cluster):
    (here,) = cluster.nodes()
    gone = dataclasses.replace(here, name="gone", node_id="0f" * 28)
    assert cluster.warm_up([gone, here], ["no_such_module"], "cpu") == {}
    assert set(cluster.warm_up([gone, here], ["json", "antigravity.no_such_part"], "cpu")) == {here.name}


def test_no_cluster_at_the_address_is_a_clear_error(cluster):
    with pytest.raises(InfrastructureError, match="no Ray cluster answers"):
        RayCluster("127.0.0.1:1")

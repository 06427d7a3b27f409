"""What Ray itself does to a run: its head dies, it has no room, nodes come and go, a GPU is quarantined. On real local clusters."""

from __future__ import annotations

import functools
import io
import subprocess
import sys
import time

import psutil
import pytest
from ray.cluster_utils import Cluster
from rich.console import Console

from orchestrator import cluster as clusters
from orchestrator import run as runs
from orchestrator.cluster import RayCluster
from orchestrator.errors import ExitCode
from orchestrator.events import Ended, Refused, Started
from orchestrator.request import RunRequest
from orchestrator.store import Store
from orchestrator.sweep import Sweep
from orchestrator.verify import verify
from tasks.spec import Attempt, FailureClass, ModelSpec, PrecisionSpec, ResourceSpec, Status, TaskSpec, device_name
from tests.ray.test_nodes import FAST_HEALTH_CHECKS, Runner, manifest, wait_for

WAIT_S = 240.0
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def make_cluster():
    made = []

    def make(**head):
        made.append(Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": FAST_HEALTH_CHECKS, **head}))
        return made[-1]

    yield make
    for cluster in made:
        cluster.shutdown()


@pytest.fixture
def ray(make_cluster):
    """Connects to a cluster, and lets go of it."""
    connected = []

    def connect(address):
        connected.append(RayCluster(address))
        return connected[-1]

    yield connect
    for each in connected:
        each.close()


def terminal(results):
    return {task_id.split("/")[1]: status for task_id, (status, _) in Store(str(results)).resolve("r").terminal().items()}


def test_a_head_that_is_killed_ends_the_run_which_goes_on_elsewhere(make_cluster, tmp_path):
    first = make_cluster()
    first.add_node(num_cpus=3)
    first.wait_for_nodes()
    # Longer than a head may be silent: what runs goes on without it for a while.
    path = manifest(tmp_path, "pass", *[f"{{name: slow_pass.{i}, options: {{seconds: 70}}}}" for i in range(2)])
    results = tmp_path / "out"
    words = [sys.executable, "-m", "orchestrator", "run", str(path), "--results", str(results), "--run-id", "r", "--resume"]
    with subprocess.Popen([*words, "--address", first.address], stderr=subprocess.PIPE, text=True) as driver:
        wait_for(lambda: Store(str(results)).runs() and terminal(results))
        head = first.head_node.all_processes["gcs_server"][0].process
        psutil.Process(head.pid).kill()
        _, errors = driver.communicate(timeout=clusters.HEAD_LOST_S + WAIT_S)
    assert driver.returncode == ExitCode.INFRASTRUCTURE, errors
    assert "has not answered" in errors
    assert errors.strip().splitlines()[-1].endswith(f"--run-id r --resume --address {first.address}")
    kept = terminal(results)
    assert kept == {"pass": Status.PASS}
    first.shutdown()
    second = make_cluster()
    second.add_node(num_cpus=3)
    second.wait_for_nodes()
    done = subprocess.run([*words, "--address", second.address], capture_output=True, text=True, timeout=WAIT_S)
    assert done.returncode == ExitCode.PASSED, done.stderr
    assert len(terminal(results)) == 3
    assert verify(Store(str(results)).resolve("r")) == []


def test_a_task_for_which_there_is_never_room_ends_in_a_row(make_cluster, tmp_path, monkeypatch):
    cluster = make_cluster()
    cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    monkeypatch.setattr(runs, "Sweep", functools.partial(Sweep, unscheduled_s=3.0))
    path = manifest(tmp_path, "pass")
    path.write_text(path.read_text().replace("execution:", "retries: {infrastructure: 1}\nexecution:"))

    def connect(address):
        import ray

        connected = RayCluster(address)
        held.append(ray.remote(num_cpus=1)(lambda: time.sleep(1000)).remote())  # somebody else's job
        time.sleep(3.0)
        return connected

    held = []
    request = RunRequest(path, str(tmp_path / "out"), "r", cluster.address)
    ended = runs.run(request, Console(file=io.StringIO()), connect=connect)
    assert ended.ending.exit_code is ExitCode.INFRASTRUCTURE
    (row,) = Store(str(tmp_path / "out")).resolve("r").rows().to_pylist()
    assert (row["status"], row["failure_class"], row["attempt"]) == (Status.INFRA_ERROR, FailureClass.UNSCHEDULED, 2)


def test_nodes_that_an_autoscaler_takes_away_and_brings_back_cost_no_task(make_cluster, tmp_path, monkeypatch):
    monkeypatch.setattr("signal.signal", lambda *_: None)  # signals belong to the main thread
    cluster = make_cluster()
    node = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    path = manifest(tmp_path, *[f"{{name: slow_pass.{i}, options: {{seconds: 3}}}}" for i in range(4)])
    runner = Runner(cluster.address, path, tmp_path / "out")
    runner.start()
    wait_for(lambda: Store(str(tmp_path / "out")).runs() and terminal(tmp_path / "out"))
    cluster.remove_node(node, allow_graceful=True)
    time.sleep(8.0)  # longer than the driver's look at the nodes: for a while there is none
    cluster.add_node(num_cpus=1)
    runner.join(WAIT_S)
    assert runner.code is ExitCode.PASSED, runner.seen.getvalue()
    assert len(terminal(tmp_path / "out")) == 4
    assert verify(Store(str(tmp_path / "out")).resolve("r")) == []


def test_a_quarantined_gpu_is_refused_and_kept_out_of_use(make_cluster, ray):
    cluster = make_cluster()
    cluster.add_node(num_cpus=4, num_gpus=2)
    cluster.wait_for_nodes()
    here = ray(cluster.address)
    (node,) = [node.name for node in here.nodes() if node.num_gpus]
    task = TaskSpec(
        "toy/pass", ModelSpec("toy", "pass"), "training", "inductor", PrecisionSpec("float32"), resources=ResourceSpec("cuda", 1.0, 1.0)
    )
    refused, seen = 0, []
    for number in range(1, 8):  # Ray gives either GPU, until the bad one is held
        here.launch(task, Attempt("run", number, refuse=(device_name(node, "0"),)), frozenset(), alone=False)
        events = []
        while not any(isinstance(event, (Refused, Ended)) for event in events):
            events += here.poll(0.2)
        refused += sum(isinstance(event, Refused) for event in events)
        seen += [event.gpus for event in events if isinstance(event, Started)]
    assert refused == 1
    assert seen == [("1",)] * 6

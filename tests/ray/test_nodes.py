"""Several nodes: a real cluster of raylets on this machine, of which some leave in the middle of a run."""

from __future__ import annotations

import io
import re
import threading
import time
import urllib.request

import pytest
import ray
from ray.cluster_utils import Cluster
from rich.console import Console

from orchestrator import run as runs
from orchestrator.cluster import RayCluster
from orchestrator.errors import ExitCode
from orchestrator.journal import read_standing, read_story
from orchestrator.request import RunRequest
from orchestrator.store import Store

WAIT_S = 90.0
FAST_HEALTH_CHECKS = {
    "metrics_report_interval_ms": 1000,
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 4,
}


@pytest.fixture
def cluster():
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "_system_config": FAST_HEALTH_CHECKS})
    yield cluster
    cluster.shutdown()


def manifest(tmp_path, *models, labels="{}"):
    path = tmp_path / "nodes.yaml"
    head = f"schema_version: 1\nname: nodes\nmatrix: {{dtype: [float32]}}\nexecution: {{num_cpus: 1, labels: {labels}}}\nsuites:\n  toy:\n"
    path.write_text(head + "".join(f"    - {model}\n" for model in models))
    return path


class Runner(threading.Thread):
    """A run in a thread, so that the test can pull the floor from under it."""

    def __init__(self, address, path, results):
        super().__init__(daemon=True)
        self._arguments = address, path, results
        self.code, self.seen = None, io.StringIO()

    def run(self):
        address, path, results = self._arguments
        request = RunRequest(path, str(results), "r", address)
        self.code = runs.run(request, Console(file=self.seen, width=200), connect=RayCluster).ending.exit_code


def standing(results):
    store = Store(str(results))
    return read_standing(store.resolve("r").files).get("active", []) if store.runs() else []


def wait_for(holds):
    give_up = time.monotonic() + WAIT_S
    while not (found := holds()):
        assert time.monotonic() < give_up, "waited in vain"
        time.sleep(0.2)
    return found


@pytest.mark.slow
def test_a_node_that_is_removed_is_noticed_and_its_task_runs_elsewhere(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr("signal.signal", lambda *_: None)  # signals belong to the main thread
    doomed = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    path = manifest(tmp_path, *[f"{{name: slow_pass.{i}, options: {{seconds: 8}}}}" for i in range(3)])
    runner = Runner(cluster.address, path, tmp_path / "out")
    runner.start()
    name = wait_for(lambda: [task["node"] for task in standing(tmp_path / "out") if (task["node"] or "").endswith(doomed.node_id[:8])])[0]
    cluster.remove_node(doomed, allow_graceful=False)
    cluster.add_node(num_cpus=1)
    runner.join(WAIT_S)
    assert runner.code is ExitCode.PASSED, runner.seen.getvalue()
    store = Store(str(tmp_path / "out")).resolve("r")
    moved = [row for row in store.rows().to_pylist() if row["attempt"] == 2]
    assert len(moved) == 1
    assert moved[0]["node"] != name
    assert any("node" in entry["what"] and entry["state"] == "retrying" for entry in read_story(store.files, moved[0]["task_id"]))


def scraped(nodes):
    """What a monitoring system would read from all of ``nodes``."""
    pages = []
    for node in nodes:
        with urllib.request.urlopen(f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics", timeout=10) as page:
            pages.append(page.read().decode())
    return "".join(pages)


@pytest.mark.slow
def test_labels_choose_the_nodes_and_a_monitoring_system_sees_the_run(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr("signal.signal", lambda *_: None)
    chosen = {cluster.add_node(num_cpus=1, labels={"pool": "nightly"}).node_id[:8] for _ in range(2)}  # one is idle during the third task
    cluster.wait_for_nodes()
    path = manifest(tmp_path, *[f"{{name: slow_pass.{i}, options: {{seconds: 10}}}}" for i in range(3)], labels="{pool: nightly}")
    runner = Runner(cluster.address, path, tmp_path / "out")
    runner.start()
    wait_for(lambda: standing(tmp_path / "out"))
    nodes = ray.nodes()
    names = set()

    def complete():  # gauges are on a page only once for each report
        names.update(re.findall(r'^(ray_sweep_\w+){(?=.*run="r").*what="\w+"', scraped(nodes), re.MULTILINE))
        return {"ray_sweep_tasks", "ray_sweep_quarantined_nodes", "ray_sweep_device_idle_seconds_total"} <= names

    wait_for(complete)
    runner.join(WAIT_S)
    assert runner.code is ExitCode.PASSED, runner.seen.getvalue()
    assert {row["node"].partition(":")[2] for row in Store(str(tmp_path / "out")).resolve("r").rows().to_pylist()} == chosen

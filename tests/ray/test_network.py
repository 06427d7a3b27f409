"""Nodes with addresses of their own: one that is cut off and comes back, one behind a slow link, a head that is lost or starts anew."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

from orchestrator.errors import ExitCode
from orchestrator.journal import read_standing, read_story
from orchestrator.store import Store
from tests.ray.network import PORT, Network, why_not

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(sys.platform != "linux" or (why_not() is not None), reason=f"no network can be made here: {why_not()}"),
]

WAIT_S = 180.0
HEALTH = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 2000,
    "health_check_failure_threshold": 5,
}


def wait_for(holds, wait_s=WAIT_S):
    give_up = time.monotonic() + wait_s
    while not (found := holds()):
        assert time.monotonic() < give_up, "waited in vain"
        time.sleep(0.3)
    return found


class Machines:
    """A head that takes no tasks, and nodes with one core each."""

    def __init__(self, network):
        self.head, self.a, self.b = (network.add(name) for name in ("head", "a", "b"))
        self.address = f"{self.head.address}:{PORT}"
        self.start_head()
        self.join(self.a, self.b)

    def start_head(self):
        self.head.ray("--head", "--include-dashboard=false", f"--port={PORT}", "--num-cpus=0", f"--system-config={json.dumps(HEALTH)}")
        wait_for(self._head_listens)

    def _head_listens(self):
        knock = f"import socket; socket.create_connection(('{self.head.address}', {PORT}), 1)"
        return self.head.start(sys.executable, "-c", knock, stderr=subprocess.DEVNULL).wait() == 0

    def join(self, *nodes):
        for node in nodes:
            before = node.started()
            node.raylet = node.ray(f"--address={self.address}", "--num-cpus=1")
            wait_for(lambda node=node, before=before: node.started() > before)


@pytest.fixture
def machines():
    network = Network()
    try:
        yield Machines(network)
    finally:
        network.close()


def manifest(tmp_path, count, seconds):
    path = tmp_path / "far.yaml"
    models = "".join(f"    - {{name: slow_pass.{i}, options: {{seconds: {seconds}}}}}\n" for i in range(count))
    head = "schema_version: 1\nname: far\nmatrix: {dtype: [float32]}\nexecution: {num_cpus: 1, device: cpu}\n"
    path.write_text(f"{head}suites:\n  toy:\n{models}")
    return path


def run(site, machines, path, *arguments):
    return site.sweep("run", str(path), "--address", machines.address, "--results", str(path.parent / "out"), "--run-id", "r", *arguments)


def stored(tmp_path):
    store = Store(str(tmp_path / "out"))
    return store.resolve("r") if store.runs() else None


def rows(tmp_path):
    store = stored(tmp_path)
    return store.rows(("task_id", "status", "attempt", "node")).to_pylist() if store else []


def active(tmp_path):
    """The attempts that the cluster has now."""
    store = stored(tmp_path)
    return read_standing(store.files).get("active", []) if store else []


def test_a_node_that_is_cut_off_loses_its_task_to_another_and_is_welcome_back(machines, tmp_path):
    # Longer than it takes to notice: what is done by then is found in the spool, and not lost.
    driver = run(machines.head, machines, manifest(tmp_path, 9, 25))
    lost = wait_for(lambda: [task for task in active(tmp_path) if (task["node"] or "").startswith("b:")])[0]["node"]
    machines.b.cut()
    wait_for(lambda: any(task["attempt"] > 1 for task in active(tmp_path)))
    machines.b.mend()
    wait_for(lambda: machines.b.raylet.poll() is not None)  # Ray ends a node that it has given up
    machines.b.reboot()
    machines.join(machines.b)
    _, said = driver.communicate(timeout=WAIT_S)
    assert driver.returncode == ExitCode.PASSED, said
    found = rows(tmp_path)
    assert len(found) == len({row["task_id"] for row in found}) == 9
    assert {row["status"] for row in found} == {"pass"}
    again = [row for row in found if row["attempt"] > 1]
    assert again, "nothing was lost"
    assert any(entry["state"] == "retrying" for entry in read_story(stored(tmp_path).files, again[0]["task_id"]))
    back = {row["node"] for row in found if row["node"].startswith("b:")} - {lost}
    assert back, "the node that came back got nothing to do"


def test_a_slow_link_costs_time_and_nothing_else(machines, tmp_path):
    machines.b.slow()
    driver = run(machines.head, machines, manifest(tmp_path, 6, 3))
    _, said = driver.communicate(timeout=2 * WAIT_S)
    assert driver.returncode == ExitCode.PASSED, said
    found = rows(tmp_path)
    assert [(row["status"], row["attempt"]) for row in found] == [("pass", 1)] * 6
    assert len({row["node"] for row in found}) == 2


@pytest.mark.parametrize("then", ["starts anew", "is cut off"])
def test_a_head_that_is_lost_ends_the_run_in_words_and_it_goes_on_with_the_next(machines, tmp_path, then):
    count = 20 if then == "is cut off" else 8  # more than nodes can do before the head is given up: they need none for it
    path = manifest(tmp_path, count, 6)
    driver = run(machines.a, machines, path)
    wait_for(lambda: len(rows(tmp_path)) >= 2)
    if then == "starts anew":
        machines.head.reboot()
        machines.start_head()
    else:
        machines.head.cut()
    _, said = driver.communicate(timeout=WAIT_S)
    assert driver.returncode == ExitCode.INFRASTRUCTURE, said
    assert ("has been started anew" if then == "starts anew" else "has not answered for 40 s") in said
    assert "--resume" in said
    kept = rows(tmp_path)
    assert 2 <= len(kept) < count
    for site in (machines.a, machines.b) if then == "starts anew" else (machines.a, machines.b, machines.head):
        site.reboot()
    if then == "is cut off":
        machines.head.mend()
        machines.start_head()
    machines.join(machines.a, machines.b)
    again = run(machines.a, machines, path, "--resume")
    _, said = again.communicate(timeout=WAIT_S)
    assert again.returncode == ExitCode.PASSED, said
    done = rows(tmp_path)
    assert len(done) == count
    assert all(row in done for row in kept)

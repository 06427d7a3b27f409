"""Submitting to a real cluster of two nodes that asks for a token: what a node, a client and a stop in the middle do to a run."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from orchestrator.errors import ExitCode, HeadError
from orchestrator.jobs import Head, Token
from orchestrator.store import Store

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SECRET = "0123456789abcdef" * 2
WAIT_S = 120.0
TOY = Path(__file__).parent.parent.parent / "manifests" / "toy.yaml"
HEALTH = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 6}


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_for(holds):
    give_up = time.monotonic() + WAIT_S
    while not (found := holds()):
        assert time.monotonic() < give_up, "waited in vain"
        time.sleep(0.3)
    return found


class RealCluster:
    """A head and nodes as `ray start` makes them, each a tree of processes that can be killed."""

    def __init__(self, home):
        self._session = tempfile.mkdtemp(prefix="sw", dir="/tmp")  # short: sockets have short names
        self._port = free_port()
        dashboard = free_port()
        self.address = f"http://127.0.0.1:{dashboard}"
        self.env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {
            "HOME": str(home),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": SECRET,
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        self._started = []
        self.start(
            "--head", f"--port={self._port}", f"--dashboard-port={dashboard}", f"--temp-dir={self._session}",
            f"--system-config={json.dumps(HEALTH)}",
        )  # fmt: skip
        self.head = Head(self.address, Token(SECRET, "the test"))
        self.wait_for_nodes(1)

    def join(self):
        before = self.alive()
        node = self.start(f"--address=127.0.0.1:{self._port}")
        self.wait_for_nodes(before + 1)
        return node

    def start(self, *arguments):
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus=1", "--object-store-memory=100000000"]
        command += ["--dashboard-agent-listen-port=0"]  # other Rays may run on this machine
        node = subprocess.Popen(
            [*command, "--disable-usage-stats", *arguments], env=self.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self._started.append(node)
        return node

    def alive(self):
        try:
            return sum(node["state"] == "ALIVE" for node in self.head.nodes())
        except HeadError:
            return 0

    def wait_for_nodes(self, count):
        wait_for(lambda: self.alive() == count)

    def kill(self, node):
        tree = [psutil.Process(node.pid), *psutil.Process(node.pid).children(recursive=True)]
        for process in tree:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        node.wait()

    def close(self):
        for node in self._started:
            if node.poll() is None:
                self.kill(node)
        shutil.rmtree(self._session, ignore_errors=True)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    cluster = RealCluster(tmp_path_factory.mktemp("home"))
    try:
        cluster.join()
        yield cluster
    finally:
        cluster.close()


def start(cluster, *arguments, **env):
    command = [sys.executable, "-m", "orchestrator", *arguments]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=cluster.env | {"PYTHONPATH": str(TOY.parent.parent), **env}, **streams)


def sweep(cluster, *arguments, **env):
    process = start(cluster, *arguments, **env)
    out, err = process.communicate(timeout=WAIT_S)
    return process.returncode, out, err


def rows(results, run):
    store = Store(str(results))
    return store.resolve(run).rows(("task_id", "status", "attempt")).to_pylist() if store.runs() else []


def slow_manifest(tmp_path, count=12, seconds=5):
    path = tmp_path / "slow.yaml"
    models = "".join(f"    - {{name: slow_pass.{i}, options: {{seconds: {seconds}}}}}\n" for i in range(count))
    head = "schema_version: 1\nname: slow\nmatrix: {dtype: [float32]}\nexecution: {num_cpus: 1, device: cpu}\n"
    path.write_text(f"{head}suites:\n  toy:\n{models}")
    return path


def test_without_the_token_nothing_is_sent_and_the_message_says_what_to_set(cluster, tmp_path):
    arguments = ("submit", str(TOY), "--address", cluster.address, "--results", str(tmp_path))
    code, _, said = sweep(cluster, *arguments, RAY_AUTH_TOKEN="", RAY_AUTH_MODE="")
    assert code == ExitCode.INFRASTRUCTURE
    assert "RAY_AUTH_TOKEN" in said
    code, _, said = sweep(cluster, *arguments, RAY_AUTH_TOKEN="f" * 32)
    assert code == ExitCode.INFRASTRUCTURE
    assert "refuses the token" in said
    assert cluster.head.jobs() == []


def test_a_run_outlives_a_node_and_whoever_submitted_it(cluster, tmp_path):
    results = tmp_path / "results"
    arguments = ("submit", str(TOY), "--address", cluster.address, "--results", str(results), "--run-id", "toys", "--wait")
    client = start(cluster, *arguments)
    doomed = cluster._started[1]
    wait_for(lambda: client.poll() is None and len(rows(results, "toys")) >= 8)
    client.kill()
    first = client.communicate()
    cluster.kill(doomed)
    code, out, said = sweep(cluster, *arguments)
    assert code == ExitCode.SOME_FAILED, said
    assert out == "sweep-toys\n"
    assert "is there already, as sweep-toys: running" in said
    assert "52/52" in said
    stored = rows(results, "toys")
    assert len(stored) == len({row["task_id"] for row in stored}) == 52
    assert "infra_error" not in {row["status"] for row in stored}
    assert [job.submission_id for job in cluster.head.jobs()] == ["sweep-toys"]
    assert [path.name for path in results.iterdir()] == ["toys"]
    code, listed, _ = sweep(cluster, "list", "--results", str(results), "--address", cluster.address, "--json")
    assert [(run["run_id"], run["exit_code"]) for run in json.loads(listed)["runs"]] == [("toys", 3)]
    code, seen, _ = sweep(cluster, "status", "toys", "--results", str(results), "--address", cluster.address)
    assert code == 0
    assert re.search(r"job sweep-toys: failed, exit status 3; 1 nodes \(1 gone\)", seen)
    for text in (*first, out, said, listed, seen, cluster.head.logs("sweep-toys")):
        assert SECRET not in text
    assert [path for path in results.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()] == []
    cluster.join()


@pytest.mark.parametrize("through", ["head", "store"])
def test_a_stop_drains_and_a_new_job_goes_on(cluster, tmp_path, through):
    results = tmp_path / "results"
    manifest = slow_manifest(tmp_path)
    submit = ("submit", str(manifest), "--address", cluster.address, "--results", str(results), "--run-id", f"slow-{through}")
    assert sweep(cluster, *submit)[0] == 0
    wait_for(lambda: rows(results, f"slow-{through}"))
    where = ("--address", cluster.address) if through == "head" else ("--results", str(results))
    code, said, _ = sweep(cluster, "stop", f"slow-{through}", *where)
    assert code == 0
    assert "to launch nothing more" in said
    assert sweep(cluster, *submit, "--wait")[0] == ExitCode.INTERRUPTED
    kept = rows(results, f"slow-{through}")
    assert 0 < len(kept) < 12
    assert all(row["status"] == "pass" for row in kept)  # what ran came to its end
    code, out, _ = sweep(cluster, *submit, "--wait", "--resume")
    assert code == ExitCode.PASSED
    assert out == f"sweep-slow-{through}.2\n"
    done = rows(results, f"slow-{through}")
    assert len(done) == 12
    assert all(row in done for row in kept)


def test_a_forced_stop_takes_back_what_runs(cluster, tmp_path):
    results = tmp_path / "results"
    manifest = slow_manifest(tmp_path, 2, 100)
    submit = ("submit", str(manifest), "--address", cluster.address, "--results", str(results), "--run-id", "forced")
    assert sweep(cluster, *submit)[0] == 0
    wait_for(lambda: results.exists() and Store(str(results)).runs())
    assert "to stop at once" in sweep(cluster, "stop", "forced", "--address", cluster.address, "--force")[1]
    assert sweep(cluster, *submit, "--wait")[0] == ExitCode.INTERRUPTED
    assert rows(results, "forced") == []
    assert "nothing to stop" in sweep(cluster, "stop", "forced", "--address", cluster.address)[1]


def test_a_driver_that_is_killed_is_no_success(cluster, tmp_path):
    results = tmp_path / "results"
    submit = ("submit", str(slow_manifest(tmp_path, 2, 100)), "--address", cluster.address, "--results", str(results), "--run-id", "killed")
    assert sweep(cluster, *submit)[0] == 0
    owner = wait_for(lambda: Store(str(results)).resolve("killed").holder() if results.exists() and Store(str(results)).runs() else None)
    os.kill(owner.pid, signal.SIGKILL)
    assert sweep(cluster, *submit, "--wait")[0] == ExitCode.INFRASTRUCTURE

"""Submitting to a real cluster, a head and two nodes that ask for a token: what a node, a client and a stop in the middle do to a run."""

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
import yaml

from orchestrator import kuberay
from orchestrator.errors import ExitCode, HeadError
from orchestrator.jobs import Head, Token
from orchestrator.journal import read_standing
from orchestrator.manifest import load_manifest
from orchestrator.plan import plan_tasks
from orchestrator.store import Store

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SECRET = "0123456789abcdef" * 2
WAIT_S = 240.0
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
        wait_for(self.node_ids)

    def join(self):
        """A node more, and Ray's id of it."""
        before = self.node_ids()
        node = self.start(f"--address=127.0.0.1:{self._port}")
        [node_id] = wait_for(lambda: self.node_ids() - before)
        return node, node_id

    def start(self, *arguments):
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus=1", "--object-store-memory=100000000"]
        command += ["--dashboard-agent-listen-port=0"]  # other Rays may run on this machine
        node = subprocess.Popen(
            [*command, "--disable-usage-stats", *arguments], env=self.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self._started.append(node)
        return node

    def node_ids(self):
        try:
            return {node["node_id"] for node in self.head.nodes() if node["state"] == "ALIVE"}
        except HeadError:
            return set()

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
        cluster.doomed = cluster.join()
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
    return store.resolve(run).rows(("task_id", "status", "attempt", "node")).to_pylist() if store.runs() else []


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


def toys_and_slow_ones(tmp_path):
    """The toy manifest, and tasks that last long enough to be seen at work. The number of its tasks."""
    path = tmp_path / "toys.yaml"
    slow = "{name: slow_pass.%d, options: {seconds: 15}, deadlines: {compile_s: 90, task_s: 180}}"
    path.write_text(TOY.read_text().replace("    - pass.1\n", "".join(f"    - {line}\n" for line in ("pass.1", slow % 1, slow % 2))))
    return path, len(plan_tasks(load_manifest(path), "cpu").tasks)


def at_work_on(results, run, node_id):
    """A slow task that the driver has seen on the node a moment ago."""
    active = (
        read_standing(Store(str(results)).resolve(run).files).get("active", ()) if results.exists() and Store(str(results)).runs() else ()
    )
    tasks = [task["task_id"] for task in active if task["node"] and task["node"].endswith(node_id[:8]) and "slow_pass." in task["task_id"]]
    return tasks[0] if tasks else None


def test_a_run_outlives_a_node_and_whoever_submitted_it(cluster, tmp_path):
    results = tmp_path / "results"
    manifest, planned = toys_and_slow_ones(tmp_path)
    arguments = ("submit", str(manifest), "--address", cluster.address, "--results", str(results), "--run-id", "toys", "--wait")
    client = start(cluster, *arguments)
    node, node_id = cluster.doomed
    lost = wait_for(lambda: client.poll() is None and at_work_on(results, "toys", node_id))
    cluster.kill(node)
    client.kill()
    first = client.communicate()
    code, out, said = sweep(cluster, *arguments)
    assert code == ExitCode.SOME_FAILED, said
    assert out == "sweep-toys\n"
    assert "is there already, as sweep-toys: running" in said
    assert f"{planned}/{planned}" in said
    stored = rows(results, "toys")
    assert len(stored) == len({row["task_id"] for row in stored}) == planned
    assert "infra_error" not in {row["status"] for row in stored}
    [again] = [row for row in stored if row["task_id"] == lost]
    assert (again["status"], again["attempt"]) == ("pass", 2)
    assert not again["node"].endswith(node_id[:8])
    assert [job.submission_id for job in cluster.head.jobs()] == ["sweep-toys"]
    assert [path.name for path in results.iterdir()] == ["toys"]
    code, listed, _ = sweep(cluster, "list", "--results", str(results), "--address", cluster.address, "--json")
    assert [(run["run_id"], run["exit_code"]) for run in json.loads(listed)["runs"]] == [("toys", 3)]
    code, seen, _ = sweep(cluster, "status", "latest", "--results", str(tmp_path / "elsewhere"), "--address", cluster.address)
    assert code == 0
    assert re.search(r"toys: not in the results store.*\n.*job sweep-toys: failed, exit status 3; 2 nodes \(1 gone\)", seen)
    code, log, said_log = sweep(cluster, "logs", "fail_run/amp", "--run", "toys", "--address", cluster.address)
    assert code == 0, said_log
    assert "toy/fail_run/amp/training/inductor: fail_run" in log
    for text in (*first, out, said, listed, seen, log, cluster.head.logs("sweep-toys")):
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


def test_the_second_stop_takes_back_what_runs(cluster, tmp_path):
    results = tmp_path / "results"
    manifest = slow_manifest(tmp_path, 2, 100)
    submit = ("submit", str(manifest), "--address", cluster.address, "--results", str(results), "--run-id", "twice")
    assert sweep(cluster, *submit)[0] == 0
    wait_for(lambda: results.exists() and Store(str(results)).runs())
    assert "to launch nothing more" in sweep(cluster, "stop", "twi", "--address", cluster.address)[1]
    assert "to stop at once" in sweep(cluster, "stop", "latest", "--address", cluster.address)[1]
    assert sweep(cluster, *submit, "--wait")[0] == ExitCode.INTERRUPTED
    assert rows(results, "twice") == []
    assert "nothing to stop" in sweep(cluster, "stop", "twice", "--address", cluster.address)[1]


def test_a_driver_that_is_killed_is_no_success(cluster, tmp_path):
    results = tmp_path / "results"
    submit = ("submit", str(slow_manifest(tmp_path, 2, 100)), "--address", cluster.address, "--results", str(results), "--run-id", "killed")
    assert sweep(cluster, *submit)[0] == 0
    owner = wait_for(lambda: Store(str(results)).resolve("killed").holder() if results.exists() and Store(str(results)).runs() else None)
    os.kill(owner.pid, signal.SIGKILL)
    assert sweep(cluster, *submit, "--wait")[0] == ExitCode.INFRASTRUCTURE


def inline_manifest(tmp_path, models, extra=""):
    path = tmp_path / "inline.yaml"
    head = "schema_version: 1\nname: inline\nmatrix: {dtype: [float32]}\nexecution: {num_cpus: 1, device: cpu, isolation: inline}\n"
    path.write_text(f"{head}suites: {{toy: [{models}]}}\n{extra}")
    return path


def test_one_submission_runs_in_each_environment_and_the_runs_compare(cluster, tmp_path):
    results = tmp_path / "results"
    manifest = inline_manifest(tmp_path, "pass", "environments: {old: {env_vars: {WHICH: old}}, new: {env_vars: {WHICH: new}}}\n")
    submit = ("submit", str(manifest), "--address", cluster.address, "--results", str(results), "--run-id", "both", "--wait")
    code, out, said = sweep(cluster, *submit)
    assert code == ExitCode.PASSED, said
    assert out == "sweep-both-old\nsweep-both-new\n"
    for name in ("old", "new"):
        assert cluster.head.job(f"sweep-both-{name}").runtime_env["env_vars"]["WHICH"] == name
        assert Store(str(results)).resolve(f"both-{name}").record.environment == name
    [compare] = re.findall(r"sweep (compare .*)", said)
    code, compared, said = sweep(cluster, *compare.split())
    assert code == 0, said
    assert "toy" in compared


def test_the_entrypoint_of_a_rayjob_runs_and_resumes(cluster, tmp_path):
    """As a job, as KubeRay passes it on; what another try would not change is no failure."""
    manifest = inline_manifest(tmp_path, "pass, fail_accuracy")
    text = kuberay.rayjob(load_manifest(manifest), f"file://{tmp_path}/results", "k")
    [entrypoint] = [document["spec"]["entrypoint"] for document in yaml.safe_load_all(text) if document["kind"] == "RayJob"]
    parts = []
    for number in (1, 2):
        env = {"env_vars": {"PYTHONPATH": str(TOY.parent.parent)}}
        job = {"entrypoint": entrypoint.replace("/sweep/", f"{tmp_path}/"), "submission_id": f"k{number}", "runtime_env": env}
        cluster.head.post("/api/jobs/", job)
        ended = wait_for(lambda name=f"k{number}": (job := cluster.head.job(name)).over and job)
        assert ended.status == "SUCCEEDED", cluster.head.logs(f"k{number}")
        assert Store(f"{tmp_path}/results").resolve("k").record.exit_code == ExitCode.SOME_FAILED
        parts.append(sorted(path.name for path in (tmp_path / "results" / "k" / "tasks").iterdir()))
    assert parts[0] == parts[1]

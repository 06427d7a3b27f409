"""The store in a bucket of a real S3 server over HTTP: moto's, from PyPI."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import subprocess
import sys
import time

import pyarrow.fs as pafs
import pytest
from rich.console import Console

from orchestrator import run as runs
from orchestrator.control import request_stop, stop_requests
from orchestrator.errors import ExitCode, RunLockedError, StoreError, UsageError
from orchestrator.events import Ended, Started
from orchestrator.journal import read_standing, read_story
from orchestrator.record import RunState
from orchestrator.request import RunRequest
from orchestrator.store import Store
from orchestrator.verify import verify
from tasks.probe import probe
from tasks.spec import encode
from tests.orchestrator.fakes import NODE, FakeCluster
from tests.orchestrator.fakes import passed as passed_at_once
from tests.orchestrator.stored import a_run, a_task, failed, passed

pytest.importorskip("moto.server", reason="needs moto[server]")

TASKS = [a_task(number) for number in range(4)]


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory):
    """host:port of a server that forgets everything when the tests are over."""
    log = tmp_path_factory.mktemp("s3") / "log"
    command = [sys.executable, "-c", "from moto.server import main; main(['--host', '127.0.0.1', '--port', '0'])"]
    with log.open("w") as stderr, subprocess.Popen(command, stdout=stderr, stderr=stderr) as server:
        try:
            yield _address(log, server)
        finally:
            server.kill()


def _address(log, server):
    for _ in range(600):
        if found := re.search(r"Running on http://(127\.0\.0\.1:\d+)", log.read_text()):
            return found[1]
        assert server.poll() is None, log.read_text()
        time.sleep(0.1)
    return pytest.fail(log.read_text())


@pytest.fixture
def store(endpoint, monkeypatch, request):
    for name, value in {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_EC2_METADATA_DISABLED": "true"}.items():
        monkeypatch.setenv(name, value)
    options = f"scheme=http&endpoint_override={endpoint}&region=us-east-1&allow_bucket_creation=true"
    bucket = f"bucket-{abs(hash(request.node.name)) % 10**8}"
    filesystem, _ = pafs.FileSystem.from_uri(f"s3://{bucket}?{options}")
    filesystem.create_dir(bucket)
    return Store(f"s3://{bucket}/results?{options}")


def test_a_run_lives_in_a_bucket_from_start_to_end(store):
    with pytest.raises(UsageError, match="there are no runs"):
        store.resolve("latest")
    with a_run(store, TASKS) as run:
        for index, task in enumerate(TASKS[:2]):
            run.append([(task, passed(task, seed=index))])
        run.refresh_lock()
        run.set_state(RunState.INTERRUPTED, 130)
    run = store.resolve("latest")
    assert run.acquire() == []
    run.append([(TASKS[2], passed(TASKS[2], seed=2)), (TASKS[3], failed(TASKS[3]))])
    assert verify(run) == []
    assert run.compact()
    assert verify(run) == []
    assert len(run.files.names("tasks")) == len(run.files.names("samples")) == 1
    assert run.samples_of(TASKS[1].task_id) == passed(TASKS[1], seed=1).samples
    assert [record.state for record in store.runs()] == [RunState.INTERRUPTED]


def test_one_driver_at_a_time_and_a_fenced_one_writes_nothing(store):
    old = a_run(store, TASKS)
    with pytest.raises(RunLockedError, match="held by process"):
        store.resolve("latest").acquire()
    silent = dataclasses.replace(old.holder(), machine="elsewhere", heartbeat=0.0)
    old.files.write("lock.json", json.dumps(encode(silent)).encode())
    new = store.resolve("latest")
    new.acquire()
    with pytest.raises(RunLockedError, match="taken over"):
        old.append([(TASKS[0], passed(TASKS[0]))])
    assert new.terminal() == {}


def test_damage_in_a_bucket_is_set_aside(store):
    with a_run(store, TASKS) as run:
        for task in TASKS[:2]:
            run.append([(task, passed(task))])
        name = run.files.names("tasks")[0]
        run.files.write(f"tasks/{name}", run.files.read(f"tasks/{name}")[:-20])
    run = store.resolve("latest")
    (path,) = run.acquire()
    assert path.endswith(f"tasks/{name}.corrupt")
    assert set(run.terminal()) == {TASKS[1].task_id}


def test_a_bucket_that_is_not_there_is_a_clear_message(store, endpoint):
    elsewhere = Store(f"s3://no-such-bucket/results?scheme=http&endpoint_override={endpoint}&region=us-east-1")
    with pytest.raises(StoreError, match="no-such-bucket/results/run-1"):
        a_run(elsewhere, TASKS)


# --- a whole run ------------------------------------------------------------------------------------------------------------------

TOYS = """\
schema_version: 1
name: toys
matrix: {dtype: [float32]}
execution: {device: cpu, num_cpus: 1, max_in_flight: 1}
suites:
  toy: [pass.1, pass.2, pass.3]
"""


class Slow(FakeCluster):
    """Starts attempts; each ends at the next poll. With a ``store``, asks for a stop when the second has been launched, and lets that run
    until the driver has ``heard``.
    """

    def __init__(self, store=None):
        super().__init__(self.start, self.go_on)
        self.store, self.started, self.attempts, self.heard = store, [], [], True

    def probe(self):
        return {NODE.name: probe()}

    def launch(self, task, attempt, avoid, alone):
        self.attempts.append(attempt)
        super().launch(task, attempt, avoid, alone)

    def start(self, task_id, attempt):
        self.started.append((task_id, attempt))
        return [Started(time.monotonic(), task_id, attempt, NODE.name)]

    def go_on(self):
        if self.store and len(self.launched) == 2:
            request_stop(self.store.resolve("r").files)
            self.store, self.heard = None, False
        if not self.heard:
            return
        self.ready.extend(Ended(time.monotonic(), *key, passed_at_once(*key)) for key in self.started)
        self.started.clear()


def test_a_run_in_a_bucket_is_driven_stopped_and_resumed(store, tmp_path, monkeypatch):
    monkeypatch.setattr("orchestrator.driver.HOUSEKEEPING_S", 0.1)
    (tmp_path / "toys.yaml").write_text(TOYS)
    request = RunRequest(tmp_path / "toys.yaml", store.root, "r", resume=True)
    cluster = Slow(store)

    def hear(files):
        asked = stop_requests(files)
        cluster.heard = cluster.heard or asked > 0
        return asked

    monkeypatch.setattr("orchestrator.sink.stop_requests", hear)
    ended = runs.run(request, Console(file=io.StringIO()), connect=lambda _: cluster)
    assert ended.ending.exit_code is ExitCode.INTERRUPTED
    assert ended.go_on.endswith("--run-id r --resume")
    assert len(cluster.launched) == 2
    assert {attempt.spool for attempt in cluster.attempts} == {None}, "nodes do not write to a bucket"
    run = store.resolve("r")
    assert run.record.state is RunState.INTERRUPTED
    first = run.rows().to_pylist()
    assert len(first) == 2
    assert "row written" in read_story(run.files, cluster.launched[0][0])[-1]["what"]
    assert read_standing(run.files)["active"] == []
    again = Slow()
    assert runs.run(request, Console(file=io.StringIO()), connect=lambda _: again).ending.exit_code is ExitCode.PASSED
    run = store.resolve("r")
    assert len(again.launched) == 1
    assert [row for row in run.rows().to_pylist() if row["task_id"] != again.launched[0][0]] == first
    assert run.record.state is RunState.FINISHED
    assert run.holder() is None

"""The small jobs beside a driver. No cluster; tests/ray has one."""

from __future__ import annotations

import json

import pytest

from orchestrator import beside
from orchestrator.errors import InfrastructureError
from orchestrator.jobs import Head, Job
from tests.orchestrator.fake_head import FakeHead, serving

METADATA = {"run_id": "r", "results": "s3://b/x"}


class Control(FakeHead):
    """A head on which the small job ends as ``status``, having printed ``logs``."""

    def __init__(self, status, logs):
        super().__init__()
        self.status, self.logs = status, logs
        self.answers |= {"/api/jobs/": {"submission_id": "x"}, "/api/jobs/sweep-r/stop": {"stopped": True}}

    def answer(self, path, authorization, body):
        if path.startswith("/api/jobs/sweep-r-stop-"):
            self.seen.append((path, authorization, body))
            stop = {"stopped": True} if path.endswith("/stop") else None
            return stop or ({"logs": self.logs} if path.endswith("/logs") else {"submission_id": "c", "status": self.status})
        return super().answer(path, authorization, body)

    @property
    def sent(self):
        return json.loads(next(body for path, _, body in self.seen if path == "/api/jobs/"))

    def asked(self, end):
        return [path for path, _, _ in self.seen if path.endswith(end)]


def driver(**fields):
    return Job(
        "sweep-r", **{"status": "RUNNING", "metadata": METADATA, "runtime_env": {"working_dir": "gcs://p.zip"}, "node": "n1"} | fields
    )


def test_a_stop_goes_through_the_store_that_the_driver_sees():
    head = Control("SUCCEEDED", "noise\nasked the driver\n")
    with serving(head) as address:
        assert beside.stop(Head(address), driver(), force=True) == "asked the driver"
    assert head.sent["entrypoint"] == "exec python -m orchestrator stop r --results s3://b/x --driver --force"
    assert head.sent["runtime_env"] == {"working_dir": "gcs://p.zip"}
    assert "entrypoint_label_selector" not in head.sent
    assert head.asked("sweep-r/stop") == []


def test_it_runs_on_the_node_of_a_driver_that_was_placed():
    head = Control("SUCCEEDED", "asked\n")
    with serving(head) as address:
        beside.stop(Head(address), driver(metadata=METADATA | {"driver_placed": "yes"}), force=False)
    assert head.sent["entrypoint_label_selector"] == {"ray.io/node-id": "n1"}


def test_a_stop_that_printed_nothing_yet_was_heard_all_the_same():
    with serving(Control("SUCCEEDED", "")) as address:
        assert beside.stop(Head(address), driver(), force=False) == "asked the driver of r to stop"


def test_where_no_driver_reads_requests_ray_stops_it():
    head = Control("FAILED", "run r is interrupted: there is nothing to stop\n")
    with serving(head) as address:
        assert "told to stop by Ray" in beside.stop(Head(address), driver(), force=False)
    assert head.asked("sweep-r/stop") != []


def test_a_request_that_does_not_get_through_is_taken_back(monkeypatch):
    monkeypatch.setattr(beside, "CONTROL_S", 0.0)
    head = Control("PENDING", "")
    with serving(head) as address:
        assert "told to stop by Ray" in beside.stop(Head(address), driver(), force=False)
    [taken_back, stopped] = head.asked("/stop")
    assert taken_back.startswith("/api/jobs/sweep-r-stop-")
    assert stopped == "/api/jobs/sweep-r/stop"


def test_a_driver_that_has_not_begun_is_stopped_by_ray():
    head = Control("SUCCEEDED", "")
    with serving(head) as address:
        assert "told to stop by Ray" in beside.stop(Head(address), driver(status="PENDING"), force=False)
    assert all(not body for _, _, body in head.seen)


@pytest.mark.parametrize("preamble", ["", "INFO Runtime env is setting up.\nRunning entrypoint for job {name}: exec python\n"])
def test_a_log_comes_without_what_ray_puts_before_it(monkeypatch, preamble):
    sent = {}
    monkeypatch.setattr(beside, "hand_over", lambda head, **job: sent.update(job))
    monkeypatch.setattr(beside, "_name", lambda job, what: f"sweep-r-stop-{what}")
    head = Control("SUCCEEDED", preamble.format(name="sweep-r-stop-logs") + "toy/a: pass\nbuilt\n")
    env = {"working_dir": "gcs://p.zip", "pip": ["x"], "env_vars": {"A": "b"}}
    with serving(head) as address:
        assert beside.logs(Head(address), driver(runtime_env=env), "toy/a") == "toy/a: pass\nbuilt\n"
    assert sent["entrypoint"] == "exec python -m orchestrator logs toy/a --run r --results s3://b/x"
    assert {key: value for key, value in sent["runtime_env"].items() if key != "working_dir"} == {"pip": ["x"], "env_vars": {"A": "b"}}


def test_a_log_that_is_not_there_is_an_error_in_the_words_of_the_cluster(monkeypatch):
    monkeypatch.setattr(beside, "hand_over", lambda head, **job: None)
    monkeypatch.setattr(beside, "_name", lambda job, what: f"sweep-r-stop-{what}")
    with (
        serving(Control("FAILED", "no task is called 'x'\n")) as address,
        pytest.raises(InfrastructureError, match="no task is called 'x'"),
    ):
        beside.logs(Head(address), driver(), "x")

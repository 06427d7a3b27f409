"""What is submitted and under which name, the command around it, and the RayJob. No cluster; tests/ray has one."""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

from orchestrator import submit
from orchestrator.errors import UsageError
from orchestrator.jobs import Head
from tests.orchestrator.fake_head import FakeHead, serving


def entry(name, run_id="r", status="RUNNING", **metadata):
    given = {"run_id": run_id, "results": "s3://b/x", **metadata}
    return {"submission_id": name, "status": status, "metadata": given, "start_time": 1, "runtime_env": {"working_dir": "gcs://p.zip"}}


def sweep(*arguments, env=None):
    command = [sys.executable, "-m", "orchestrator", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=env)


def test_the_same_manifest_is_the_same_run_and_another_is_not(manifest):
    first = submit.default_run_id(manifest())
    assert submit.default_run_id(manifest("# a remark\n")) == first
    assert submit.default_run_id(manifest("seed: 7\n")) != first


def test_results_must_mean_something_on_the_cluster(manifest):
    for results in ("results", "./results"):
        with pytest.raises(UsageError, match="absolute path that every node shares"):
            submit.results_on_cluster(manifest(), results)
    with pytest.raises(UsageError, match=r"submit\.store"):
        submit.results_on_cluster(manifest(), None)
    assert submit.results_on_cluster(manifest("submit: {store: 's3://b/x'}\n"), None) == "s3://b/x"
    assert submit.results_on_cluster(manifest("submit: {store: 's3://b/x'}\n"), "/shared") == "/shared"


def test_the_driver_is_started_without_a_shell_and_with_its_grace(manifest):
    loaded = manifest(
        "submit: {stop_grace_s: 90.5, pip: [somelib==1], env_vars: {A: b}, entrypoint_num_cpus: 2, entrypoint_resources: {x: 1}}\n"
    )
    job = submit.prepare(loaded, "/shared/a b", "r", 3, resume=True)
    words = shlex.split(job.entrypoint)
    assert words[:4] == ["exec", "python", "-m", "orchestrator"]
    assert words[4:11] == ["run", "manifest/trial.yaml", "--results", "/shared/a b", "--run-id", "r", "--address"]
    assert words[11:] == ["auto", "--resume", "--wait-for-lock", "180"]
    assert job.env == {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "91", "A": "b"}, "pip": ["somelib==1"]}
    assert (job.submission_id, job.settings.entrypoint_num_cpus, job.settings.entrypoint_resources) == ("sweep-r.3", 2.0, {"x": 1.0})
    assert "--resume" not in submit.prepare(loaded, "/shared", "r").entrypoint
    assert "--log-json" in submit.prepare(loaded, "/shared", "r", log_json=True).entrypoint


@pytest.mark.parametrize("deleted", [(), (1,), (2,), (1, 10)])
def test_the_jobs_of_a_run_are_found_in_order_among_others(deleted):
    names = {1: "sweep-r", 2: "sweep-r.2", 3: "sweep-r.3", 10: "sweep-r.10"}
    there = [names[number] for number in (2, 10, 1, 3) if number not in deleted]
    head = FakeHead()
    others = [entry("sweep-rr", "rr"), entry("sweep-r-stop-1", "", beside="sweep-r"), entry("sweep-r.x"), entry("sweep-r.02")]
    head.answers["/api/jobs/"] = [[*map(entry, there), *others]]
    with serving(head) as address:
        found = [job.submission_id for job in submit.jobs_of(Head(address), "r")]
    assert found == [names[number] for number in names if number not in deleted]


@pytest.mark.parametrize(
    ("name", "expected"), [("abc", "abc"), ("ab", "ab"), ("abd", "abd-1"), ("latest", "abd-1"), ("a", "ambiguous"), ("x", "knows no run")]
)
def test_a_run_is_found_by_its_beginning_and_the_latest_by_that_word(name, expected):
    head = FakeHead()
    jobs = [entry("sweep-ab", "ab"), entry("sweep-abc", "abc"), entry("sweep-abd-1", "abd-1")]
    head.answers["/api/jobs/"] = [[job | {"start_time": number} for number, job in enumerate(jobs, 1)]]
    with serving(head) as address:
        if " " in expected or expected == "ambiguous":
            with pytest.raises(UsageError, match=expected):
                submit.find_run(Head(address), name)
        else:
            assert submit.find_run(Head(address), name) == expected


def test_the_driver_is_placed_where_the_manifest_says(manifest):
    text = "{entrypoint_num_gpus: 1, entrypoint_memory_mib: 2, entrypoint_resources: {x: 1}, entrypoint_label_selector: {zone: a}}"
    job = submit.prepare(manifest(f"submit: {text}\n"), "/shared", "r")
    assert submit._placement(job.settings) == {
        "entrypoint_num_gpus": 1.0,
        "entrypoint_memory": 2 * 2**20,
        "entrypoint_resources": {"x": 1.0},
        "entrypoint_label_selector": {"zone": "a"},
    }
    assert job.metadata["driver_placed"] == "yes"
    assert "driver_placed" not in submit.prepare(manifest(), "/shared", "r").metadata


def test_a_head_that_asks_for_no_token_gets_none_from_ray_either(manifest):
    """Ray's own client would send it wherever RAY_AUTH_MODE says so."""
    head = FakeHead()
    head.answers["/api/jobs/"] = [[], {"submission_id": "x", "job_id": "x"}]

    def answer(path, authorization, body, plain=head.answer):
        found = plain(path, authorization, body)
        return {} if "/packages/" in path else found  # as if the package were there already

    head.answer = answer
    env = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 2}
    with serving(head) as address:
        done = sweep("submit", str(manifest().path), "--address", address, "--results", "/shared", env=env)
    assert done.returncode == 0, done.stderr
    assert len(head.seen) >= 4
    assert {authorization for _, authorization, _ in head.seen} == {None}


def test_a_run_that_is_there_is_not_submitted_again(manifest, tmp_path):
    loaded = manifest()
    run = submit.default_run_id(loaded)
    head = FakeHead()
    head.answers["/api/jobs/"] = [[entry(f"sweep-{run}", run, "FAILED", manifest_digest=loaded.digest, results="/shared/")]]
    with serving(head) as address:
        done = sweep("submit", str(loaded.path), "--address", address, "--results", "/shared")
    assert done.returncode == 0
    assert done.stdout == f"sweep-{run}\n"
    assert "is there already" in done.stderr
    assert "--resume goes on with it" in done.stderr
    assert all(path != "/api/packages" and not body for path, _, body in head.seen)


def test_a_run_id_of_another_manifest_is_refused(manifest):
    head = FakeHead()
    head.answers["/api/jobs/"] = [[entry("sweep-r", "r", manifest_digest="another")]]
    with serving(head) as address:
        done = sweep("submit", str(manifest().path), "--address", address, "--results", "/shared", "--run-id", "r")
    assert done.returncode == 2
    assert "of another manifest" in done.stderr


def test_a_run_that_writes_elsewhere_is_refused_and_not_followed(manifest):
    loaded = manifest()
    head = FakeHead()
    head.answers["/api/jobs/"] = [[entry("sweep-r", "r", manifest_digest=loaded.digest, results="s3://b/x")]]
    with serving(head) as address:
        done = sweep("submit", str(loaded.path), "--address", address, "--results", "/shared", "--run-id", "r")
    assert done.returncode == 2
    assert "has its rows in s3://b/x" in done.stderr
    assert done.stdout == ""


def test_stop_of_a_run_that_the_cluster_does_not_know():
    head = FakeHead()
    head.answers["/api/jobs/"] = [[]]
    with serving(head) as address:
        done = sweep("stop", "r", "--address", address)
    assert done.returncode == 2
    assert "sweep list" in done.stderr


def test_the_launcher_example_is_one_to_ray():
    schema = json.loads((Path(importlib.util.find_spec("ray").origin).parent / "autoscaler" / "ray-schema.json").read_text())
    example = Path(__file__).parent.parent.parent / "examples" / "cluster" / "machines.yaml"
    jsonschema.validate(yaml.safe_load(example.read_text()), schema)

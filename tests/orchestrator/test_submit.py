"""What is submitted and under which name, the command around it, and the RayJob. No cluster; tests/ray has one."""

from __future__ import annotations

import importlib.util
import json
import shlex
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

from orchestrator import kuberay, submit
from orchestrator.errors import UsageError
from orchestrator.jobs import Head, Job
from orchestrator.manifest import load_manifest
from tests.orchestrator.fake_head import FakeHead, serving

TEXT = "schema_version: 1\nname: trial\nmatrix: {dtype: [float32]}\nsuites: {toy: [pass]}\n"


@pytest.fixture
def manifest(tmp_path):
    def write(extra=""):
        path = tmp_path / "trial.yaml"
        path.write_text(TEXT + extra)
        return load_manifest(path)

    return write


def entry(name, run_id="r", status="RUNNING", **metadata):
    given = {"run_id": run_id, "results": "s3://b/x", **metadata}
    return {"submission_id": name, "status": status, "metadata": given, "start_time": 1, "runtime_env": {"working_dir": "gcs://p.zip"}}


def sweep(*arguments):
    command = [sys.executable, "-m", "orchestrator", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


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
    assert words[4:] == ["run", "manifest/trial.yaml", "--results", "/shared/a b", "--run-id", "r", "--address", "auto", "--resume"]
    assert job.env == {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "91", "A": "b"}, "pip": ["somelib==1"]}
    assert (job.submission_id, job.settings.entrypoint_num_cpus, job.settings.entrypoint_resources) == ("sweep-r.3", 2.0, {"x": 1.0})
    assert "--resume" not in submit.prepare(loaded, "/shared", "r").entrypoint


def test_the_jobs_of_a_run_are_found_in_order_among_others():
    head = FakeHead()
    head.answers["/api/jobs/"] = [
        *[[entry("sweep-r.2"), entry("sweep-r"), entry("sweep-rr", "rr"), entry("sweep-r-stop-1", "", stops="sweep-r"), entry("sweep-r.3")]]
    ]
    with serving(head) as address:
        assert [job.submission_id for job in submit.jobs_of(Head(address), "r")] == ["sweep-r", "sweep-r.2", "sweep-r.3"]


def test_a_run_that_is_there_is_not_submitted_again(manifest, tmp_path):
    loaded = manifest()
    run = submit.default_run_id(loaded)
    head = FakeHead()
    head.answers["/api/jobs/"] = [[entry(f"sweep-{run}", run, "FAILED", manifest_digest=loaded.digest)]]
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


def test_a_stop_goes_through_the_store_that_the_driver_sees():
    head = FakeHead()

    def answer(path, authorization, body, plain=head.answer):
        if path.startswith("/api/jobs/sweep-r-stop-"):
            head.seen.append((path, authorization, body))
            return {"logs": "noise\nasked the driver\n"} if path.endswith("/logs") else entry("sweep-r-stop-1", status="SUCCEEDED")
        return plain(path, authorization, body)

    head.answer = answer
    head.answers["/api/jobs/"] = {"submission_id": "x"}
    job = Job("sweep-r", "RUNNING", metadata={"run_id": "r", "results": "s3://b/x"}, runtime_env={"working_dir": "gcs://p.zip"})
    with serving(head) as address:
        assert submit.stop(Head(address), job, force=True) == "asked the driver"
    sent = json.loads(next(body for path, _, body in head.seen if path == "/api/jobs/"))
    assert sent["entrypoint"] == "exec python -m orchestrator stop r --results s3://b/x --force"
    assert sent["runtime_env"] == job.runtime_env
    assert not any(path.endswith("sweep-r/stop") for path, _, _ in head.seen)


def test_a_driver_that_has_not_begun_is_stopped_by_ray():
    head = FakeHead()
    head.answers["/api/jobs/sweep-r/stop"] = {"stopped": True}
    with serving(head) as address:
        said = submit.stop(Head(address), Job("sweep-r", "PENDING", metadata={"run_id": "r", "results": "s3://b/x"}), force=False)
    assert "told to stop by Ray" in said


def test_stop_of_a_run_that_the_cluster_does_not_know():
    head = FakeHead()
    head.answers["/api/jobs/"] = [[]]
    with serving(head) as address:
        done = sweep("stop", "r", "--address", address)
    assert done.returncode == 2
    assert "sweep list" in done.stderr


def test_a_rayjob_resumes_and_takes_failed_tasks_for_a_finished_run(manifest):
    text = kuberay.rayjob(manifest("submit: {image: 'sweep:1', pip: [a], env_vars: {A: b}}\n"), "s3://b/x", "Trial_1")
    config, job = yaml.safe_load_all(text)
    assert config["data"] == {"file-0.yaml": manifest("submit: {image: 'sweep:1', pip: [a], env_vars: {A: b}}\n").files[0].text}
    assert job["metadata"]["name"] == config["metadata"]["name"] == "sweep-trial-1"
    assert job["spec"]["backoffLimit"] == 2
    assert yaml.safe_load(job["spec"]["runtimeEnvYAML"]) == {"env_vars": {"A": "b"}, "pip": ["a"]}
    shell, flag, script = shlex.split(job["spec"]["entrypoint"])
    assert (shell, flag) == ("sh", "-c")
    assert script.startswith("python -m orchestrator run /sweep/trial.yaml --results s3://b/x --run-id Trial_1 --address auto --resume")
    for code, expected in ((0, 0), (3, 0), (4, 1), (130, 1)):
        script_for = script.replace(script.split(" || ")[0], f"(exit {code})")
        assert subprocess.run([shell, flag, script_for]).returncode == expected
    pods = [job["spec"]["rayClusterSpec"]["headGroupSpec"], *job["spec"]["rayClusterSpec"]["workerGroupSpecs"]]
    assert [pod["template"]["spec"]["containers"][0]["image"] for pod in pods] == ["sweep:1", "sweep:1"]


def test_a_rayjob_needs_a_store_that_outlives_its_pods(manifest):
    with pytest.raises(UsageError, match="object-store URI"):
        kuberay.rayjob(manifest(), "/shared", "r")


def test_the_launcher_example_is_one_to_ray():
    schema = json.loads((Path(importlib.util.find_spec("ray").origin).parent / "autoscaler" / "ray-schema.json").read_text())
    example = Path(__file__).parent.parent.parent / "examples" / "cluster" / "machines.yaml"
    jsonschema.validate(yaml.safe_load(example.read_text()), schema)


def test_a_secret_does_not_belong_in_a_manifest(tmp_path):
    path = tmp_path / "trial.yaml"
    path.write_text(TEXT + "submit: {env_vars: {RAY_AUTH_TOKEN: abc, TOKENIZERS_PARALLELISM: 'false', AWS_SECRET_ACCESS_KEY: x}}\n")
    done = sweep("validate", str(path))
    assert done.returncode == 2
    assert "RAY_AUTH_TOKEN" in done.stderr
    assert "AWS_SECRET_ACCESS_KEY" in done.stderr
    assert "TOKENIZERS" not in done.stderr

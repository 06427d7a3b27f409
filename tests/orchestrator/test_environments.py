"""One manifest in several environments: a run each, of the same tasks."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import yaml

from orchestrator import submit
from orchestrator.environments import only, run_name, selected
from orchestrator.errors import ManifestError, UsageError
from orchestrator.plan import plan_tasks

TWO = "environments: {old: {pip: ['torch==2.11.0']}, new: {uv: ['torch==2.13.0'], env_vars: {A: new}}}\n"


def sweep(*arguments):
    return subprocess.run([sys.executable, "-m", "orchestrator", *arguments], capture_output=True, text=True, timeout=60)


def test_each_environment_stands_over_what_is_submitted_in_any_case(manifest):
    old, new = selected(manifest(TWO + "submit: {pip: [effdet], env_vars: {A: all, B: all}, stop_grace_s: 9}\n"))
    assert [each.environment for each in (old, new)] == ["old", "new"]
    assert submit.runtime_env(old.manifest.submit) == {"pip": ["torch==2.11.0"], "env_vars": {"A": "all", "B": "all"}}
    assert submit.runtime_env(new.manifest.submit) == {"uv": ["torch==2.13.0"], "env_vars": {"A": "new", "B": "all"}}
    assert old.manifest.submit.stop_grace_s == new.manifest.submit.stop_grace_s == 9


def test_they_are_runs_of_their_own_with_the_same_tasks(manifest):
    old, new = selected(manifest(TWO))
    assert old.digest != new.digest
    assert [run_name("r", each) for each in (old, new)] == ["r-old", "r-new"]
    assert re.fullmatch(r"trial-[0-9a-f]{8}-old", submit.default_run_id(old))
    tasks = [[task.spec.digest for task in plan_tasks(each, "cpu").tasks] for each in (old, new)]
    assert tasks[0] == tasks[1]


def test_changing_one_environment_leaves_the_runs_of_the_others_alone(manifest):
    old, new = selected(manifest(TWO))
    changed = selected(manifest(TWO.replace("2.13.0", "2.14.0")))
    assert changed[0].digest == old.digest
    assert changed[1].digest != new.digest


def test_where_the_driver_is_started_is_no_part_of_a_run(manifest):
    plain = manifest().digest
    assert manifest("submit: {store: /shared, stop_grace_s: 9, entrypoint_num_cpus: 1, entrypoint_resources: {x: 1}}\n").digest == plain
    for software in ("pip: [x]", "uv: [x]", "env_vars: {A: b}", "image: 'x:1'"):
        assert manifest(f"submit: {{{software}}}\n").digest != plain


def test_one_driver_is_in_one_environment(manifest):
    assert only(manifest(), None).environment is None
    assert only(manifest(TWO), "new").environment == "new"
    with pytest.raises(UsageError, match=r"old, new.*--environment NAME"):
        only(manifest(TWO), None)
    with pytest.raises(UsageError, match=r"did you mean 'old'\?"):
        only(manifest(TWO), "odl")
    with pytest.raises(UsageError, match="has no `environments`"):
        only(manifest(), "new")


def test_the_driver_is_told_which_it_is(manifest):
    _, new = selected(manifest(TWO))
    job = submit.prepare(new, "/shared", "r-new")
    assert job.entrypoint.endswith("--run-id r-new --address auto --environment new")
    assert job.env["uv"] == ["torch==2.13.0"]


def test_two_installers_are_one_too_many(manifest):
    for text in ("submit: {pip: [a], uv: [b]}\n", "environments: {e: {pip: [a], uv: [b]}}\n"):
        with pytest.raises(ManifestError, match="pip and uv exclude each other"):
            manifest(text)


def test_sweep_run_of_several_environments_wants_one(manifest):
    done = sweep("run", str(manifest(TWO).path))
    assert done.returncode == 2
    assert "--environment NAME" in done.stderr


def test_a_rayjob_for_each(manifest):
    done = sweep(
        "submit", str(manifest("environments: {a: {image: 'a:1'}, b: {image: 'b:1'}}\n").path), "--results", "s3://b/x", "--kuberay"
    )
    assert done.returncode == 0
    jobs = [document for document in yaml.safe_load_all(done.stdout) if document["kind"] == "RayJob"]
    assert [job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["image"] for job in jobs] == ["a:1", "b:1"]
    assert len({job["metadata"]["name"] for job in jobs}) == 2
    assert re.search(r"sweep compare trial-\w+-a trial-\w+-b --results s3://b/x", done.stderr)


def test_images_cannot_be_compared_on_a_cluster_that_has_one(manifest):
    path = manifest("environments: {a: {image: 'a:1'}, b: {image: 'b:1'}}\n").path
    done = sweep("submit", str(path), "--results", "s3://b/x", "--address", "http://127.0.0.1:1")
    assert done.returncode == 2
    assert "environments.a.image" in done.stderr


def test_a_plan_names_the_environments(manifest):
    done = sweep("plan", str(manifest(TWO).path))
    assert "a run in each of 2 environments: old, new" in done.stdout

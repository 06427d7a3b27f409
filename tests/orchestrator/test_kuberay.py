"""The RayJob that ``sweep submit --kuberay`` prints, against the fields that KubeRay knows and the rules that it checks. No Kubernetes."""

from __future__ import annotations

import shlex
from importlib.metadata import version

import jsonschema
import pytest
import yaml

from orchestrator import kuberay
from orchestrator.errors import InfrastructureError, UsageError
from tests.orchestrator.conftest import TRIAL


def known(required=(), **properties):
    return {"type": "object", "additionalProperties": False, "required": list(required), "properties": properties}


TRIALS = {"type": "object", "additionalProperties": {"type": "string"}}
WHOLE = {"type": "integer", "minimum": 0}
QUANTITIES = {"type": "object", "additionalProperties": {"type": "string", "pattern": r"^\d+(Mi|Gi)?$"}}
POD = known(
    ["spec"],
    spec=known(
        ["containers"],
        containers={
            "type": "array",
            "minItems": 1,
            "items": known(
                ["name", "image"],
                name={"type": "string"},
                image={"type": "string"},
                resources=known(limits=QUANTITIES, requests=QUANTITIES),
                volumeMounts={
                    "type": "array",
                    "items": known(
                        ["name", "mountPath"], name={"type": "string"}, mountPath={"type": "string"}, readOnly={"type": "boolean"}
                    ),
                },
            ),
        },
        volumes={
            "type": "array",
            "items": known(
                ["name"],
                name={"type": "string"},
                configMap=known(
                    name={"type": "string"},
                    items={"type": "array", "items": known(["key", "path"], key={"type": "string"}, path={"type": "string"})},
                ),
            ),
        },
    ),
)
RAYJOB = known(
    ["apiVersion", "kind", "metadata", "spec"],
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=known(["name"], name={"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$", "maxLength": 47}),
    spec=known(
        ["rayClusterSpec"],
        entrypoint={"type": "string"},
        entrypointNumCpus={"type": "number"},
        entrypointNumGpus={"type": "number"},
        entrypointResources={"type": "string"},
        runtimeEnvYAML={"type": "string"},
        backoffLimit=WHOLE,
        shutdownAfterJobFinishes={"type": "boolean"},
        ttlSecondsAfterFinished=WHOLE,
        rayClusterSpec=known(
            ["headGroupSpec"],
            rayVersion={"type": "string"},
            authOptions=known(mode={"enum": ["token", "disabled"]}),
            headGroupSpec=known(["template"], rayStartParams=TRIALS, template=POD),
            workerGroupSpecs={
                "type": "array",
                "items": known(
                    ["groupName", "template"],
                    groupName={"type": "string"},
                    replicas=WHOLE,
                    minReplicas=WHOLE,
                    maxReplicas=WHOLE,
                    rayStartParams=TRIALS,
                    template=POD,
                ),
            },
        )
        # KubeRay refuses token authentication without a version, or with one that has none.
        | {
            "if": {"required": ["authOptions"], "properties": {"authOptions": {"properties": {"mode": {"const": "token"}}}}},
            "then": {"required": ["rayVersion"], "properties": {"rayVersion": {"pattern": r"^(2\.(5[2-9]|[6-9]\d|\d{3,})|[3-9]\d*)\."}}},
        },
    ),
)
"""The part of KubeRay's type ``ray.io/v1`` RayJob that is used here."""


def documents(text):
    config, job = yaml.safe_load_all(text)
    jsonschema.validate(job, RAYJOB)
    return config, job


def groups(job):
    cluster = job["spec"]["rayClusterSpec"]
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def container(group):
    return group["template"]["spec"]["containers"][0]


def test_a_rayjob_has_the_fields_that_kuberay_knows(manifest):
    settings = "submit: {image: 'sweep:1', pip: [a], env_vars: {A: b}, entrypoint_num_cpus: 1, entrypoint_resources: {x: 1}}\n"
    config, job = documents(kuberay.rayjob(manifest(settings), "s3://b/x", "trial-1"))
    assert config["data"] == {"file-0.yaml": TRIAL + settings}
    assert job["metadata"]["name"] == config["metadata"]["name"] == "sweep-trial-1"
    assert job["spec"]["backoffLimit"] == 2
    assert (job["spec"]["entrypointNumCpus"], job["spec"]["entrypointResources"]) == (1.0, '{"x": 1.0}')
    assert yaml.safe_load(job["spec"]["runtimeEnvYAML"]) == {"env_vars": {"A": "b"}, "pip": ["a"]}
    assert job["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    assert job["spec"]["rayClusterSpec"]["rayVersion"] == version("ray")
    for group in groups(job):
        assert container(group)["image"] == "sweep:1"
        assert group["template"]["spec"]["volumes"][0]["configMap"] == {
            "name": "sweep-trial-1",
            "items": [{"key": "file-0.yaml", "path": "trial.yaml"}],
        }
        assert container(group)["volumeMounts"] == [{"name": "manifest", "mountPath": "/sweep", "readOnly": True}]


def test_the_driver_resumes_waits_for_a_dead_ones_lock_and_says_what_is_settled(manifest):
    text = kuberay.rayjob(manifest("submit: {env_vars: {A: b}}\n"), "s3://b/x", "Trial_1", log_json=True)
    words = shlex.split(documents(text)[1]["spec"]["entrypoint"])
    assert words[:4] == ["python", "-m", "orchestrator.cli.settled", "/sweep/trial.yaml"]
    assert words[4:10] == ["--results", "s3://b/x", "--run-id", "Trial_1", "--address", "auto"]
    assert words[10:] == ["--resume", "--wait-for-lock", "180", "--log-json"]


def test_token_authentication_without_a_version_that_knows_it_is_refused(manifest, monkeypatch):
    _, job = documents(kuberay.rayjob(manifest(), "s3://b/x", "r"))
    for there in (None, "2.51.1"):
        broken = job | {"spec": job["spec"] | {"rayClusterSpec": job["spec"]["rayClusterSpec"] | {"rayVersion": there}}}
        if there is None:
            del broken["spec"]["rayClusterSpec"]["rayVersion"]
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(broken, RAYJOB)
    monkeypatch.setattr(kuberay.importlib.metadata, "version", lambda name: "2.51.1")
    with pytest.raises(InfrastructureError, match=r"2\.52 or later"):
        kuberay.rayjob(manifest(), "s3://b/x", "r")


@pytest.mark.parametrize(
    ("execution", "resources"),
    [
        ("{device: cpu}", {"cpu": "9", "memory": "16384Mi"}),
        ("{}", {"cpu": "2", "memory": "16384Mi", "nvidia.com/gpu": "1"}),
        ("{sharing: 6}", {"cpu": "7", "memory": "24576Mi", "nvidia.com/gpu": "1"}),
        ("{sharing: auto}", {"cpu": "16", "memory": "65536Mi", "nvidia.com/gpu": "1"}),
        ("{sharing: auto, num_cpus: 2, memory_mib: 8192}", {"cpu": "16", "memory": "65536Mi", "nvidia.com/gpu": "1"}),
        ("{num_gpus: 2, num_cpus: 8}", {"cpu": "9", "memory": "16384Mi", "nvidia.com/gpu": "2"}),
    ],
)
def test_a_pod_has_room_for_the_tasks_of_its_device(manifest, execution, resources):
    _, job = documents(kuberay.rayjob(manifest(f"execution: {execution}\n"), "s3://b/x", "r"))
    head, workers = groups(job)
    assert container(workers)["resources"] == {"limits": resources, "requests": resources}
    assert head["rayStartParams"] == {"num-cpus": "0"}


def test_two_runs_are_two_names(manifest):
    runs = ["a" * 60, "a" * 60 + "b", "Trial_1", "trial-1", "trial.1"]
    names = {documents(kuberay.rayjob(manifest(), "s3://b/x", run))[1]["metadata"]["name"] for run in runs}
    assert len(names) == len(runs)
    assert "sweep-trial-1" in names


def test_a_rayjob_needs_a_store_that_outlives_its_pods(manifest):
    with pytest.raises(UsageError, match="object-store URI"):
        kuberay.rayjob(manifest(), "/shared", "r")

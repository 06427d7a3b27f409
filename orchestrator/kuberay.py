"""A run as a KubeRay RayJob, for people to read, complete and apply: a cluster of its own, gone when the run is over.

Kubernetes tries a failed RayJob again on a new cluster. That is safe because the entrypoint resumes: the rows are in the results store, and
the run's lock keeps two drivers from writing. A run that finished with some tasks not passing is a success for Kubernetes.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import re
import shlex
from typing import Any

import yaml

from orchestrator.declared import declared_beside, declared_code
from orchestrator.errors import InfrastructureError, UsageError
from orchestrator.fields import Submit
from orchestrator.manifest import LoadedManifest
from orchestrator.package import manifest_files
from orchestrator.submit import driver_words, runtime_env

IMAGE = "compile-sweep:latest"
MOUNT = "/sweep"
CONFIG_MAP_MIB = 1
"""What Kubernetes takes as the content of one ConfigMap."""

WORKERS = 2
TRIES = 3
NAME_LENGTH = 47
"""What KubeRay takes for a RayJob: it makes longer names of it, and Kubernetes takes 63 characters."""
DIGEST_LENGTH = 8

AUTO_CPUS = 16
"""Cores beside a GPU under ``sharing: auto``, which makes as many tasks of them as it can: about what clouds have there."""

TASK_MIB = 4096
"""Host memory of a task where the manifest names none."""

LEAST_RAY = (2, 52)
"""The first version with token authentication; KubeRay wants to be told of one at least as new."""


class _Dumper(yaml.SafeDumper):
    """For readers: texts as blocks, and no anchors."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        return True


_Dumper.add_representer(
    str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)
)


def rayjob(loaded: LoadedManifest, results: str, run_id: str, *, log_json: bool = False) -> str:
    """YAML of a ConfigMap with the manifest and of the RayJob that runs it.

    Raises:
        UsageError: results would be lost with the pods, or the manifest does not fit.
        InfrastructureError: there is no Ray here that knows tokens, and so no telling which one the image is to have.
    """
    if "://" not in results:
        raise UsageError(f"--results {results}: a pod's disk is gone with the pod; give an object-store URI")
    files, manifest = manifest_files(loaded)
    if sum(len(text.encode()) for text in files.values()) > CONFIG_MAP_MIB * 2**20:
        raise UsageError(f"the manifest and its includes are larger than {CONFIG_MAP_MIB} MiB, the most that a ConfigMap holds")
    name = _kubernetes_name(run_id)
    keys = {path: f"file-{number}.yaml" for number, path in enumerate(files)}
    config: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name},
        "data": {keys[path]: text for path, text in files.items()},
    }
    volume = {"name": "manifest", "configMap": {"name": name, "items": [{"key": keys[path], "path": path} for path in files]}}
    words = driver_words(loaded, f"{MOUNT}/{manifest}", results, run_id, resume=True, log_json=log_json)
    entrypoint = shlex.join(["python", "-m", "orchestrator.cli.settled", *words])
    documents = [config, _rayjob(loaded, name, entrypoint, volume)]
    return _remarks(loaded) + yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, width=140)


def _rayjob(loaded: LoadedManifest, name: str, entrypoint: str, volume: dict[str, Any]) -> dict[str, Any]:
    settings = loaded.manifest.submit or Submit()
    environment = runtime_env(settings)
    spec: dict[str, Any] = {
        "entrypoint": entrypoint,
        "backoffLimit": TRIES - 1,
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": 600,
        "rayClusterSpec": {
            "rayVersion": _ray_version(),
            "authOptions": {"mode": "token"},
            "headGroupSpec": {
                # The head takes no tasks: nothing is to disturb the driver, or to be disturbed by it.
                "rayStartParams": {"num-cpus": "0"},
                "template": _pod("ray-head", settings, {"cpu": "2", "memory": "8Gi"}, volume),
            },
            "workerGroupSpecs": [
                {
                    "groupName": "workers",
                    "replicas": WORKERS,
                    "minReplicas": WORKERS,
                    "maxReplicas": WORKERS,
                    "rayStartParams": {},
                    "template": _pod("ray-worker", settings, _worker_resources(loaded), volume),
                }
            ],
        },
    }
    if environment:
        spec["runtimeEnvYAML"] = yaml.safe_dump(environment)
    if settings.entrypoint_num_cpus:
        spec["entrypointNumCpus"] = settings.entrypoint_num_cpus
    if settings.entrypoint_num_gpus:
        spec["entrypointNumGpus"] = settings.entrypoint_num_gpus
    if settings.entrypoint_resources:
        spec["entrypointResources"] = json.dumps(settings.entrypoint_resources)
    return {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": {"name": name}, "spec": spec}


def _pod(container: str, settings: Submit, resources: dict[str, str], volume: dict[str, Any]) -> dict[str, Any]:
    return {
        "spec": {
            "containers": [
                {
                    "name": container,
                    "image": settings.image or IMAGE,
                    "resources": {"limits": resources, "requests": resources},
                    "volumeMounts": [{"name": volume["name"], "mountPath": MOUNT, "readOnly": True}],
                }
            ],
            "volumes": [volume],
        }
    }


def _worker_resources(loaded: LoadedManifest) -> dict[str, str]:
    """Room for one GPU's tasks, or for four tasks on the CPU."""
    execution = loaded.manifest.execution
    if execution.device == "cpu":
        at_once, cpus = 4, math.ceil((execution.num_cpus or 2) * 4) + 1
    elif execution.sharing == "auto":
        cpus = max(AUTO_CPUS, math.ceil(execution.num_cpus or 1))
        at_once = int(cpus / (execution.num_cpus or 1))
    else:
        at_once = execution.sharing
        cpus = math.ceil((execution.num_cpus or 1) * at_once) + 1
    resources = {"cpu": str(cpus), "memory": f"{max(16384, (execution.memory_mib or TASK_MIB) * at_once)}Mi"}
    return resources | ({"nvidia.com/gpu": str(execution.num_gpus)} if execution.device != "cpu" else {})


def _ray_version() -> str:
    """The version that the image is taken to have: the one here, which the tests ran with."""
    try:
        version = importlib.metadata.version("ray")
    except importlib.metadata.PackageNotFoundError as error:
        raise InfrastructureError(
            "Ray is not installed here, so the RayJob cannot name its version: pip install 'compile-sweep[cluster]'"
        ) from error
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < LEAST_RAY:
        raise InfrastructureError(f"Ray {version} is installed here; tokens, which the RayJob asks for, need 2.52 or later")
    return version


def _kubernetes_name(run_id: str) -> str:
    """Letters, digits and dashes, the first a letter. A digest makes up for what is changed or cut off: two runs are two names."""
    plain = re.sub(r"[^a-z0-9]+", "-", f"sweep-{run_id}".lower()).strip("-")
    if plain == f"sweep-{run_id}" and len(plain) <= NAME_LENGTH:
        return plain
    return f"{plain[: NAME_LENGTH - DIGEST_LENGTH - 1].rstrip('-')}-{hashlib.sha256(run_id.encode()).hexdigest()[:DIGEST_LENGTH]}"


def _remarks(loaded: LoadedManifest) -> str:
    settings = loaded.manifest.submit or Submit()
    unnamed = [name for name in ("entrypoint_memory_mib", "entrypoint_label_selector") if getattr(settings, name)]
    lines = [
        "Written by `sweep submit --kuberay`. Before `kubectl apply`: check image, replicas and resources, and give the pods access to the",
        "results store, through their service account or a Secret. Never write a secret into this file. rayVersion must be the image's.",
        *(f"The image must bring the code of {', '.join(code.factories)}." for code in declared_code(loaded)),
        *declared_beside(loaded),
        *(f"A RayJob has no field for submit.{name}: it is not in here." for name in unnamed),
    ]
    return "".join(f"# {line}\n" for line in lines)

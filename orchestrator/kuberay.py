"""A run as a KubeRay RayJob, for people to read, complete and apply: a cluster of its own, gone when the run is over.

Kubernetes tries a failed RayJob again on a new cluster. That is safe because the entrypoint resumes: the rows are in the results store, and
the run's lock keeps two drivers from writing. A run that finished with some tasks not passing is a success for Kubernetes.
"""

from __future__ import annotations

import math
import re
import shlex
from typing import Any

import yaml

from orchestrator.errors import ExitCode, UsageError
from orchestrator.fields import Submit
from orchestrator.manifest import LoadedManifest
from orchestrator.package import declared_code, manifest_files

IMAGE = "compile-sweep:latest"
MOUNT = "/sweep"
CONFIG_MAP_MIB = 1
"""What Kubernetes takes as the content of one ConfigMap."""

WORKERS = 2
TRIES = 3
NAME_LENGTH = 47
"""KubeRay makes longer names out of a RayJob's, and Kubernetes takes 63 characters."""


class _Dumper(yaml.SafeDumper):
    """For readers: texts as blocks, and no anchors."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        return True


_Dumper.add_representer(
    str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)
)


def rayjob(loaded: LoadedManifest, results: str, run_id: str) -> str:
    """YAML of a ConfigMap with the manifest and of the RayJob that runs it.

    Raises:
        UsageError: results would be lost with the pods, or the manifest does not fit.
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
    documents = [config, _rayjob(loaded, name, _entrypoint(f"{MOUNT}/{manifest}", results, run_id), volume)]
    return _remarks(loaded) + yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, width=140)


def _rayjob(loaded: LoadedManifest, name: str, entrypoint: str, volume: dict[str, Any]) -> dict[str, Any]:
    settings = loaded.manifest.submit or Submit()
    environment: dict[str, Any] = {"env_vars": settings.env_vars} if settings.env_vars else {}
    if settings.pip:
        environment["pip"] = list(settings.pip)
    spec: dict[str, Any] = {
        "entrypoint": entrypoint,
        "backoffLimit": TRIES - 1,
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": 600,
        "rayClusterSpec": {
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
    cuda = execution.device != "cpu"
    at_once = (execution.sharing if isinstance(execution.sharing, int) else 1) if cuda else 4
    cpus = math.ceil((execution.num_cpus or (1 if cuda else 2)) * at_once) + 1
    memory_mib = max(16384, (execution.memory_mib or 0) * at_once)
    resources = {"cpu": str(cpus), "memory": f"{memory_mib}Mi"}
    return resources | ({"nvidia.com/gpu": str(execution.num_gpus)} if cuda else {})


def _entrypoint(manifest: str, results: str, run_id: str) -> str:
    words = ["python", "-m", "orchestrator", "run", manifest, "--results", results, "--run-id", run_id, "--address", "auto", "--resume"]
    # 3: finished, some tasks did not pass. Another cluster would change nothing about that.
    return "sh -c " + shlex.quote(f"{shlex.join(words)} || test $? -eq {ExitCode.SOME_FAILED.value}")


def _kubernetes_name(run_id: str) -> str:
    name = re.sub(r"[^a-z0-9]+", "-", f"sweep-{run_id}".lower())
    return name[:NAME_LENGTH].strip("-")


def _remarks(loaded: LoadedManifest) -> str:
    lines = [
        "Written by `sweep submit --kuberay`. Before `kubectl apply`: check image, replicas and resources, and give the pods access to the",
        "results store, through their service account or a Secret. Never write a secret into this file.",
        *(f"The image must bring the code of {', '.join(code.factories)}." for code in declared_code(loaded)),
    ]
    return "".join(f"# {line}\n" for line in lines)

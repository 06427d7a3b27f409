"""Getting hold of a Ray cluster, or of a local Ray started for the purpose, in words a user can act on where that fails."""

from __future__ import annotations

import logging
import os
import socket
from pathlib import Path
from typing import Any

from orchestrator.errors import InfrastructureError, UsageError

OBJECT_STORE_BYTES = 256 * 2**20
"""Outcomes are small; Ray's default is a third of the machine's memory, which models need."""

KNOCK_S = 2.0

CLIENT_SCHEME = "ray://"
CLIENT = (
    "--address {address}: a run needs a driver on a node of the cluster, which Ray Client does not give. Give HEAD:6379, on a machine that "
    "is a node of the cluster, or hand the manifest over: sweep submit MANIFEST --address http://HEAD:8265"
)
TOKENLESS = (
    "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to a file that holds it, or put it into ~/.ray/auth_token. "
    "`ray get-auth-token` prints it on a machine of the cluster"
)


def connect(address: str | None) -> Any:
    """The module ``ray``, connected to the cluster at ``address``; None: a local Ray, started here.

    Raises:
        UsageError: the address is one of Ray Client.
        InfrastructureError: Ray is not installed, no cluster is there, it wants another token, or Ray does not start.
    """
    if address is not None and address.startswith(CLIENT_SCHEME):
        raise UsageError(CLIENT.format(address=address))
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a sweep needs no network
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
        import ray.exceptions
    except ModuleNotFoundError as error:
        raise InfrastructureError("Ray is not installed here: pip install 'compile-sweep[cluster]'") from error
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": "error", "configure_logging": False}
    if address is None:
        # Since 2.60 a Ray of one's own asks for a token, which it makes itself; the line about it says how to opt out of what is right.
        logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
        settings |= {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES, "address": "local"}
    else:
        settings |= {"address": address, "runtime_env": _code_for_nodes()}
    try:
        ray.init(**settings)
    except ray.exceptions.AuthenticationError as error:
        raise InfrastructureError(f"{_where(address)}: {error.message}: {TOKENLESS}") from error
    except (ConnectionError, RuntimeError, ValueError, OSError, ray.exceptions.RayError) as error:
        # Ray does not say that a head wants a token, or another one: to it, that head does not answer.
        hint = f". Something listens there: if it is a cluster that asks for a token, {TOKENLESS}" if address and answers(address) else ""
        raise InfrastructureError(f"{_where(address)}: {error}{hint}") from error
    return ray


def answers(address: str) -> bool:
    """Whether anything listens at ``address``, HOST:PORT."""
    host, _, port = address.rpartition(":")
    if not port.isdigit():
        return False
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_S):
            return True
    except OSError:
        return False


def in_submitted_job() -> bool:
    """Whether this process is the driver of a job that was submitted through Ray Jobs."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def _where(address: str | None) -> str:
    return f"no Ray cluster answers at {address}" if address else "Ray does not start on this machine"


def _code_for_nodes() -> dict[str, Any]:
    """Send this project's own two packages along, so that every node runs the code that the driver has."""
    if in_submitted_job():  # which has brought the project with it
        return {}
    packages = Path(__file__).parent.parent
    return {"py_modules": [str(packages / "orchestrator"), str(packages / "tasks")], "excludes": ["**/__pycache__/**"]}

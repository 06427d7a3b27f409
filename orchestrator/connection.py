"""Getting hold of a Ray cluster, or of a local Ray started for the purpose, in words a user can act on where that fails."""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

from orchestrator.errors import InfrastructureError, UsageError

OBJECT_STORE_BYTES = 256 * 2**20
"""Outcomes are small; Ray's default is a third of the machine's memory, which models need."""

KNOCK_S = 2.0
CALL_S = 5.0
CLUSTER_ID_CALL = "/ray.rpc.NodeInfoGcsService/GetClusterId"
"""The call that Ray's own clients begin with."""

RAY_PATIENCE, RAY_PATIENCE_S = "RAY_gcs_rpc_server_reconnect_timeout_s", "600"
"""After so long without its head Ray ends this process, in the middle of whatever it does. Its usual 60 s may be too short to end well."""

T = TypeVar("T")

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
    if address is not None:
        os.environ.setdefault(RAY_PATIENCE, RAY_PATIENCE_S)
    try:
        import ray
        import ray.exceptions
    except ModuleNotFoundError as error:
        raise InfrastructureError("Ray is not installed here: pip install 'compile-sweep[cluster]'") from error
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": "error", "configure_logging": False}
    if address is None:
        # Since 2.60 a Ray of one's own asks for a token, which it makes itself; the line about it says how to opt out of what is right.
        logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
        settings |= {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES, "address": "local"} | _own_cores()
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


class HeadState(StrEnum):
    """What has become of the head that a run began with."""

    THERE = "there"
    SILENT = "silent"  # it may come back: a network that is cut, a machine that is busy
    REPLACED = "replaced"  # another cluster answers at its address, and knows nothing of this run


class HeadWatch:
    """Looks after the head at ``address``, past the connection that Ray has to it.

    Ray's own calls are no way to find out: without their head, or with another one in its place, they wait until Ray ends the process
    without a word to its program.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self._known = _cluster_id(address)

    def look(self) -> HeadState:
        if not answers(self.address):
            return HeadState.SILENT
        if self._known is None:  # it never said who it is: that its port answers has to do
            return HeadState.THERE
        found = _cluster_id(self.address)
        if found is None:
            return HeadState.SILENT
        return HeadState.THERE if found == self._known else HeadState.REPLACED


def within(limit_s: float | None, ask: Callable[[], T]) -> T | None:
    """What ``ask`` returns; None if that takes longer, and then it goes on in a thread that nobody waits for."""
    answer: list[T] = []
    thread = threading.Thread(target=lambda: answer.append(ask()), daemon=True)
    thread.start()
    thread.join(limit_s)
    return answer[0] if answer else None


_goodbyes: list[threading.Thread] = []


def let_go(shutdown: Callable[[], object], limit_s: float | None) -> None:
    """Say goodbye to Ray, for at most ``limit_s``: without its head that may never end."""
    goodbye = threading.Thread(target=shutdown, daemon=True)
    _goodbyes.append(goodbye)
    goodbye.start()
    goodbye.join(limit_s)


def end_process(code: int) -> None:
    """End this process with ``code`` if Ray has not let go of it, for then an ordinary end would wait for Ray, or crash in it."""
    if any(goodbye.is_alive() for goodbye in _goodbyes):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _cluster_id(address: str) -> bytes | None:
    """What tells one cluster from another at the same address, as the head says it; None if it says nothing in time."""
    try:
        import grpc
        from ray._private.grpc_utils import init_grpc_channel  # with Ray's token, and its certificates
    except ImportError:  # no part of Ray's public interface
        return None
    channel = init_grpc_channel(address)
    try:
        return bytes(channel.unary_unary(CLUSTER_ID_CALL)(b"", timeout=CALL_S))
    except grpc.RpcError as error:
        silent = error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
        return None if silent else str(error.code()).encode()  # one that wants another token is another cluster
    finally:
        channel.close()


def in_submitted_job() -> bool:
    """Whether this process is the driver of a job that was submitted through Ray Jobs."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def _own_cores() -> dict[str, int]:
    """Ray counts the machine's cores, whichever of them its processes are kept to (``taskset``, a batch system)."""
    cores = len(os.sched_getaffinity(0))
    return {"num_cpus": cores} if cores < (os.cpu_count() or cores) else {}


def _where(address: str | None) -> str:
    return f"no Ray cluster answers at {address}" if address else "Ray does not start on this machine"


def _code_for_nodes() -> dict[str, Any]:
    """Send this project's own two packages along, so that every node runs the code that the driver has."""
    if in_submitted_job():  # which has brought the project with it
        return {}
    packages = Path(__file__).parent.parent
    return {"py_modules": [str(packages / "orchestrator"), str(packages / "tasks")], "excludes": ["**/__pycache__/**"]}

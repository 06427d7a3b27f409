"""The Jobs service on a cluster's head, over its documented REST interface: what is there, how it stands, what it printed, stop it.

Standard library only, so that following a run needs no Ray on this machine, and so that every request has a time limit. A request
carries the token only to a head that has asked for one, after a warning where others could read it. No message holds the token.
"""

from __future__ import annotations

import http.client
import ipaddress
import json
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

from orchestrator.errors import HeadError, InfrastructureError, UsageError

REQUEST_S = 30.0

PENDING, RUNNING, SUCCEEDED, FAILED, STOPPED = "PENDING", "RUNNING", "SUCCEEDED", "FAILED", "STOPPED"
REFUSALS = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
ENDED = frozenset({SUCCEEDED, FAILED, STOPPED})

TOKENLESS = (
    "the head at {address} asks for a token and there is none here: set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to a file that holds it, "
    "or put it into ~/.ray/auth_token. `ray get-auth-token` prints it on a machine of the cluster"
)
REFUSED = (
    "the head at {address} refuses the token that was found in {where}: it is another cluster's, or an old one. "
    "`ray get-auth-token` prints the right one on a machine of the cluster"
)


@dataclass(frozen=True, slots=True)
class Token:
    """The secret that opens a cluster, and where it was found. Its ``repr`` does not show it."""

    secret: str
    where: str

    def __repr__(self) -> str:
        return f"Token(where={self.where!r})"


@dataclass(frozen=True, slots=True)
class Job:
    """One submitted job. Times are seconds since the epoch."""

    submission_id: str
    status: str
    message: str = ""
    exit_code: int | None = None
    metadata: dict[str, str] | None = None
    runtime_env: dict[str, Any] | None = None
    node: str = ""
    started: float | None = None
    ended: float | None = None

    @property
    def over(self) -> bool:
        return self.status in ENDED

    def describe(self) -> str:
        """How it stands. Ray calls every driver failed that does not exit with 0; what the exit status means is ours to say."""
        known = self.over and self.exit_code is not None and self.exit_code >= 0
        return f"ended with exit status {self.exit_code}" if known else self.status.lower()


def find_token() -> Token | None:
    """The token that Ray itself would use here: RAY_AUTH_TOKEN, the file at RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token, in this order.

    Raises:
        UsageError: RAY_AUTH_TOKEN_PATH names a file that cannot be read, or an empty one.
    """
    if secret := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return Token(secret, "RAY_AUTH_TOKEN")
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named) if named else Path.home() / ".ray" / "auth_token"
    try:
        secret = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        if named:
            raise UsageError(f"RAY_AUTH_TOKEN_PATH: {path} cannot be read: {error.strerror}") from error
        return None
    if named and not secret:
        raise UsageError(f"RAY_AUTH_TOKEN_PATH: {path} is empty")
    return Token(secret, str(path)) if secret else None


class Head:
    """The Jobs service at one address."""

    def __init__(self, address: str, token: Token | None = None) -> None:
        self.address = address.rstrip("/")
        self._token = token

    @classmethod
    def find(cls, address: str, warn: Callable[[str], None]) -> Head:
        """Knock at ``address``, and take the token along if the head asks for one. ``warn`` is called before the token is sent.

        Raises:
            UsageError: the address is none of the Jobs service.
            InfrastructureError: nobody answers, or the head wants a token and there is none, or another.
        """
        if not address.startswith(("http://", "https://")):
            raise UsageError(f"--address {address}: give the address of the head's dashboard, for example http://HEAD:8265")
        head = cls(address)
        try:
            head.get("/api/version")
        except HeadError as error:
            if error.code not in REFUSALS:
                raise
        else:
            head.warn(warn)
            return head
        token = find_token()
        if token is None:
            raise InfrastructureError(TOKENLESS.format(address=address))
        head = cls(address, token)
        head.warn(warn)
        try:
            head.get("/api/version")
        except HeadError as error:
            if error.code not in REFUSALS:
                raise
            raise InfrastructureError(REFUSED.format(address=address, where=token.where)) from error
        return head

    @property
    def headers(self) -> dict[str, str]:
        """What opens the head; empty for one that asks for nothing."""
        return {"Authorization": f"Bearer {self._token.secret}"} if self._token else {}

    def warning(self) -> str | None:
        """What a careful person would want to know before anything is sent."""
        if is_loopback(self.address):
            return None
        if self._token is None:
            return (
                f"{self.address} asks for no token: whoever reaches it can run any program on this cluster. "
                "Start its nodes with RAY_AUTH_MODE=token"
            )
        if self.address.startswith("http://"):
            return f"the token travels to {self.address} unencrypted: use https, or a tunnel, outside a network that you trust"
        return None

    def warn(self, say: Callable[[str], None]) -> None:
        """Say ``warning``, if there is one."""
        if warning := self.warning():
            say(warning)

    def jobs(self) -> list[Job]:
        """Every submitted job that the cluster remembers, oldest first."""
        found = [_job(entry) for entry in self.get("/api/jobs/") if entry.get("submission_id")]
        return sorted(found, key=lambda job: (job.started or 0.0, job.submission_id))

    def job(self, submission_id: str) -> Job | None:
        """How the job stands; None if the cluster does not know it."""
        try:
            return _job(self.get(f"/api/jobs/{urllib.parse.quote(submission_id, safe='')}"))
        except HeadError as error:
            if error.code == HTTPStatus.NOT_FOUND:
                return None
            raise

    def logs(self, submission_id: str) -> str:
        """All that the job's driver has printed so far."""
        return str(self.get(f"/api/jobs/{urllib.parse.quote(submission_id, safe='')}/logs").get("logs") or "")

    def stop(self, submission_id: str) -> None:
        """Ask the job's driver to end, and kill it after the grace that the job was submitted with."""
        self.get(f"/api/jobs/{urllib.parse.quote(submission_id, safe='')}/stop", method="POST")

    def nodes(self) -> list[dict[str, Any]]:
        """The nodes that the cluster knows, dead ones too, as its state service lists them."""
        try:
            listed: list[dict[str, Any]] = self.get("/api/v0/nodes?limit=1000")["data"]["result"]["result"]
        except (KeyError, TypeError) as error:
            raise HeadError(f"the head at {self.address} lists its nodes in a form that is not known here") from error
        return listed

    def post(self, path: str, content: dict[str, Any]) -> Any:
        """Send ``content`` as JSON; the answer. Raises as ``get``."""
        return self.get(path, "POST", json.dumps(content).encode())

    def get(self, path: str, method: str = "GET", content: bytes | None = None) -> Any:
        """The JSON at ``path``.

        Raises:
            HeadError: the head says no, does not answer, or answers with something else.
        """
        headers = self.headers | ({"Content-Type": "application/json"} if content else {})
        request = urllib.request.Request(self.address + path, content, headers, method=method)  # noqa: S310 - http(s), see find
        try:
            with _OPENER.open(request, timeout=REQUEST_S) as response:
                return json.loads(response.read())
        except urllib.error.HTTPError as error:
            raise HeadError(f"the head at {self.address} answers {path} with {error.code} {error.reason}", error.code) from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = getattr(error, "reason", None) or str(error) or type(error).__name__
            raise HeadError(f"no Ray head answers at {self.address}: {reason}") from error


class _Straight(urllib.request.HTTPRedirectHandler):
    """Follows no redirection: it would take the token along, to wherever it leads."""

    def redirect_request(self, *_: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_Straight)


def is_loopback(address: str) -> bool:
    """Whether ``address`` leads to this very machine."""
    host = urllib.parse.urlsplit(address).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _job(entry: dict[str, Any]) -> Job:
    return Job(
        submission_id=entry["submission_id"],
        status=entry["status"],
        message=entry.get("message") or "",
        exit_code=entry.get("driver_exit_code"),
        metadata=entry.get("metadata") or {},
        runtime_env=entry.get("runtime_env") or {},
        node=entry.get("driver_node_id") or "",
        started=entry["start_time"] / 1000 if entry.get("start_time") else None,
        ended=entry["end_time"] / 1000 if entry.get("end_time") else None,
    )

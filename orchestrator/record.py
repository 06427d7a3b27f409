"""What a run says of itself: ``run.json``, small and rewritten when the run's state changes, and ``plan.jsonl.gz``, written once.

Both are enough to resume the run without its manifest.
"""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from typing import Any

from orchestrator.errors import StoreError
from tasks.spec import Scalar, TaskSpec, decode, encode

RECORD_FILE = "run.json"
PLAN_FILE = "plan.jsonl.gz"


class RunState(StrEnum):
    """How far a run came. A run whose driver was killed still says ``running``; its lock knows better."""

    RUNNING = "running"
    FINISHED = "finished"  # one terminal row per planned task
    INTERRUPTED = "interrupted"  # stopped by a user, resumable
    INCOMPLETE = "incomplete"  # stopped by the infrastructure, resumable


@dataclass(frozen=True, slots=True)
class PlannedTask:
    """One task of the plan, complete, and why it is skipped if it is."""

    task: TaskSpec
    skip_reason: str | None = None


@dataclass(frozen=True, slots=True)
class Session:
    """One driver's share of a run. ``devices`` are GPUs, or nodes without; ``forecast_s`` is what it expected for the ``tasks`` left to it.

    ``complete``: it left none. A driver that was killed has no ``ended``.
    """

    started: float
    ended: float | None = None
    nodes: int = 0
    devices: int = 0
    gpu: str | None = None  # the model
    sharing: int = 1
    code_version: str = ""
    tasks: int = 0
    forecast_s: float | None = None
    complete: bool = False


@dataclass(frozen=True, slots=True)
class RunRecord:
    """The content of ``run.json``. Times are seconds since the epoch; ``planned`` is the number of tasks of the plan."""

    run_id: str
    manifest: str
    manifest_digest: str
    started: float
    manifest_files: dict[str, str] = field(default_factory=dict)  # path -> text, the manifest and all that it includes
    weights: dict[str, float] = field(default_factory=dict)  # dtype -> weight in the score
    planned: int = 0
    orchestrator_version: str = ""
    argv: tuple[str, ...] = ()
    cluster: dict[str, Scalar] = field(default_factory=dict)
    by_device: bool = False  # several GPU models are wanted, and each has its own tables
    aa: bool = False  # each arm was measured against itself: no speedups
    environment: str | None = None  # which of the manifest's environments, if it has several
    state: RunState = RunState.RUNNING
    exit_code: int | None = None
    ended: float | None = None
    sessions: tuple[Session, ...] = ()

    def came_to(self, state: RunState, exit_code: int | None, at: float) -> RunRecord:
        """The record in another state; unless that is ``RUNNING``, the latest session ends with it."""
        if state is RunState.RUNNING:
            return replace(self, state=state, exit_code=exit_code, ended=None)
        open_sessions = [session for session in self.sessions[-1:] if session.ended is None]
        closed = tuple(replace(session, ended=at, complete=state is RunState.FINISHED) for session in open_sessions)
        sessions = self.sessions[: len(self.sessions) - len(closed)] + closed
        return replace(self, state=state, exit_code=exit_code, ended=at, sessions=sessions)


def record_bytes(record: RunRecord) -> bytes:
    """``run.json`` for ``record``."""
    return (json.dumps(encode(record), indent=1, ensure_ascii=False) + "\n").encode("utf-8", "replace")


def read_record(data: bytes, where: str) -> RunRecord:
    """The record in ``data``; fields of a later version are left out.

    Raises:
        StoreError: the data is no run record.
    """
    known = {entry.name for entry in fields(RunRecord)}
    try:
        found: Any = json.loads(data)
        return decode(RunRecord, {name: value for name, value in found.items() if name in known})
    except (ValueError, AttributeError) as error:  # SpecError is a ValueError
        raise StoreError(f"{where} is damaged: {error}") from error


def plan_bytes(plan: Sequence[PlannedTask]) -> bytes:
    """``plan.jsonl.gz`` for ``plan``: one task per line; equal plans give equal bytes."""
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", compresslevel=5, mtime=0) as file:
        for planned in plan:
            file.write((json.dumps(encode(planned), separators=(",", ":")) + "\n").encode())
    return buffer.getvalue()


def read_plan(data: bytes, where: str) -> tuple[PlannedTask, ...]:
    """The plan in ``data``.

    Raises:
        StoreError: the data is no plan.
    """
    try:
        return tuple(decode(PlannedTask, json.loads(line)) for line in gzip.decompress(data).splitlines())
    except (ValueError, OSError, EOFError) as error:
        raise StoreError(f"{where} is damaged: {error}") from error

"""What tests of real processes share: a node directory of their own, in which nothing may be left at the end."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import tempfile
import time
from pathlib import Path

import pytest

from tasks import lease
from tasks.forkclient import SWITCH
from tasks.scratch import MARK
from tasks.spec import Attempt, DeadlineSpec, MeasureSpec, ModelSpec, Phase, PrecisionSpec, ResourceSpec, TaskSpec
from tasks.supervisor import Finished, PhaseStarted, Started, supervise

WAIT_S = 60.0
FORKED = b"from tasks.forkserver import"  # in the command line that prepared parents, and all that are forked from them, show


def toy(kind, *, task_id=None, deadlines=None, resources=None, cache="cold", measure=None, **options):
    return TaskSpec(
        task_id=task_id or f"toy/{kind}/amp/training/inductor",
        model=ModelSpec("toy", kind, options=options),
        mode="training",
        backend="inductor",
        precision=PrecisionSpec("amp"),
        deadlines=deadlines or DeadlineSpec(),
        resources=resources or ResourceSpec(),
        cache=cache,
        measure=measure or MeasureSpec(),
    )


def attempt(number=1, **fields):
    return Attempt("run", number, **fields)


def process_numbers():
    return [path.name for path in Path("/proc").iterdir() if path.name.isdigit()]


def states_below(node_directory):
    """State letter of every process of an attempt under ``node_directory``, by number: started there, or forked for it."""
    found = {}
    for pid in process_numbers():
        try:
            variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            forked = FORKED in Path(f"/proc/{pid}/cmdline").read_bytes()
            marked = forked and any(target.startswith(f"/memfd:{MARK}={node_directory}") for target in open_files(pid))
            if marked or any(variable.startswith(f"{MARK}={node_directory}".encode()) for variable in variables):
                found[int(pid)] = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
    return found


def open_files(pid):
    found = []
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.append(str(descriptor.readlink()))
    return found


def guardians_of(node_directory):
    """Numbers of the guardians that have a lock file open under ``node_directory``."""
    found = set()
    for pid in process_numbers():
        try:
            line, files = Path(f"/proc/{pid}/cmdline").read_bytes(), open_files(pid)
            if FORKED in line or b"from tasks.guardian import" in line:
                found |= {int(pid) for target in files if target.startswith(str(node_directory)) and target.endswith(".lock")}
        except OSError:
            continue
    return found


def parents_of(meeting_place):
    """Numbers of the prepared parents that listen under ``meeting_place``."""
    found = set()
    for pid in process_numbers():
        try:
            if FORKED in Path(f"/proc/{pid}/cmdline").read_bytes() and any(
                target.startswith(f"{meeting_place}/") and target.endswith(".lock") for target in open_files(pid)
            ):
                found.add(int(pid))
        except OSError:
            continue
    return found


def locks_are_free(node_directory):
    """Whether the kernel has freed the lock of every attempt; it forgets a killed guardian's name a little earlier."""
    for lock in node_directory.glob("sweep-*/*.lock"):
        with lock.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
    return True


def attempts_in(node_directory):
    """Directories and lock files of attempts; the caches of whole runs may stay."""
    return [path for path in node_directory.glob("sweep-*/*") if not path.name.startswith("cache-")]


def wait_until(condition, what):
    give_up = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < give_up, f"not within {WAIT_S} s: {what}"
        time.sleep(0.01)


@pytest.fixture
def node_directory(tmp_path, monkeypatch):
    """The node's temporary directory for the supervisors of one test."""
    directory = tmp_path / "node"
    directory.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    meeting_place = tempfile.mkdtemp(dir="/tmp")  # short: Unix sockets go there
    monkeypatch.setattr(lease, "SHARED_MEMORY", meeting_place)
    yield directory
    shutil.rmtree(meeting_place)
    wait_until(lambda: not states_below(directory), f"the end of {states_below(directory)}")
    wait_until(lambda: not guardians_of(directory), "the end of the guardians")


def killed_parents(meeting_place):
    """Those that were there still, and get a SIGKILL: one that had come too late may have taken the place of another that was killed."""
    found = parents_of(meeting_place)
    for pid in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return found


@pytest.fixture
def prepared_node(node_directory, monkeypatch):
    """A node on which a parent may be prepared; those that are do not outlive the test."""
    monkeypatch.delenv(SWITCH)
    yield node_directory
    wait_until(lambda: not killed_parents(lease.SHARED_MEMORY), "the end of the prepared parents")


def finish(task, its_attempt=None):
    """The outcome of an attempt."""
    *_, last = supervise(task, its_attempt or attempt())
    assert isinstance(last, Finished)
    return last.outcome


def start(events):
    """Go on until the worker is in its compile phase; its number."""
    pid = None
    for event in events:
        pid = event.pid if isinstance(event, Started) else pid
        if isinstance(event, PhaseStarted) and event.phase is Phase.COMPILE:
            return pid
    raise AssertionError("the worker never compiled")

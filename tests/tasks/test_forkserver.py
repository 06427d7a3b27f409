"""A prepared parent, and the guardians and workers that are forked from it: real processes, compared with fresh ones."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import socket
import stat
import threading
import time
from pathlib import Path

import pytest

from tasks import forkclient, lease
from tasks.forkclient import UnpreparedError, fork_guardian, prepare
from tasks.launch import importable_paths
from tasks.lease import meeting_place
from tasks.prepared import key, socket_path
from tasks.processes import identity
from tasks.spec import FailureClass, MeasureSpec, ModelSpec, ResourceSpec, Status
from tasks.supervisor import supervise
from tests.chaos.test_lease_kills import check, run_and_kill
from tests.tasks.processes_fixtures import (
    attempt,
    attempts_in,
    finish,
    guardians_of,
    locks_are_free,
    open_files,
    parents_of,
    start,
    states_below,
    toy,
    wait_until,
)
from tests.tasks.test_supervisor import ENDS, ROOT, calling_process


def start_parent(*modules, idle_s=60.0):
    """A parent that has imported ``modules``; its process number."""
    assert prepare(modules or ("json",), "cpu", lease.SHARED_MEMORY, importable_paths(ROOT), 60.0, idle_s) is None
    found = set()
    while len(found) != 1:  # until those who came too late have ended
        found = parents_of(lease.SHARED_MEMORY)
    return found.pop()


def how_started(outcome):
    return outcome.environment["worker_start"]


def stat_of(pid):
    """State, parent, process group and session."""
    state, *numbers = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:4]
    return state, *map(int, numbers)


def children_of(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


# --- what a forked worker has in common with a fresh one ---------------------------------------------------------------------------


def test_forked_workers_end_as_fresh_ones_do_and_leave_nothing(prepared_node):
    start_parent()
    for kind, end in ENDS.items():
        outcome = finish(toy(kind))
        assert how_started(outcome) == "forked"
        assert (outcome.status, outcome.failure_class, outcome.phase) == end, outcome
        assert states_below(prepared_node) == {}
        assert attempts_in(prepared_node) == []
    assert "toy.py" in finish(toy("crash")).log_tail


def test_a_forked_worker_measures_the_same(prepared_node):
    fresh = finish(toy("pass"))
    assert how_started(fresh) == "fresh: the node has no prepared parent"
    start_parent()
    forked = finish(toy("pass"))
    assert how_started(forked) == "forked"
    assert forked.samples == fresh.samples
    assert dataclasses.replace(forked.measurement, compile_s=None) == dataclasses.replace(fresh.measurement, compile_s=None)


PORTRAIT = """
import atexit, gc, json, os, random, resource, signal, sys, tempfile, threading
from pathlib import Path

tempfile.gettempdir()  # which it remembers

def show():
    if "worker.py" not in sys.argv[0]:
        return
    status = Path("/proc/self/status").read_text().splitlines()
    print("portrait " + json.dumps({
        "environment": dict(os.environ), "directory": os.getcwd(), "arguments": sys.argv, "path": sys.path,
        "flags": str(sys.flags).replace("utf8_mode=1", "utf8_mode=0"),
        "temporary": tempfile.gettempdir(), "handlers": {int(n): str(signal.getsignal(n)) for n in signal.valid_signals()},
        "wakeup": signal.set_wakeup_fd(-1), "limits": [resource.getrlimit(n) for n in range(16)],
        "status": [line for line in status if line.startswith(("SigBlk", "SigIgn", "SigCgt", "Threads", "Umask", "Cpus_allowed:"))],
        "leads": os.getpgrp() == os.getpid(), "gc": gc.isenabled(), "main": threading.current_thread() is threading.main_thread(),
        "streams": [[s.encoding, s.errors, s.write_through, s.line_buffering] for s in (sys.stdin, sys.stdout, sys.stderr)],
        "random": random.random(),
    }))

atexit.register(show)
"""


@pytest.fixture
def portrait(prepared_node, tmp_path, monkeypatch):
    """Runs a worker that shows, when its interpreter ends, what it is like: imported by every interpreter, the parent's as well."""
    (tmp_path / "sitecustomize.py").write_text(PORTRAIT)
    monkeypatch.syspath_prepend(str(tmp_path))

    def shown(wanted):
        outcome = finish(toy("pass", resources=ResourceSpec(num_cpus=2)))
        assert how_started(outcome).partition(":")[0] == wanted
        assert "portrait" in outcome.log, outcome.log
        (line,) = (line for line in outcome.log.splitlines() if line.startswith("portrait "))
        scratch = Path(json.loads(line.removeprefix("portrait "))["directory"])
        assert scratch.parent.parent == prepared_node
        return json.loads(line.removeprefix("portrait ").replace(str(scratch), "SCRATCH"))

    return shown


def test_a_forked_worker_is_like_a_fresh_one(portrait, monkeypatch):
    monkeypatch.setenv("TORCH_LOGS", "graph_breaks")
    monkeypatch.setenv("RAY_JOB_ID", "1")
    for name in ("LANG", "LC_ALL", "LC_CTYPE"):  # so that the interpreter chooses, and says so in its environment
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "80")  # which the readline of a test's process may set behind Python's back
    monkeypatch.setenv("LINES", "24")
    every, one = os.sched_getaffinity(0), {min(os.sched_getaffinity(0))}
    start_parent()  # free to use them all
    try:
        os.sched_setaffinity(0, one)
        monkeypatch.setenv(forkclient.SWITCH, "0")
        fresh = portrait("fresh")
        monkeypatch.delenv(forkclient.SWITCH)
        monkeypatch.setenv("OMP_NUM_THREADS", "77")
        monkeypatch.setenv("SHLVL", "9")  # nobody prepares another parent for it
        forked, other = portrait("forked"), portrait("forked")
    finally:
        os.sched_setaffinity(0, every)
    assert forked.pop("random") != other.pop("random")
    assert forked["environment"].pop("SWEEP_WORKER_START") == "forked"
    assert forked["environment"].pop("SHLVL") == "9"
    assert fresh["environment"].pop("SWEEP_WORKER_START") == "fresh"
    fresh["environment"].pop("SHLVL", None)
    fresh.pop("random")
    assert set(forked.pop("environment").items()) ^ set(fresh.pop("environment").items()) == set()
    assert {name: value for name, value in forked.items() if value != fresh[name]} == {}


def test_a_forked_worker_has_nothing_open_but_its_streams_its_channel_and_its_mark(prepared_node):
    start_parent()
    events = supervise(toy("hang"), attempt())
    found = open_files(start(events))
    events.close()
    assert sorted(target.partition(":")[0] for target in found) == [os.devnull, "/memfd", "pipe", "pipe", "socket"]
    assert len(set(found)) == 4  # one pipe takes output and errors


def test_what_is_measured_in_several_processes_is_measured_in_fresh_ones(prepared_node):
    start_parent()
    outcome = finish(toy("pass", measure=MeasureSpec(processes=2)))
    assert how_started(outcome).startswith("fresh: it is measured in several processes")
    assert set(outcome.samples.process) == {0, 1}


def test_workers_on_a_gpu_have_a_parent_of_their_own(prepared_node):
    """It has imported as if there were a GPU: torch 2.11's Inductor decides then how its autotuner times kernels."""
    wanted = dataclasses.replace(toy("pass"), resources=ResourceSpec("cuda", num_gpus=1.0))

    def start_of_worker():
        *_, last = supervise(wanted, dataclasses.replace(attempt(), gpu_ids=("0",)))
        assert last.outcome.status is Status.PASS
        return how_started(last.outcome)

    start_parent()
    assert start_of_worker() == "fresh: no prepared parent is like this process"
    assert prepare(["json"], "cuda", lease.SHARED_MEMORY, importable_paths(ROOT), 60.0, 60.0) is None
    assert start_of_worker() == "forked"


def test_what_torch_has_chosen_for_good_at_import_is_left_to_fresh_ones(prepared_node, monkeypatch):
    monkeypatch.setenv("TORCH_CACHING_PRECOMPILE", "1")
    start_parent()
    assert how_started(finish(toy("pass"))) == "fresh: TORCH_CACHING_PRECOMPILE is set"


# --- whose child it is, and who ends with whom ---------------------------------------------------------------------------------------


def test_a_worker_is_its_guardians_child_and_the_guardian_nobodys_who_is_killed(prepared_node):
    parent = start_parent()
    assert stat_of(parent)[1] != os.getpid()
    events = supervise(toy("hang"), attempt())
    worker = start(events)
    (guardian,) = guardians_of(prepared_node)
    assert stat_of(worker)[1:3] == (guardian, worker)
    assert stat_of(guardian)[1:] == (parent, guardian, guardian)
    events.close()
    wait_until(lambda: identity(worker) is identity(guardian) is None, "their end, a moment after that of their output")
    assert attempts_in(prepared_node) == []


def test_a_parent_that_is_killed_is_missed_by_nobody(prepared_node):
    parent = start_parent()
    events = supervise(toy("slow_pass", seconds=0.5), attempt())
    start(events)
    os.kill(parent, signal.SIGKILL)
    *_, last = events
    assert (last.outcome.status, how_started(last.outcome)) == (Status.PASS, "forked")
    after = finish(toy("pass"))
    assert (after.status, how_started(after)) == (Status.PASS, "fresh: no prepared parent is like this process")
    assert start_parent() != parent
    assert how_started(finish(toy("pass"))) == "forked"


def test_a_guardian_that_is_killed_takes_its_worker_along_and_frees_its_locks(prepared_node):
    start_parent()
    events = supervise(toy("hang", orphans=2), attempt())
    worker = start(events)
    (guardian,) = guardians_of(prepared_node)
    os.kill(guardian, signal.SIGKILL)
    wait_until(lambda: identity(worker) is None, "the end of the worker")
    wait_until(lambda: locks_are_free(prepared_node), "locks that nobody has inherited")
    *_, last = events
    assert (last.outcome.status, last.outcome.failure_class) == (Status.INFRA_ERROR, FailureClass.WORKER_LOST)
    assert states_below(prepared_node) == {}
    assert attempts_in(prepared_node) == []


def test_a_supervisor_that_is_killed_takes_the_whole_tree_with_it(prepared_node):
    parent = start_parent()
    caller = calling_process(prepared_node, toy("ignore_sigterm", orphans=2))
    (guardian,) = guardians_of(prepared_node)
    assert stat_of(guardian)[1] == parent
    caller.kill()
    caller.communicate()
    wait_until(lambda: not states_below(prepared_node), "the end of the worker")
    wait_until(lambda: attempts_in(prepared_node) == [], "the end of its directory")
    assert identity(parent)


def test_what_a_supervisor_and_guardian_killed_together_leave_is_ended_by_the_next(prepared_node):
    start_parent()
    caller = calling_process(prepared_node, toy("hang", orphans=2))
    killed = [*guardians_of(prepared_node), caller.pid]
    for number in (signal.SIGSTOP, signal.SIGKILL):  # stopped at first, so that neither sees the other die
        for pid in killed:
            os.kill(pid, number)
    caller.communicate()
    wait_until(lambda: locks_are_free(prepared_node), "the end of the guardian, which the kernel owes nobody at once")
    events = supervise(toy("hang"), attempt())
    pid = start(events)
    assert set(states_below(prepared_node)) == {pid}
    events.close()
    assert attempts_in(prepared_node) == []


def test_a_parent_collects_its_guardians_and_ends_when_nobody_wants_it(prepared_node):
    parent = start_parent(idle_s=1.0)
    events = supervise(toy("slow_pass", seconds=1.5), attempt())  # longer than it would stay without a guardian
    start(events)
    assert len(children_of(parent)) == 1
    *_, last = events
    assert identity(parent)
    assert last.outcome.status is Status.PASS
    wait_until(lambda: identity(parent) is None or children_of(parent) == [], "the end of its zombies")
    wait_until(lambda: identity(parent) is None, "its end")
    assert list(Path(lease.SHARED_MEMORY).glob("sweep-*/*.sock")) == []
    assert how_started(finish(toy("pass"))) == "fresh: no prepared parent is like this process"


# --- what it is, and when it refuses --------------------------------------------------------------------------------------------------


def test_a_parent_is_private_and_holds_nobodys_pipes(prepared_node):
    parent = start_parent()
    (path,) = Path(lease.SHARED_MEMORY).glob("sweep-*/fork-*.sock")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert not any(target.startswith("pipe:") and target in open_files(os.getpid()) for target in open_files(parent))
    assert Path(f"/proc/{parent}/cwd").readlink() == Path("/")


def test_those_who_prepare_at_once_share_one_parent(prepared_node):
    problems = []
    arguments = ["json"], "cpu", lease.SHARED_MEMORY, importable_paths(ROOT), 60.0
    threads = [threading.Thread(target=lambda: problems.append(prepare(*arguments))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == [None] * 4
    parent = start_parent()
    assert start_parent("decimal") == parent
    assert how_started(finish(toy("pass"))) == "forked"


THREAD = "import threading, time\ndef start(*_): threading.Thread(target=time.sleep, args=(600,), daemon=True).start()\n"


def test_a_parent_with_a_second_thread_says_so_and_ends(prepared_node, tmp_path, monkeypatch):
    (tmp_path / "has_a_thread.py").write_text(f"{THREAD}start()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert prepare(["has_a_thread"], "cpu", lease.SHARED_MEMORY, importable_paths(ROOT), 60.0) is None  # it is imported, after all
    wait_until(lambda: not parents_of(lease.SHARED_MEMORY), "its end")
    outcome = finish(toy("pass"))
    assert outcome.status is Status.PASS
    assert how_started(outcome) == "fresh: the prepared parent must not be forked: it has 2 threads"


def test_a_parent_that_has_something_open_after_its_imports_says_so_and_ends(prepared_node, tmp_path, monkeypatch):
    (tmp_path / "keeps_a_file.py").write_text("file = open('/dev/zero')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert prepare(["keeps_a_file"], "cpu", lease.SHARED_MEMORY, importable_paths(ROOT), 60.0) is None
    wait_until(lambda: not parents_of(lease.SHARED_MEMORY), "its end")
    assert how_started(finish(toy("pass"))).endswith("(/dev/zero) was opened by an import")


def test_a_parent_counts_its_threads_before_each_fork(prepared_node, tmp_path, monkeypatch):
    (tmp_path / "starts_a_thread.py").write_text(f"{THREAD}import signal\nsignal.signal(signal.SIGUSR2, start)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    parent = start_parent("starts_a_thread")
    assert how_started(finish(toy("pass"))) == "forked"
    os.kill(parent, signal.SIGUSR2)
    wait_until(lambda: len(list(Path(f"/proc/{parent}/task").iterdir())) == 2, "its thread")
    for _ in range(2):
        assert how_started(finish(toy("pass"))) == "fresh: the prepared parent must not be forked: it has 2 threads"
    wait_until(lambda: not parents_of(lease.SHARED_MEMORY), "its end")


def test_a_parent_that_does_not_answer_is_done_without(prepared_node, monkeypatch):
    monkeypatch.setattr(forkclient, "ASK_LIMIT_S", 0.3)
    parent = start_parent()
    os.kill(parent, signal.SIGSTOP)
    outcome = finish(toy("pass"))
    assert outcome.status is Status.PASS
    assert how_started(outcome).startswith("fresh: no answer from the prepared parent: TimeoutError")
    os.kill(parent, signal.SIGCONT)  # the guardian that it forks too late finds nobody, and ends
    assert how_started(finish(toy("pass"))) == "forked"
    wait_until(lambda: children_of(parent) == [], "the end of the guardian that came too late")


def test_a_parent_survives_nonsense(prepared_node):
    parent = start_parent()
    path = socket_path(meeting_place(""), key(os.environ, importable_paths(ROOT), "cpu"))
    for message in (
        b"\xff",
        b"[]",
        b'{"ask": "guardian"}',
        b'{"ask": "prepare", "modules": 3, "device": "cpu"}',
        b'{"ask": "prepare", "modules": []}',
        b'{"ask": "what"}',
        b"",
    ):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            connection.connect(str(path))
            connection.send(message)
            assert connection.recv(100) == b""
    assert (how_started(finish(toy("pass"))), parents_of(lease.SHARED_MEMORY)) == ("forked", {parent})


def test_who_is_prepared_otherwise_is_not_found(prepared_node, monkeypatch):
    start_parent()
    monkeypatch.setenv("TORCH_LOGS", "recompiles")
    assert how_started(finish(toy("pass"))) == "fresh: no prepared parent is like this process"
    monkeypatch.setenv(forkclient.SWITCH, "0")
    monkeypatch.delenv("TORCH_LOGS")
    assert how_started(finish(toy("pass"))) == f"fresh: {forkclient.SWITCH} is 0"


def test_where_no_parent_can_be_none_is_missed(prepared_node, tmp_path):
    far = tmp_path / ("d" * 100)
    far.mkdir()
    with pytest.raises(UnpreparedError, match="too long"):
        prepare(["json"], "cpu", str(far), importable_paths(ROOT), 10.0)
    with pytest.raises(UnpreparedError):
        fork_guardian("cpu", str(far), importable_paths(ROOT), (0, 1, 2))


# --- killed at random -------------------------------------------------------------------------------------------------------------------

VICTIMS = ("supervisor", "guardian", "worker", "parent")


def kill_and_prepare(node_directory, kills, pause_s):
    """As in ``test_lease_kills``, with a parent that is prepared anew whenever it was killed."""
    stop = threading.Event()

    def prepare_again():
        while not stop.wait(0.2):
            with contextlib.suppress(UnpreparedError):  # it was killed while it was asked
                prepare(["json"], "cpu", lease.SHARED_MEMORY, importable_paths(ROOT), 60.0, 60.0)

    start_parent()
    preparing = threading.Thread(target=prepare_again)
    preparing.start()
    try:
        reports, done, guardians_s = run_and_kill(node_directory, kills, pause_s, VICTIMS)
    finally:
        stop.set()
        preparing.join()
    assert "forked" in {how for _, _, how, _ in reports}
    check(node_directory, reports, guardians_s)
    return done


def test_twelve_kills_of_whoever_is_forked(prepared_node):
    assert sum(kill_and_prepare(prepared_node, 12, 0.2).values()) == 12


@pytest.mark.chaos
@pytest.mark.timeout(1800)
def test_five_hundred_kills_of_whoever_is_forked(prepared_node):
    assert min(kill_and_prepare(prepared_node, 500, 0.4).values()) > 50


# --- the libraries themselves ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_real_task_is_forked_and_gives_what_a_fresh_worker_gives(prepared_node):
    task = dataclasses.replace(
        toy("mlp", measure=MeasureSpec(min_pairs=4, max_time_s=0.5), resources=ResourceSpec(num_cpus=2)),
        task_id="mine/mlp/float32/inference/inductor",
        model=ModelSpec("mine", "mlp", factory="tests.tasks.models:mlp"),
        mode="inference",
    )
    fresh = finish(task)
    began = time.monotonic()
    start_parent("torch", "torch._dynamo", "torch._inductor.compile_fx", "triton")
    print(f"prepared in {time.monotonic() - began:.1f} s")
    forked = finish(task)
    print({phase: (fresh.phase_s[phase], seconds) for phase, seconds in forked.phase_s.items()})
    assert (fresh.measurement.machine["worker_start"], forked.measurement.machine["worker_start"]) == ("fresh", "forked")
    for name in ("accuracy", "accuracy_margin", "graphs", "graph_breaks", "threads", "compile_threads", "versions", "cache_misses"):
        assert getattr(forked.measurement, name) == getattr(fresh.measurement, name), name
    assert forked.status is fresh.status is Status.PASS
    assert forked.phase_s["start"] < fresh.phase_s["start"] / 3

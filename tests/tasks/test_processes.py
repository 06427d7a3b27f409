from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from tasks import processes
from tasks.processes import Identity, continue_descendants, descendants, end_marked, identity, is_alive, kill, marked, stop_descendants
from tests.tasks.processes_fixtures import wait_until

# A parent with a child in a session of its own; both say when they are there.
FAMILY = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
print("here", flush=True)
time.sleep(600)
"""


@pytest.fixture
def family():
    environment = {**os.environ, "TEST_FAMILY": str(os.getpid())}
    parent = subprocess.Popen([sys.executable, "-ISc", FAMILY], stdout=subprocess.PIPE, text=True, env=environment)
    assert [parent.stdout.readline() for _ in range(2)] == ["here\n"] * 2
    yield parent
    parent.stdout.close()
    end_marked("TEST_FAMILY", str(os.getpid()))
    parent.wait()


@pytest.fixture(params=[True, False], ids=["walk", "scan"], autouse=True)
def children_are_listed(request, monkeypatch):
    """Some kernels do not list the children of a thread."""
    monkeypatch.setattr(processes, "_CHILDREN_ARE_LISTED", request.param)
    return request.param


def test_descendants_are_found_in_any_session(family):
    (child,) = descendants(family.pid)
    assert {family.pid, child} <= set(descendants(os.getpid()))
    assert os.getsid(child) == child


def test_stopping_stops_all_and_continuing_lets_all_go_on(family):
    stop_descendants(os.getpid())
    assert set(descendants(os.getpid()).values()) <= {"T", "Z"}
    continue_descendants(os.getpid())
    wait_until(lambda: not set(descendants(os.getpid()).values()) & {"T"}, "the end of the stop")


# Processes that come and go: each has a child, and leaves it behind. All of them count. A machine has room for only so many that have ended
# and are not reaped, so each round reaps, and who finds no room waits for some.
CHURN = """
import mmap, os, sys, threading, time
from tasks import processes

processes.become_subreaper()
counter = mmap.mmap(-1, 8)

def count():
    counter[:8] = (int.from_bytes(counter[:8], "little") + 1).to_bytes(8, "little")

def live():
    while True:
        count()
        try:
            child = os.fork()
        except BlockingIOError:
            time.sleep(0.001)
            continue
        if child:
            os._exit(0)

for _ in range(2):
    if os.fork() == 0:
        threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
        live()
try:
    for _ in range(60):
        processes.stop_descendants(os.getpid())
        before = bytes(counter[:8])
        time.sleep(0.003)
        assert bytes(counter[:8]) == before, "something went on"
        processes.continue_descendants(os.getpid())
        processes.reap()
        give_up = time.monotonic() + 10
        while bytes(counter[:8]) == before and time.monotonic() < give_up:
            processes.reap()
            time.sleep(0.0005)
        assert bytes(counter[:8]) != before, "nothing went on"
finally:
    processes.end_descendants()
"""


@pytest.mark.parametrize("children_are_listed", [processes._CHILDREN_ARE_LISTED], indirect=True)
@pytest.mark.skipif(not processes._CHILDREN_ARE_LISTED, reason="a scan misses who is born while it lasts, if its parent ends then, too")
def test_a_tree_that_changes_all_the_time_stands_still_when_it_is_stopped():
    done = subprocess.run([sys.executable, "-c", CHURN], capture_output=True, text=True, timeout=100, check=False)
    assert done.stderr == ""
    assert done.returncode == 0


def test_a_process_is_known_by_its_start_as_well(family):
    process = identity(family.pid)
    assert is_alive(process)
    other = Identity(process.pid, process.started - 1)
    assert not is_alive(other)
    kill(other)
    assert is_alive(process)
    kill(process)
    wait_until(lambda: not is_alive(process), "the end of the parent")
    assert identity(family.pid) is None  # a zombie


def test_marked_processes_are_found_and_ended_even_without_their_parent(family):
    mark = ("TEST_FAMILY", str(os.getpid()))
    assert {process.pid for process in marked(*mark)} == {family.pid, *descendants(family.pid)}
    family.kill()
    family.wait()
    assert len(list(marked(*mark))) == 1
    assert end_marked(*mark) == ()
    assert list(marked(*mark)) == []
    assert list(marked("TEST_FAMILY", str(os.getpid())[:-1])) == []


def test_marked_processes_are_ended_in_the_middle_of_an_exec_too(tmp_path):
    program = tmp_path / "again.sh"
    program.write_text(f"exec sh {program}\n")
    mark = "TEST_EXEC"
    for repeat in range(20):  # one look alone misses about one process in ten
        process = subprocess.Popen(["sh", str(program)], env={**os.environ, mark: f"{os.getpid()}-{repeat}"})
        assert end_marked(mark, f"{os.getpid()}-{repeat}") == ()
        try:
            assert process.wait(timeout=10) == -signal.SIGKILL
        finally:
            process.kill()

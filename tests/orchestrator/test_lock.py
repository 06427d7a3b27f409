from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pyarrow.fs as pafs
import pytest

from orchestrator.errors import RunLockedError, StoreError
from orchestrator.files import LocalFiles, ObjectFiles
from orchestrator.lock import STALE_AFTER_S, Owner, RunLock, machine_identity, process_start, read_owner
from tasks.spec import encode

HOLDER = """
import sys, time
from pathlib import Path
from orchestrator.files import LocalFiles
from orchestrator.lock import RunLock
lock = RunLock.acquire(LocalFiles(Path(sys.argv[1])))
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def files(tmp_path):
    return LocalFiles(tmp_path / "run")


@pytest.fixture
def objects(tmp_path):
    return ObjectFiles(pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem()), "bucket/run")


@pytest.fixture
def holder(files):
    """Another process that holds the lock until its standard input ends."""
    command = [sys.executable, "-c", HOLDER, str(files.local(""))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def someone(**fields):
    return dataclasses.replace(Owner("far", "far/boot/ns", 1, "7", "their token", 1000.0, 1000.0), **fields)


def plant(files, owner):
    files.write("lock.json", json.dumps(encode(owner)).encode())


def test_a_second_driver_is_refused_by_name_and_told_what_to_do(files, holder):
    with pytest.raises(RunLockedError) as refusal:
        RunLock.acquire(files)
    owner = read_owner(files)
    assert owner.pid == holder.pid
    for told in (
        f"process {holder.pid} on {owner.host} since 20",
        "last sign of life",
        "stop that driver",
        "lock.json",
        str(files.local("").name),
    ):
        assert told in str(refusal.value)


def test_removing_the_lock_file_of_a_living_driver_does_not_let_another_in(files, holder):
    files.remove("lock.json")
    with pytest.raises(RunLockedError, match="not yet said its name"):
        RunLock.acquire(files)


def test_a_killed_driver_frees_the_lock_at_once(files, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with RunLock.acquire(files) as lock:
        assert read_owner(files).token == lock.owner.token
        assert lock.owner.pid == os.getpid()


def test_a_driver_that_lets_go_leaves_nothing(files, holder):
    holder.stdin.close()
    holder.wait()
    RunLock.acquire(files).release()
    RunLock.acquire(files).release()
    assert read_owner(files) is None


def test_the_same_process_cannot_hold_it_twice(files):
    with RunLock.acquire(files), pytest.raises(RunLockedError):
        RunLock.acquire(files)


def test_of_many_that_come_at_once_one_gets_it(files):
    got, refused, together = [], [], threading.Barrier(8)

    def come():
        together.wait()
        try:
            got.append(RunLock.acquire(files))
        except RunLockedError:
            refused.append(1)

    threads = [threading.Thread(target=come) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(got), len(refused)) == (1, 7)
    got[0].check()


def test_the_heartbeat_is_written(files):
    now = [1000.0]
    lock = RunLock.acquire(files, clock=lambda: now[0])
    now[0] = 1042.0
    lock.refresh()
    assert (read_owner(files).heartbeat, read_owner(files).acquired) == (1042.0, 1000.0)


def test_a_sign_of_life_does_not_name_its_giver_anew_after_a_takeover(files, monkeypatch):
    old = RunLock.acquire(files)
    looked = []
    check = RunLock.check

    def look_then_lose(lock):
        check(lock)
        looked.append(lock)
        plant(files, someone())  # the other comes between the look and the sign of life

    monkeypatch.setattr(RunLock, "check", look_then_lose)
    old.refresh()
    assert looked == [old]
    assert read_owner(files) == someone()


def test_the_lock_is_kept_alive_while_something_long_is_done(objects):
    now = [1000.0]
    with RunLock.acquire(objects, clock=lambda: now[0]) as lock:
        now[0] = 1042.0
        with lock.kept_alive(every_s=0.01):
            give_up = time.monotonic() + 5.0
            while read_owner(objects).heartbeat != 1042.0:
                assert time.monotonic() < give_up
                time.sleep(0.01)
    assert objects.names("") == []


@pytest.mark.parametrize("place", ["files", "objects"])
def test_a_holder_elsewhere_is_dead_when_it_was_silent_for_long(place, request):
    files = request.getfixturevalue(place)
    plant(files, someone(heartbeat=1000.0))
    with pytest.raises(RunLockedError, match="process 1 on far"):
        RunLock.acquire(files, clock=lambda: 1000.0 + STALE_AFTER_S)
    with RunLock.acquire(files, clock=lambda: 1001.0 + STALE_AFTER_S) as lock:
        lock.check()
    assert read_owner(files) is None


def test_a_holder_here_is_dead_when_its_process_is_even_if_it_just_spoke(objects):
    gone = subprocess.Popen([sys.executable, "-c", "pass"])
    owner = someone(machine=machine_identity(), pid=gone.pid, process_started=process_start(gone.pid), heartbeat=1000.0)
    gone.wait()
    assert owner.is_dead(1000.0)
    plant(objects, owner)
    RunLock.acquire(objects, clock=lambda: 1000.0).release()


def test_a_holder_here_lives_however_long_it_was_silent(objects):
    plant(objects, someone(machine=machine_identity(), pid=os.getpid(), process_started=process_start(os.getpid()), heartbeat=0.0))
    with pytest.raises(RunLockedError):
        RunLock.acquire(objects, clock=lambda: 1e9)


def test_a_reused_process_id_is_not_the_holder(objects):
    owner = someone(machine=machine_identity(), pid=os.getpid(), process_started="1", heartbeat=1000.0)
    assert owner.is_dead(1000.0)
    plant(objects, owner)
    RunLock.acquire(objects, clock=lambda: 1000.0).release()


def test_a_zombie_holds_nothing():
    zombie = subprocess.Popen([sys.executable, "-c", "pass"])
    start = process_start(zombie.pid)
    os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
    assert someone(machine=machine_identity(), pid=zombie.pid, process_started=start).is_dead(0.0)
    zombie.wait()


@pytest.mark.parametrize("place", ["files", "objects"])
def test_whoever_was_taken_over_is_fenced(place, request):
    files = request.getfixturevalue(place)
    lock = RunLock.acquire(files)
    plant(files, someone())
    for use in (lock.check, lock.refresh):
        with pytest.raises(RunLockedError, match="taken over by process 1 on far"):
            use()
    lock.release()
    assert read_owner(files) == someone()  # the lock of the other is left alone


def test_a_lock_that_a_user_removed_is_lost(files):
    lock = RunLock.acquire(files)
    files.remove("lock.json")
    with pytest.raises(RunLockedError, match="was removed"):
        lock.check()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"host": 1}'])
def test_half_a_lock_file_is_no_lock(files, text):
    files.write("lock.json", text.encode())
    with RunLock.acquire(files) as lock:
        lock.check()


def test_a_lock_that_cannot_be_written_is_a_clear_message_and_not_held(tmp_path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(StoreError, match="run"):
        RunLock.acquire(LocalFiles(tmp_path / "run"))


def test_a_lock_that_cannot_be_given_back_is_left_to_go_stale(files, monkeypatch, caplog):
    lock = RunLock.acquire(files)

    def unreachable(name):
        raise StoreError(f"cannot read {name}: connection reset")

    with monkeypatch.context() as broken:
        broken.setattr(files, "read", unreachable)
        lock.release()
    assert "the lock stays behind: cannot read lock.json" in caplog.text
    assert read_owner(files) == lock.owner


def test_a_name_with_parentheses_does_not_hide_the_start_of_a_process(tmp_path):
    script = tmp_path / "a (very) odd) name"
    script.symlink_to("/bin/sleep")
    process = subprocess.Popen([str(script), "60"])
    try:
        started = int(process_start(process.pid)) / os.sysconf("SC_CLK_TCK") + psutil.boot_time()
        assert started == pytest.approx(psutil.Process(process.pid).create_time(), abs=2.0)
    finally:
        process.kill()
        process.wait()

"""Who waits for memory, for how long, and who goes first, on a device of 1000 MiB."""

from __future__ import annotations

import contextlib
import fcntl
import multiprocessing
import os

import pytest
import torch

from tasks import room
from tasks.launch import DEVICE_DIRECTORY
from tasks.room import Room

MIB = 2**20


class Device:
    """Memory of which neighbours hold ``others`` MiB and this process ``reserved``, ``allocated`` of them in use."""

    def __init__(self, others=600, reserved=0, allocated=0):
        self.others, self.reserved, self.allocated = others, reserved, allocated


@pytest.fixture
def device(monkeypatch):
    found = Device()
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: setattr(found, "reserved", found.allocated))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: ((1000 - found.others - found.reserved) * MIB, 1000 * MIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: found.reserved * MIB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: found.allocated * MIB)
    return found


def one_on(directory, sleep=lambda seconds: pytest.fail("nothing is to be waited for")):
    return Room(torch.device("cuda", 0), directory, sleep)


def test_what_is_free_is_taken_at_once(device, tmp_path):
    with one_on(tmp_path).turn(300 * MIB):
        pass


def test_it_waits_until_neighbours_have_given_back_enough(device, tmp_path):
    def leave(seconds):
        device.others -= 50

    here = one_on(tmp_path, leave)
    with here.turn(500 * MIB):  # 40 more stay free
        assert device.others == 450
    assert here.waited_s == pytest.approx(3 * room.POLL_S)


def test_what_its_own_allocator_keeps_for_later_counts(device, tmp_path):
    device.others, device.reserved, device.allocated = 600, 300, 100
    with one_on(tmp_path).turn(260 * MIB):
        pass


def test_alone_nothing_is_waited_for(device, tmp_path):
    device.others, device.reserved, device.allocated = 20, 900, 900
    with one_on(tmp_path).turn(300 * MIB):
        pass


def test_it_is_crowded_where_others_hold_more_than_a_little(device, tmp_path):
    assert one_on(tmp_path).crowded()
    device.others = 20
    assert not one_on(tmp_path).crowded()
    assert not Room(torch.device("cpu"), tmp_path).crowded()


def test_no_more_than_half_of_the_device_is_waited_for(device, tmp_path):
    device.others = 460
    with one_on(tmp_path).turn(5000 * MIB):
        pass


def test_who_has_waited_long_enough_goes_on(device, tmp_path):
    naps = []
    here = one_on(tmp_path, naps.append)
    with here.turn(500 * MIB):
        pass
    assert sum(naps) == pytest.approx(room.LIMIT_S) == pytest.approx(here.waited_s)
    with here.turn(500 * MIB):  # no longer in one phase, however often it comes to that
        pass
    assert sum(naps) == pytest.approx(room.LIMIT_S)
    here.renew()
    with here.turn(500 * MIB):
        pass
    assert sum(naps) == pytest.approx(2 * room.LIMIT_S)


def test_a_little_is_taken_in_nobodys_turn(device, tmp_path):
    device.others = 1000
    with one_on(tmp_path).turn(20 * MIB):
        pass
    assert not list(tmp_path.iterdir())


def test_who_waits_keeps_nothing_for_later(device, tmp_path):
    device.others, device.reserved, device.allocated = 600, 350, 50
    left = []
    with one_on(tmp_path, lambda seconds: left.append(device.reserved) or setattr(device, "others", 100)).turn(450 * MIB):
        assert left == [50]


@pytest.mark.parametrize(("waits_s", "first"), [(room.PATIENCE_S - 1, "who wants less"), (room.PATIENCE_S + 1, "who wants more")])
def test_who_wants_less_goes_ahead_for_a_while(device, tmp_path, waits_s, first):
    order, naps = [], []

    def sleep(seconds):
        naps.append(seconds)
        if sum(naps) >= waits_s and not order:
            with contextlib.suppress(TimeoutError), one_on(tmp_path, leave).turn(100 * MIB):
                order.append("who wants less")
            device.others = 100

    def leave(seconds):
        raise TimeoutError

    with one_on(tmp_path, sleep).turn(500 * MIB):
        order.append("who wants more")
    assert order[0] == first


def test_one_at_a_time_and_the_next_after_it(device, tmp_path):
    turn, naps = one_on(tmp_path).turn(100 * MIB), []

    def sleep(seconds):
        naps.append(seconds)
        if len(naps) == 2:
            turn.__exit__(None, None, None)

    turn.__enter__()
    with one_on(tmp_path, sleep).turn(100 * MIB):
        assert len(naps) == 2


def test_a_turn_is_over_although_a_process_was_forked_in_it(device, tmp_path):
    def sleep_until(reader):
        os.read(reader, 1)

    reader, writer = os.pipe()
    with one_on(tmp_path).turn(100 * MIB):
        child = multiprocessing.get_context("fork").Process(target=sleep_until, args=(reader,))
        child.start()
    try:
        with (tmp_path / "memory.lock").open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.write(writer, b"x")
        child.join()


@pytest.mark.parametrize(("kind", "directory"), [("cpu", True), ("cuda", False)])
def test_without_neighbours_or_memory_of_its_own_there_are_no_turns(monkeypatch, tmp_path, kind, directory):
    monkeypatch.setenv(DEVICE_DIRECTORY, str(tmp_path) if directory else "")
    with Room.from_environment(torch.device(kind)).turn(1e12):
        pass
    assert not list(tmp_path.iterdir())


def test_a_worker_finds_its_neighbours(device, monkeypatch, tmp_path):
    monkeypatch.setenv(DEVICE_DIRECTORY, str(tmp_path))
    with Room.from_environment(torch.device("cuda", 0)).turn(100 * MIB):
        assert [path.name for path in tmp_path.iterdir()] == ["memory.lock"]


class TestAfterALackOfMemory:
    """Each poll shows so much free; this process holds 100 MiB."""

    @pytest.fixture
    def waits(self, monkeypatch):
        def run(free_mib, wanted_mib=500):
            seen = {"polls": 0}

            def info(_):
                free = free_mib[min(seen["polls"], len(free_mib) - 1)]
                if free is None:
                    raise RuntimeError("CUDA error: out of memory")
                return free * MIB, 1000 * MIB

            monkeypatch.setattr(torch.cuda, "mem_get_info", info)
            monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 100 * MIB)
            here = Room(torch.device("cuda"), None, lambda seconds: seen.update(polls=seen["polls"] + 1))
            return here.wait_for(wanted_mib * MIB), seen["polls"]

        return run

    def test_it_ends_when_neighbours_have_given_back_enough(self, waits):
        assert waits([200, 300, 500]) == (True, 2)

    def test_what_nobody_else_holds_is_not_waited_for(self, waits):
        assert waits([880], wanted_mib=950) == (False, 0)
        assert waits([880]) == (False, 0)  # it ran out of memory alone, whatever is free now

    def test_a_process_that_could_not_even_begin_on_the_device_waits(self, waits):
        assert waits([None, 800]) == (True, 1)

    def test_it_gives_up(self, waits):
        assert waits([200]) == (False, int(room.LACK_LIMIT_S / room.POLL_S))

    def test_the_cpu_has_no_room_to_wait_for(self):
        assert not Room(torch.device("cpu"), None).wait_for(1)

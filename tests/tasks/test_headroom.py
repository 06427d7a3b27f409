"""What a worker does that lacks memory, and in which order; the device's memory is made up."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import nn

from tasks import headroom, step
from tasks.headroom import Headroom
from tasks.spec import Phase, PrecisionSpec
from tasks.step import State
from tests.tasks import models

CPU = torch.device("cpu")
MIB = 2**20


@pytest.fixture
def asked(monkeypatch):
    """What turns and waits ask for, in MiB; neighbours have it, and the process holds 30 MiB."""
    found = []
    monkeypatch.setattr(headroom.Room, "turn", lambda room, wanted: found.append(wanted / MIB) or contextlib.nullcontext())
    monkeypatch.setattr(headroom.Room, "wait_for", lambda room, wanted: found.append(wanted / MIB) or True)
    monkeypatch.setattr(headroom.PeakMemory, "held_mib", lambda peak: 30.0)
    return found


def lacks(times, done="done"):
    """Something to do that does not fit so many times."""
    left = [torch.OutOfMemoryError("no room")] * times

    def act():
        if left:
            raise left.pop()
        return done

    return act


def saved_state():
    made = models.benchmark(nn.Linear(8, 4), (torch.randn(6, 8),), models.squares, True)
    return State(step.prepare(made, "training", PrecisionSpec("float32"), "none", CPU), 0)


def test_a_turn_is_for_what_is_not_held_yet(asked):
    room = Headroom(CPU, 100.0, [])
    for peak_mib in (None, 50.0, 10.0):
        with room.turn(*(() if peak_mib is None else (peak_mib,))):
            pass
    assert asked == [70.0, 20.0, 0.0]


@pytest.mark.parametrize(("so_far_mib", "wanted"), [(None, 70.0), (90.0, 70.0), (200.0, 170.0)])
def test_a_wait_is_for_the_peak_that_was_expected_or_seen(asked, monkeypatch, so_far_mib, wanted):
    monkeypatch.setattr(headroom.PeakMemory, "so_far", lambda peak: so_far_mib)
    assert Headroom(CPU, 100.0, []).wait()
    assert asked == [wanted]


def test_reliefs_are_tried_in_turn_until_it_fits(asked):
    remarks: list[str] = []
    room, state = Headroom(CPU, 0.0, remarks), saved_state()
    room.enter(Phase.EAGER)
    assert room.fitted(lacks(3), room.wait, lambda: room.to_host(state), room.wait) == "done"
    wait = "phase eager lacked memory until neighbours had given some back"
    assert remarks == [wait, "the saved state was moved to the host in phase eager, for lack of memory", wait]
    assert state.on_host


def test_a_relief_that_makes_no_room_is_passed_over():
    tried = []
    assert Headroom(CPU, 0.0, []).fitted(lacks(1), lambda: tried.append(1) or False, lambda: tried.append(2) or True) == "done"
    assert tried == [1, 2]


def test_what_never_fits_fails_as_it_failed():
    with pytest.raises(torch.OutOfMemoryError, match="no room"):
        Headroom(CPU, 0.0, []).fitted(lacks(3), lambda: True, lambda: True)


def test_other_errors_are_none_of_its_business():
    def broken():
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        Headroom(CPU, 0.0, []).fitted(broken, lambda: pytest.fail("no relief is wanted"))


def test_neighbours_without_memory_are_not_waited_for_and_a_state_moves_once(monkeypatch):
    monkeypatch.setattr(headroom.Room, "wait_for", lambda room, wanted: False)
    remarks: list[str] = []
    room, state = Headroom(CPU, 0.0, remarks), saved_state()
    assert not room.wait()
    assert [room.to_host(state), room.to_host(state)] == [True, False]
    assert len(remarks) == 1


@pytest.mark.parametrize("phase", [Phase.EAGER, Phase.COMPILE, Phase.VERIFY])
def test_compiling_that_was_gone_on_with_is_remembered(asked, phase):
    room = Headroom(CPU, 0.0, [])
    room.enter(phase)
    assert not room.interrupted
    room.wait()
    room.enter(Phase.TIME)
    assert room.interrupted is (phase is Phase.COMPILE)

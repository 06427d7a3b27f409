"""Owning the device, against a channel that grants at once and a queue that is never the same."""

from __future__ import annotations

import contextlib

import pytest

from tasks.channel import Channel, Grant
from tasks.idle import BUDGET_S, LIMIT_S, Quiet
from tasks.ownership import Ownership


class Granting(Channel):
    """A channel beside so many neighbours that writes down what happens."""

    def __init__(self, heard, neighbours):
        super().__init__(None)
        self.heard = heard
        self.neighbours = neighbours

    def _acquire(self, use):
        self.heard.append("acquired")
        return Grant(0.0, self.neighbours)

    def _send(self, message):
        self.heard.append(message["lease"])


class Queue:
    """A device that falls idle or does not."""

    def __init__(self, heard, idle=True, broken=False):
        self.heard = heard
        self.idle = idle
        self.broken = broken
        self.limits = []

    def synchronize(self):
        self.heard.append("synchronized")
        if self.broken:
            raise RuntimeError("device-side assert")

    def wait_until_idle(self, limit_s):
        self.heard.append("idle" if self.idle else "busy")
        self.limits.append(limit_s)
        return Quiet(self.idle, 0.001 if self.idle else limit_s)


def ownership(neighbours, **queue):
    heard = []
    found = Queue(heard, **queue)
    return heard, found, Ownership(Granting(heard, neighbours), found)


def test_the_neighbours_queues_are_waited_for_and_ones_own_before_the_device_is_given_back():
    heard, _, own = ownership(3)

    with own.exclusive():
        heard.append("timing")

    assert heard == ["acquired", "idle", "timing", "synchronized", "release"]
    assert (own.neighbours, own.busy, own.times_busy) == (3, None, 0)


def test_without_neighbours_nobody_is_waited_for():
    heard, _, own = ownership(0)

    with own.exclusive():
        pass

    assert heard == ["acquired", "synchronized", "release"]


def test_within_a_block_nothing_more_happens():
    heard, _, own = ownership(1)

    with own.exclusive(), own.exclusive(), own.exclusive():
        heard.append("timing")

    assert heard == ["acquired", "idle", "timing", "synchronized", "release"]


def test_a_device_that_stays_busy_is_told_of_and_costs_no_more_than_the_budget():
    _, queue, own = ownership(2, idle=False)

    for _ in range(20):
        with own.exclusive():
            assert "not idle" in own.busy

    assert own.times_busy == 20
    assert queue.limits[:2] == [LIMIT_S, LIMIT_S]
    assert sum(queue.limits) == own.settling_s == BUDGET_S
    assert own.summary() == {"settling_s": BUDGET_S, "times_busy": 20}


def test_what_was_busy_once_need_not_be_busy_now():
    _, queue, own = ownership(2, idle=False)
    with own.exclusive():
        pass
    queue.idle = True

    with own.exclusive():
        assert own.busy is None


def test_an_error_is_the_blocks_own_though_the_device_cannot_be_waited_for():
    heard, _, own = ownership(1, broken=True)

    with pytest.raises(ZeroDivisionError), own.exclusive():
        raise ZeroDivisionError

    assert heard[-1] == "release"


def test_an_error_that_waiting_brings_to_light_is_not_lost():
    heard, _, own = ownership(1, broken=True)

    with pytest.raises(RuntimeError, match="assert"), own.exclusive():
        pass

    assert heard[-1] == "release"


def test_where_work_ends_with_its_process_nothing_is_waited_for():
    heard = []
    own = Ownership(Granting(heard, 2))

    with own.exclusive(), contextlib.nullcontext():
        heard.append("timing")

    assert heard == ["acquired", "timing", "release"]
    assert (own.neighbours, own.summary()) == (2, {})

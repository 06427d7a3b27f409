"""When a device counts as idle, on a simulated one that is shared by time slices."""

from __future__ import annotations

import pytest

from tasks.idle import LIMIT_S, PROBES, SLACK_MS, STEADY, Probe, is_idle, wait_until_idle

SPIN_MS, LAUNCH_MS, SLICE_MS = 0.2, 0.05, 2.0


class Device:
    """A GPU whose other process has ``busy_ms`` of work queued; it turns to another process after a slice, or when one has no work."""

    def __init__(self, busy_ms=0.0, spins=lambda number: SPIN_MS):
        self.now_ms = 0.0
        self.busy_ms = busy_ms
        self.spins = spins
        self.probes = 0

    def clock(self):
        return self.now_ms / 1000

    def probe(self):
        """Between two probes this process has no work: the other has its slice before the next one starts."""
        turned_away_ms = min(self.busy_ms, SLICE_MS)
        self.busy_ms -= turned_away_ms
        spin_ms = self.spins(self.probes)
        self.probes += 1
        host_ms = LAUNCH_MS + turned_away_ms + spin_ms
        self.now_ms += host_ms
        return Probe(spin_ms, host_ms)


def test_an_idle_device_is_recognised_within_milliseconds():
    device = Device()

    quiet = wait_until_idle(device.probe, device.clock)

    assert quiet.idle
    assert device.probes == PROBES
    assert quiet.waited_s < 0.002


def test_a_stopped_neighbours_queue_is_waited_for():
    device = Device(busy_ms=150.0)

    quiet = wait_until_idle(device.probe, device.clock)

    assert quiet.idle
    assert device.busy_ms == 0.0
    assert 0.15 <= quiet.waited_s < 0.18


def test_somebody_who_does_not_stop_is_given_up_on():
    device = Device(busy_ms=1e9)

    quiet = wait_until_idle(device.probe, device.clock)

    assert not quiet.idle
    assert LIMIT_S <= quiet.waited_s < LIMIT_S + 0.01


def test_without_time_left_it_looks_once():
    device = Device(busy_ms=1e9)

    assert not wait_until_idle(device.probe, device.clock, 0.0).idle
    assert device.probes == 1


def test_a_device_that_turned_away_while_it_counted_is_not_idle():
    interrupted = Device(spins=lambda number: SPIN_MS + SLICE_MS * (number == 2))

    assert wait_until_idle(interrupted.probe, interrupted.clock).idle
    assert interrupted.probes == 3 + PROBES


def test_a_rising_clock_does_not_look_like_a_neighbour():
    rising = Device(spins=lambda number: 1.2 * 0.95**number)

    assert wait_until_idle(rising.probe, rising.clock).idle
    assert rising.probes == PROBES


@pytest.mark.parametrize(
    ("last", "idle"),
    [
        (Probe(SPIN_MS, SPIN_MS + SLACK_MS), True),
        (Probe(SPIN_MS, SPIN_MS + SLACK_MS + 0.01), False),
        (Probe(SPIN_MS * STEADY, SPIN_MS * STEADY), True),
        (Probe(SPIN_MS * STEADY + 0.01, SPIN_MS * STEADY + 0.01), False),
    ],
)
def test_the_last_probes_decide_and_all_of_them(last, idle):
    good = [Probe(SPIN_MS, SPIN_MS + LAUNCH_MS)] * (PROBES - 1)

    assert is_idle([*good, last]) is idle
    assert not is_idle([Probe(SPIN_MS, 100.0), *good])
    assert not is_idle([*good, last][1:])

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.channel import Use
from tasks.clock import PAUSED, WAITING, PhaseClock
from tasks.spec import DeadlineSpec, Phase


def test_a_phase_is_charged_what_it_runs():
    clock = PhaseClock(DeadlineSpec(), 100.0)
    clock.enter(Phase.BUILD, 101.0)
    clock.enter(Phase.COMPILE, 103.0)
    clock.enter(Phase.BUILD, 107.0)
    assert clock.phase_s(107.5) == {"start": 1.0, "build": 2.5, "compile": 4.0}


def test_a_phase_expires_and_so_does_the_task():
    clock = PhaseClock(DeadlineSpec(start_s=5, build_s=10, task_s=12), 0.0)
    assert clock.remaining_s(1.0) == 4.0
    assert clock.expired(4.9) is None
    assert clock.expired(5.0) == "phase start took longer than its 5 s"
    clock.enter(Phase.BUILD, 5.0)
    assert clock.remaining_s(5.0) == 7.0
    assert clock.expired(12.0) == "the task took longer than its 12 s"


def test_owned_seconds_are_counted_beside_the_phases():
    clock = PhaseClock(DeadlineSpec(), 0.0)
    for began in (1.0, 4.0):
        clock.own(began)
        clock.disown(began + 0.5)
    clock.own(6.0)
    assert clock.owned_s(6.25) == 1.25
    clock.restart(7.0)
    assert clock.owned_s(9.0) == 2.0
    assert clock.phase_s(9.0) == {"start": 9.0}
    assert clock.owned_s(9.0, Use.TUNE) == 0.0


def test_seconds_of_tuning_are_some_of_those_owned():
    clock = PhaseClock(DeadlineSpec(), 0.0)
    clock.own(1.0, Use.TUNE)
    clock.disown(1.5)
    clock.own(2.0, Use.WARM)
    clock.halt(WAITING, 2.25)  # for the neighbours that it has let go on so far
    clock.go_on(WAITING, 2.75)
    clock.own(2.75, Use.TIME)
    clock.own(3.75, Use.WARM)
    clock.disown(4.0)
    assert [clock.owned_s(5.0, use) for use in (None, Use.TUNE, Use.WARM, Use.TIME)] == [2.0, 0.5, 0.5, 1.0]


def test_halted_time_does_not_count_and_reasons_may_overlap():
    clock = PhaseClock(DeadlineSpec(start_s=5), 0.0)
    clock.halt(WAITING, 1.0)
    clock.halt(PAUSED, 2.0)
    assert clock.remaining_s(50.0) is None
    assert clock.expired(50.0) is None
    clock.go_on(PAUSED, 100.0)
    clock.go_on(WAITING, 101.0)
    assert clock.remaining_s(102.0) == 3.0
    assert (clock.halted_s(PAUSED, 102.0), clock.halted_s(WAITING, 102.0), clock.all_halted_s(102.0)) == (98.0, 100.0, 100.0)


STEPS = st.lists(
    st.tuples(
        st.floats(0, 10),
        st.one_of(
            st.tuples(st.just("enter"), st.sampled_from(Phase)),
            st.tuples(st.sampled_from(["halt", "go_on"]), st.sampled_from([PAUSED, WAITING])),
        ),
    ),
    max_size=40,
)


@given(STEPS)
def test_every_second_is_either_counted_or_halted(steps):
    clock, now = PhaseClock(DeadlineSpec(), 0.0), 0.0
    for passed, (what, argument) in steps:
        now += passed
        getattr(clock, what)(argument, now)
    assert sum(clock.phase_s(now).values()) + clock.all_halted_s(now) == pytest.approx(now, abs=1e-3)


def test_a_new_process_has_its_phases_anew_and_what_is_left_of_the_task():
    clock = PhaseClock(DeadlineSpec(start_s=5, build_s=10, task_s=20), 0.0)
    clock.enter(Phase.BUILD, 4.0)
    clock.halt(PAUSED, 12.0)
    clock.restart(50.0)
    assert clock.phase is Phase.START
    assert clock.remaining_s(51.0) == 4.0
    clock.enter(Phase.BUILD, 54.0)
    assert clock.remaining_s(54.0) == 4.0
    assert clock.phase_s(55.0) == {"start": 8.0, "build": 9.0}
    assert clock.expired(58.0) == "the task took longer than its 20 s"

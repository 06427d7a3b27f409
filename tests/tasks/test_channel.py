from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.channel import CONTROL_FD, MESSAGE_LIMIT_BYTES, Channel, Grant, GuardianEnd, Use
from tasks.spec import Phase
from tests.tasks.processes_fixtures import wait_until


@pytest.fixture
def ends():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield Channel(theirs), GuardianEnd(ours), theirs


def in_background(function):
    thread = threading.Thread(target=function)
    thread.start()
    return thread


def receive(guardian, count):
    messages = []
    wait_until(lambda: messages.extend(guardian.receive()) or len(messages) >= count, f"{count} messages")
    return messages


def test_phases_go_up_in_order(ends):
    channel, guardian, _ = ends
    for phase in Phase:
        channel.phase(phase)
    assert receive(guardian, len(Phase)) == [{"phase": phase.value} for phase in Phase]


def test_owning_the_device_asks_once_however_deep_and_gives_back(ends):
    channel, guardian, _ = ends
    grants = []

    def work():
        with channel.exclusive() as outer, channel.exclusive() as inner:
            grants.extend([outer, inner])
        with channel.exclusive() as again:
            grants.append(again)

    thread = in_background(work)
    assert receive(guardian, 1) == [{"lease": "time"}]
    assert guardian.receive() == []
    guardian.grant(Grant(0.5, 3))
    assert receive(guardian, 2) == [{"lease": "release"}, {"lease": "time"}]
    guardian.grant(Grant(0.0, 1))
    thread.join()
    assert receive(guardian, 1) == [{"lease": "release"}]
    assert grants == [Grant(0.5, 3), Grant(0.5, 3), Grant(0.0, 1)]


def test_the_device_is_given_back_when_the_block_raises(ends):
    channel, guardian, _ = ends
    guardian.grant(Grant())
    with pytest.raises(ZeroDivisionError), channel.exclusive():
        raise ZeroDivisionError
    assert receive(guardian, 2) == [{"lease": "time"}, {"lease": "release"}]


def test_tuning_asks_for_less(ends):
    channel, guardian, _ = ends
    guardian.grant(Grant())
    with channel.exclusive(Use.TUNE):
        pass
    assert receive(guardian, 2) == [{"lease": "tune"}, {"lease": "release"}]


def test_who_warms_up_asks_for_more_to_time_and_gives_that_back_first(ends):
    channel, guardian, _ = ends
    grants = []

    def work():
        with channel.exclusive(Use.WARM) as warm:
            with channel.exclusive(Use.TIME) as timed, channel.exclusive(Use.TUNE) as within:
                grants.extend([warm, timed, within])
            with channel.exclusive(Use.WARM):
                assert not channel.owns_for(Use.TIME)

    thread = in_background(work)
    assert receive(guardian, 1) == [{"lease": "warm"}]
    guardian.grant(Grant(0.0, 2))
    assert receive(guardian, 1) == [{"lease": "time"}]
    guardian.grant(Grant(0.25, 3))
    assert receive(guardian, 2) == [{"lease": "ease"}, {"lease": "release"}]
    thread.join()
    assert grants == [Grant(0.0, 2), Grant(0.25, 3), Grant(0.25, 3)]


def test_coming_back_to_the_device_waits_for_leave_to(ends):
    channel, guardian, _ = ends
    came_back = threading.Event()

    def work():
        with channel.off_device():
            pass
        came_back.set()

    thread = in_background(work)
    assert receive(guardian, 2) == [{"device": "leave"}, {"device": "return"}]
    assert not came_back.wait(0.05)
    guardian.answer({"returned": True})
    thread.join()
    assert came_back.is_set()


def test_who_owns_the_device_knows(ends):
    channel, guardian, _ = ends
    guardian.grant(Grant())
    assert not channel.owns_for(Use.TUNE)
    with channel.exclusive():
        assert channel.owns_for(Use.TIME)
        assert channel.owns_for(Use.WARM)
    assert not channel.owns_for(Use.WARM)


def test_the_running_clock_leaves_out_what_does_not_count(ends):
    channel, guardian, _ = ends
    for _ in range(2):
        guardian.answer({"halted_s": 1.5})
    assert channel.running_s(lambda: 10.0) == 8.5
    assert receive(guardian, 2) == [{"ask": "halted_s"}] * 2


@pytest.mark.parametrize(
    ("halted_s", "now_s"),
    [([0.0, 4.0, 4.0], [10.0, 14.0]), ([0.0, 0.0], [10.0]), ([0.0, 4.0, 7.0, 7.0], [10.0, 14.0, 17.0])],
    ids=["a pause before the clock was read", "none", "two pauses"],
)
def test_a_pause_while_the_running_clock_is_read_is_not_half_counted(ends, halted_s, now_s):
    channel, guardian, _ = ends
    for answer in halted_s:
        guardian.answer({"halted_s": answer})
    times = iter(now_s)
    assert channel.running_s(lambda: next(times)) == 10.0
    assert len(receive(guardian, len(halted_s))) == len(halted_s)


def test_a_worker_whose_guardian_is_gone_does_not_wait(ends):
    channel, guardian, _ = ends
    guardian.close()
    with pytest.raises(ConnectionError), channel.exclusive():
        pass


def test_without_a_guardian_everything_is_granted(monkeypatch):
    monkeypatch.delenv(CONTROL_FD, raising=False)
    channel = Channel.from_environment()
    channel.phase(Phase.TIME)
    with channel.off_device(), channel.exclusive() as grant:
        assert grant == Grant()
    assert channel.running_s(lambda: 3.0) == 3.0


def test_the_channel_is_not_handed_on_to_other_processes(monkeypatch):
    ours, theirs = socket.socketpair()
    os.set_inheritable(theirs.fileno(), True)
    monkeypatch.setenv(CONTROL_FD, str(theirs.fileno()))
    channel = Channel.from_environment()
    assert CONTROL_FD not in os.environ
    script = f"import os\ntry: os.fstat({theirs.fileno()})\nexcept OSError: print('closed')"
    assert subprocess.run([sys.executable, "-ISc", script], close_fds=False, capture_output=True, text=True).stdout == "closed\n"
    theirs.detach()
    channel._lines.close()
    channel._connection.close()
    assert GuardianEnd(ours).receive() is None
    ours.close()


@given(
    st.lists(st.one_of(st.binary(max_size=200), st.just(b"\n"), st.just(b"[" * 3000 + b"\n"), st.just(b"x" * (MESSAGE_LIMIT_BYTES + 1))))
)
def test_whatever_a_worker_writes_the_guardian_takes_and_then_hears_it_again(pieces):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        guardian = GuardianEnd(ours)
        for piece in pieces:
            theirs.sendall(piece)
            assert all(isinstance(message, dict) for message in guardian.receive())
        theirs.sendall(b'\n{"phase": "time"}\n')
        assert guardian.receive()[-1] == {"phase": "time"}
        theirs.close()
        assert guardian.receive() is None


def test_a_worker_that_does_not_read_does_not_block_its_guardian(ends):
    _, guardian, _ = ends
    for _ in range(10_000):
        guardian.answer({"halted_s": 0.0})
    assert guardian.receive() == []  # it has come this far, and still listens


def test_answers_are_lines_of_json(ends):
    _, guardian, theirs = ends
    guardian.grant(Grant(0.25, 2))
    assert json.loads(theirs.recv(1000)) == {"waited_s": 0.25, "neighbours": 2}

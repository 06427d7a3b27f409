from __future__ import annotations

import contextlib
import fcntl
import itertools
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tasks import lease
from tasks.channel import Grant, Use
from tasks.lease import Lease, Place
from tasks.spec import Phase, Status
from tasks.supervisor import PhaseStarted, supervise
from tests.tasks.processes_fixtures import attempt, toy


def finish(task, number=1):
    *_, last = supervise(task, attempt(number))
    return last.outcome


def intervals(outcomes):
    """When each worker timed, as (from, to, number of the worker), sorted."""
    found = [
        (float(began), float(ended), number)
        for number, outcome in enumerate(outcomes)
        for began, ended in re.findall(r"time (\S+) (\S+)", outcome.log)
    ]
    return sorted(found)


def spans(outcome, use):
    return [(float(began), float(ended)) for began, ended in re.findall(rf"{use.value} (\S+) (\S+)", outcome.log)]


def ticks(outcome):
    return [float(at) for at in re.findall(r"tick (\S+)", outcome.log)]


def test_nobody_times_while_another_does(node_directory):
    tasks = [toy("slow_pass", task_id=f"toy/{n}", seconds=0.1 * n, exclusive_seconds=0.05, rounds=6) for n in range(4)]
    with ThreadPoolExecutor(4) as pool:
        outcomes = list(pool.map(finish, tasks))
    assert [outcome.status for outcome in outcomes] == [Status.PASS] * 4
    times = intervals(outcomes)
    assert len(times) == 24
    assert all(one[1] <= other[0] for one, other in itertools.pairwise(times))
    assert sum(outcome.waited_s for outcome in outcomes) > 0


def compile_beside_one_that_times(seconds):
    """Outcomes of a worker that compiles for ``seconds``, and of one that times, started once the first compiles."""
    with ThreadPoolExecutor(1) as pool:
        events = supervise(toy("slow_pass", task_id="toy/compiling", seconds=seconds, tick_ms=5, orphans=1), attempt())
        for event in events:
            if isinstance(event, PhaseStarted) and event.phase is Phase.COMPILE:
                timing = pool.submit(finish, toy("slow_pass", task_id="toy/timing", seconds=0.0, exclusive_seconds=0.4, rounds=4))
        return event.outcome, timing.result()


def test_neighbours_stand_still_while_one_times_and_are_not_charged_for_it(node_directory):
    for seconds in (1.0, 4.0, 16.0):  # on a busy machine the second may not start in time to meet the first
        compiled, timed = compile_beside_one_that_times(seconds)
        if compiled.paused_s > 0:
            break
    assert (compiled.status, timed.status) == (Status.PASS, Status.PASS), compiled
    times = intervals([timed])
    assert len(times) == 4
    assert not [at for at in ticks(compiled) for began, ended, _ in times if began < at < ended]
    stood_still_s = sum(ended - began for began, ended, _ in times if ticks(compiled)[0] < began and ended < ticks(compiled)[-1])
    assert compiled.paused_s >= stood_still_s > 0
    assert sum(ended - began for began, ended, _ in times) <= timed.owned_s <= timed.phase_s["time"]
    assert compiled.owned_s < 0.5
    counted_s = sum(compiled.phase_s.values())
    assert compiled.ended - compiled.started > counted_s + compiled.paused_s
    took_s = ticks(compiled)[-1] - ticks(compiled)[0]
    assert compiled.measurement.compile_s < took_s - stood_still_s + 0.5


def test_a_worker_alone_gets_the_device_at_once(node_directory):
    outcome = finish(toy("slow_pass", seconds=0.0, exclusive_seconds=0.001, rounds=100))
    assert outcome.status is Status.PASS
    assert outcome.waited_s < 1.0
    assert outcome.paused_s == 0.0


class Recorder:
    """A tree that stands for the processes of a worker."""

    def __init__(self):
        self.calls = []

    def pause(self):
        self.calls.append("pause")

    def resume(self):
        self.calls.append("resume")

    def granted(self, grant):
        self.calls.append(grant)

    def returned(self):
        self.calls.append("returned")


def numbers_of(one):
    return {number for ring in one._rings.values() for number in (ring.queue, ring.turn)}


@pytest.fixture
def make(tmp_path_factory):
    meeting_place = tmp_path_factory.mktemp("d")
    made = []

    def lease_on(device="cpu"):
        tree = Recorder()
        made.append(Lease(device, str(meeting_place), tree))
        return made[-1], tree

    yield lease_on
    for each in made:
        if each.fileno() >= 0:
            each.leave()


def attend(*leases, until):
    """Let the guardians of ``leases`` do what they do in their loops."""
    give_up = time.monotonic() + 30
    while not until():
        assert time.monotonic() < give_up
        for each in leases:
            each.attend()
        time.sleep(0.001)


def test_an_owner_pauses_the_others_and_its_release_resumes_them(make):
    (one, one_tree), (two, two_tree) = make(), make()
    assert one.try_join()
    assert two.try_join()
    one.acquire()
    assert one_tree.calls == []  # not before the other has made way
    attend(two, one, until=lambda: one_tree.calls)
    assert two_tree.calls == ["pause"]
    assert one_tree.calls[0].neighbours == 1
    one.release()
    attend(two, until=lambda: len(two_tree.calls) == 2)
    assert two_tree.calls == ["pause", "resume"]


def test_other_devices_are_no_concern(make):
    (one, one_tree), (two, two_tree) = make("GPU-1"), make("GPU-2")
    assert one.try_join()
    assert two.try_join()
    one.acquire()
    two.acquire()
    assert [call.neighbours for call in (*one_tree.calls, *two_tree.calls)] == [0, 0]


def test_nobody_joins_while_another_owns(make):
    (one, one_tree), (two, _) = make(), make()
    assert one.try_join()
    one.acquire()
    assert isinstance(one_tree.calls[0], Grant)
    assert not two.try_join()
    one.release()
    assert two.try_join()


def test_an_owner_that_leaves_or_dies_gives_way(make):
    (one, one_tree), (two, two_tree) = make(), make()
    assert one.try_join()
    assert two.try_join()
    one.acquire()
    attend(two, one, until=lambda: one_tree.calls)
    one.leave()
    attend(two, until=lambda: two_tree.calls == ["pause", "resume"])


@pytest.mark.parametrize("waits_to", ["resume", "time"])
def test_who_leaves_while_it_waits_touches_nothing_that_is_opened_afterwards(make, monkeypatch, waits_to):
    (one, one_tree), (two, two_tree) = make(), make()
    flock, locked = fcntl.flock, set()
    monkeypatch.setattr(lease.fcntl, "flock", lambda number, kind: locked.add((threading.get_ident(), number)) or flock(number, kind))
    assert one.try_join()
    assert two.try_join()
    one.acquire()
    if waits_to == "time":
        two.acquire()
    attend(two, one, until=lambda: one_tree.calls)
    assert two_tree.calls == ["pause"]
    waiting = next(thread for thread in threading.enumerate() if thread.name.endswith("(_wait)"))
    numbers = numbers_of(two)
    two.leave()
    (next_one, _) = make("another device")
    assert numbers_of(next_one) & numbers  # the next process of the task has these numbers now
    assert next_one.try_join()
    one.release()
    waiting.join(10)
    assert not waiting.is_alive()
    assert not numbers & {number for thread, number in locked if thread == waiting.ident}
    (beside, _) = make("another device")
    assert beside.try_join()  # nobody holds its queue
    (last, last_tree) = make()
    assert last.try_join()
    last.acquire()
    attend(one, last, until=lambda: last_tree.calls)  # nor does who has left hold anything of the device


def test_who_waits_in_the_queue_makes_way_and_is_resumed_before_it_owns(make):
    (one, one_tree), (two, two_tree) = make(), make()
    assert one.try_join()
    assert two.try_join()
    one.acquire()
    two.acquire()
    attend(two, one, until=lambda: one_tree.calls)
    assert two_tree.calls == ["pause"]
    one.release()
    attend(one, two, until=lambda: len(two_tree.calls) == 3)
    assert two_tree.calls[1] == "resume"
    assert isinstance(two_tree.calls[2], Grant)
    assert two_tree.calls[2].waited_s > 0
    assert one_tree.calls[1:] == ["pause"]


class TestRings:
    """Who is off the device stands still for whoever times, and not for whoever tunes."""

    @pytest.fixture
    def pair(self, make):
        (one, one_tree), (two, two_tree) = make(), make()
        assert one.try_join()
        assert two.try_join()
        one.move(Place.DEVICE)
        return one, one_tree, two, two_tree

    def own(self, one, one_tree, two, use):
        before = len(one_tree.calls)
        one.acquire(use)
        attend(two, one, until=lambda: len(one_tree.calls) > before)
        assert isinstance(one_tree.calls[-1], Grant)
        assert one_tree.calls[-1].neighbours == 1

    def test_tuning_lets_it_go_on(self, pair):
        one, one_tree, two, two_tree = pair
        self.own(one, one_tree, two, Use.TUNE)
        two.attend()
        assert two_tree.calls == []

    def test_timing_stops_it(self, pair):
        one, one_tree, two, two_tree = pair
        self.own(one, one_tree, two, Use.TIME)
        assert two_tree.calls == ["pause"]
        one.release()
        attend(two, until=lambda: two_tree.calls == ["pause", "resume"])
        self.own(one, one_tree, two, Use.TUNE)  # it is where it was
        two.attend()
        assert two_tree.calls == ["pause", "resume"]

    def test_it_comes_back_to_the_device_when_nobody_tunes(self, pair):
        one, one_tree, two, two_tree = pair
        self.own(one, one_tree, two, Use.TUNE)
        two.move(Place.DEVICE, awaited=True)
        two.attend()
        assert two_tree.calls == ["pause"]
        one.release()
        attend(two, until=lambda: len(two_tree.calls) == 3)
        assert two_tree.calls == ["pause", "resume", "returned"]
        one.acquire(Use.TUNE)
        attend(two, one, until=lambda: len(one_tree.calls) == 2)
        assert two_tree.calls[3:] == ["pause"]

    def test_it_comes_back_at_once_to_a_device_that_nobody_owns(self, pair):
        _, _, two, two_tree = pair
        two.move(Place.DEVICE, awaited=True)
        assert two_tree.calls == ["returned"]

    def test_who_was_about_to_come_back_when_it_was_stopped_does_so_afterwards(self, pair):
        one, one_tree, two, two_tree = pair
        self.own(one, one_tree, two, Use.TIME)
        two.move(Place.DEVICE, awaited=True)  # said before it was stopped, and read after that
        assert two_tree.calls == ["pause"]
        one.release()
        attend(two, until=lambda: two_tree.calls == ["pause", "resume", "returned"])
        self.own(one, one_tree, two, Use.TUNE)
        assert two_tree.calls[3:] == ["pause"]

    def test_one_off_the_device_tunes_and_is_off_it_afterwards(self, pair):
        one, one_tree, two, two_tree = pair
        two.acquire(Use.TUNE)
        attend(one, two, until=lambda: two_tree.calls)
        assert one_tree.calls == ["pause"]
        two.release()
        attend(one, until=lambda: one_tree.calls == ["pause", "resume"])
        self.own(one, one_tree, two, Use.TUNE)
        two.attend()
        assert len(two_tree.calls) == 1

    def test_one_that_waits_to_tune_makes_way_for_one_that_times(self, make, pair):
        one, one_tree, two, two_tree = pair
        self.own(one, one_tree, two, Use.TIME)
        two.acquire(Use.TUNE)
        assert two_tree.calls == ["pause"]
        one.release()
        attend(one, two, until=lambda: len(two_tree.calls) == 3)
        assert two_tree.calls[1] == "resume"
        assert isinstance(two_tree.calls[2], Grant)
        (late, late_tree) = make()
        two.release()
        assert late.try_join()
        late.acquire(Use.TIME)  # it is in its ring again, and has to be stopped there
        attend(one, two, late, until=lambda: late_tree.calls)
        assert two_tree.calls[3:] == ["pause"]

    def test_one_that_waits_to_tune_goes_on_while_another_tunes(self, pair):
        one, one_tree, two, two_tree = pair
        self.own(one, one_tree, two, Use.TUNE)
        two.acquire(Use.TUNE)
        one.acquire(Use.TUNE)  # and tells its neighbours again
        attend(one, two, until=lambda: True)
        assert two_tree.calls == []
        one.release()
        attend(one, two, until=lambda: two_tree.calls)
        assert [type(call) for call in two_tree.calls] == [Grant]

    def test_one_that_warms_up_stops_it_only_while_it_times(self, pair):
        one, one_tree, two, two_tree = pair
        self.own(one, one_tree, two, Use.WARM)
        two.attend()
        assert two_tree.calls == []
        self.own(one, one_tree, two, Use.TIME)
        assert two_tree.calls == ["pause"]
        assert one.ease()
        attend(two, until=lambda: two_tree.calls == ["pause", "resume"])
        two.move(Place.DEVICE, awaited=True)  # whose ring is still another's
        attend(two, until=lambda: two_tree.calls[-1] == "pause")
        one.release()
        attend(two, until=lambda: two_tree.calls[-1] == "returned")
        assert one_tree.calls[1:] == one_tree.calls[-1:]  # nobody stopped the owner

    def test_there_is_nothing_to_ease_for_one_that_timed_from_the_start(self, pair):
        one, one_tree, two, two_tree = pair
        assert not one.ease()
        self.own(one, one_tree, two, Use.TIME)
        assert not one.ease()
        assert not one.acquire(Use.WARM)
        two.attend()
        assert two_tree.calls == ["pause"]

    def test_the_death_of_one_that_is_about_to_time_frees_both_rings(self, pair):
        one, one_tree, two, two_tree = pair
        self.own(one, one_tree, two, Use.WARM)
        one.acquire(Use.TIME)
        attend(two, until=lambda: two_tree.calls == ["pause"])
        one.leave()
        attend(two, until=lambda: two_tree.calls == ["pause", "resume"])
        two.acquire(Use.TIME)
        attend(two, until=lambda: len(two_tree.calls) == 3)
        assert isinstance(two_tree.calls[2], Grant)
        assert [type(call) for call in one_tree.calls] == [Grant]  # it died before it could time

    def test_the_death_of_one_that_tunes_frees_the_device(self, pair):
        one, one_tree, two, two_tree = pair
        self.own(one, one_tree, two, Use.TUNE)
        one.leave()
        two.move(Place.DEVICE, awaited=True)
        attend(two, until=lambda: two_tree.calls[-1:] == ["returned"])
        assert two_tree.calls == ["returned"]  # it was never stopped


def test_a_real_worker_compiles_on_while_another_tunes_and_stands_still_while_it_times(node_directory):
    options = {"seconds": 0.0, "exclusive_seconds": 0.3, "warm_seconds": 0.2, "rounds": 3, "tunings": 3}
    with ThreadPoolExecutor(1) as pool:
        events = supervise(toy("slow_pass", task_id="toy/compiling", seconds=5.0, tick_ms=5), attempt())
        for event in events:
            if isinstance(event, PhaseStarted) and event.phase is Phase.COMPILE:
                other = pool.submit(finish, toy("slow_pass", task_id="toy/other", **options))
        compiled, owned = event.outcome, other.result()
    within = {use: spans(owned, use) for use in Use}
    ran = {use: [at for at in ticks(compiled) if any(began < at < ended for began, ended in found)] for use, found in within.items()}
    assert {use: len(found) for use, found in within.items()} == dict.fromkeys(Use, 3)
    assert len(ran[Use.TUNE]) > 20
    assert len(ran[Use.WARM]) > 15
    assert ran[Use.TIME] == []
    assert owned.tuned_s > 0.85
    assert owned.warmed_s > 1.1  # three times 0.2 s before it times, and after; the worker is told, and tells, a little later
    assert owned.tuned_s + owned.warmed_s < owned.owned_s - 0.9


def test_a_message_that_comes_late_pauses_nobody(make):
    (one, one_tree), (two, two_tree) = make(), make()
    assert one.try_join()
    one.acquire()  # two is not running yet, and hears of it
    one.release()
    assert two.try_join()
    two.attend()
    assert two_tree.calls == []
    assert isinstance(one_tree.calls[0], Grant)


def test_full_buffers_and_the_sockets_of_the_dead_stop_nobody(make, tmp_path_factory):
    (one, one_tree), (two, two_tree) = make(), make()
    assert one.try_join()
    assert two.try_join()
    dead = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    dead_path = one._path.with_name("dead.sock")
    dead.bind(str(dead_path))
    dead.close()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as pest:
        pest.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                pest.sendto(b"w", str(two._path))
    one.acquire()
    assert not dead_path.exists()
    attend(two, one, until=lambda: one_tree.calls)
    assert one_tree.calls[0].neighbours == 1
    one.release()
    attend(two, until=lambda: two_tree.calls == ["pause", "resume"])


def test_what_a_worker_should_not_say_changes_nothing(make):
    one, tree = make()
    assert one.try_join()
    one.release()
    assert one.acquire()
    assert not one.acquire()
    assert len(tree.calls) == 1
    one.release()
    one.release()
    one.acquire()
    assert len(tree.calls) == 2


def test_guardians_meet_in_shared_memory_or_in_the_temporary_directory(monkeypatch, tmp_path):
    monkeypatch.setattr(lease, "SHARED_MEMORY", str(tmp_path))
    assert lease.meeting_place("/tmp") == str(tmp_path)
    monkeypatch.setattr(lease, "SHARED_MEMORY", str(tmp_path / "none"))
    assert lease.meeting_place("/tmp") == "/tmp"

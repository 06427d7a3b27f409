"""What launches goes to the quickest processor, stays there while it is quick, and comes back to all of them."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field

import pytest

from tasks import quiet_core
from tasks.hardware import HostMachine
from tasks.quiet_core import QuietCore

QUICK_NS, SLOW_NS = 50_000, 100_000
SECOND_NS = 10**9


@dataclass
class FakeHost:
    """Processors of given speeds, two threads that launch and one that does not, and a clock."""

    taken_ns: dict[int, int]
    now_ns: int = 0
    on: dict[int, set[int]] = field(default_factory=dict)
    scans: int = 0

    def __post_init__(self):
        self.on = {thread: set(self.taken_ns) for thread in (0, 11, 12)}

    def probe_ns(self) -> int:
        (core,) = self.on[0] if len(self.on[0]) == 1 else [min(self.taken_ns)]
        return self.taken_ns[core]

    def move(self, thread: int, cores: set[int]) -> None:
        if thread not in self.on:
            raise ProcessLookupError(thread)
        self.scans += thread == 0 and cores == {max(self.taken_ns)}
        self.on[thread] = cores

    def core(self) -> QuietCore:
        return QuietCore(
            tuple(self.taken_ns),
            self.probe_ns,
            launching=lambda: [0, 11],
            every=lambda: [0, 11, 12, 13],
            move=self.move,
            now_ns=lambda: self.now_ns,
        )


@pytest.fixture
def host():
    return FakeHost({0: SLOW_NS, 1: QUICK_NS, 2: SLOW_NS, 3: SLOW_NS})


class TestSeek:
    def test_what_launches_goes_to_the_quickest(self, host):
        assert host.core().seek() == QUICK_NS
        assert host.on == {0: {1}, 11: {1}, 12: {0, 1, 2, 3}}

    def test_it_stays_while_that_is_quick(self, host):
        core = host.core()
        core.seek()
        for host.now_ns in (SECOND_NS, 2 * SECOND_NS):
            assert core.seek() == QUICK_NS
        assert (host.scans, core.moves) == (1, 0)

    def test_it_leaves_one_that_has_slowed_down(self, host):
        core = host.core()
        core.seek()
        host.taken_ns |= {1: SLOW_NS, 2: QUICK_NS}
        host.now_ns = SECOND_NS
        assert core.seek() == QUICK_NS
        assert (host.on[0], host.on[11], core.moves) == ({2}, {2}, 1)

    def test_it_does_not_look_at_all_of_them_before_every_visit(self, host):
        core = host.core()
        core.seek()
        host.taken_ns |= {1: SLOW_NS, 2: QUICK_NS}
        host.now_ns = SECOND_NS // 20
        assert core.seek() == SLOW_NS
        assert host.on[0] == {1}

    def test_where_all_are_slow_it_stays_and_looks_again_after_a_second(self, host):
        core = host.core()
        core.seek()
        host.taken_ns[1] = SLOW_NS
        host.now_ns = SECOND_NS
        assert core.seek() == SLOW_NS
        host.taken_ns[3] = QUICK_NS
        host.now_ns += SECOND_NS // 2
        assert core.seek() == SLOW_NS, "too early"
        host.now_ns += SECOND_NS // 2
        assert core.seek() == QUICK_NS
        assert core.moves == 1

    def test_a_little_quicker_is_not_worth_a_move(self, host):
        core = host.core()
        core.seek()
        host.taken_ns |= {1: 2 * SLOW_NS, 0: int(1.9 * SLOW_NS), 2: int(1.9 * SLOW_NS), 3: 2 * SLOW_NS}
        host.now_ns = SECOND_NS
        core.seek()
        assert (host.on[0], core.moves) == ({1}, 0)


class TestKept:
    def test_all_threads_have_all_processors_again(self, host):
        core = host.core()
        with core.kept():
            core.seek()
            host.on[12] = {1}  # started by one that was kept
        assert host.on == {thread: {0, 1, 2, 3} for thread in (0, 11, 12)}

    def test_it_touches_nothing_where_it_was_never_asked(self, host):
        with host.core().kept():
            host.on[12] = {1}
        assert host.on[12] == {1}


class TestForLaunching:
    @pytest.mark.parametrize(("on_cuda", "cores", "there"), [(True, 16, True), (True, 4, True), (True, 3, False), (False, 16, False)])
    def test_only_on_a_gpu_with_cores_to_choose_from(self, monkeypatch, on_cuda, cores, there):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
        found = quiet_core.for_launching(on_cuda)
        assert (found.cores if found else None) == (tuple(range(cores)) if there else None)


class TestThreads:
    def test_those_that_run_backward_passes_and_this_one_launch(self, tmp_path):
        for number, name in {7: "python", 8: "pt_autograd_0", 9: "pt_autograd_1", 10: "pt_elastic"}.items():
            (tmp_path / str(number)).mkdir()
            (tmp_path / str(number) / "comm").write_text(f"{name}\n")
        (tmp_path / "99").mkdir()  # it has ended
        assert sorted(quiet_core.launching_threads(tmp_path)) == [0, 8, 9]

    def test_a_real_thread_is_moved_and_comes_back(self):
        every = os.sched_getaffinity(0)
        core = QuietCore(tuple(sorted(every)))
        with core.kept():
            assert core.seek() > 0
            assert os.sched_getaffinity(0) == {core.core}
            inherited = []
            thread = threading.Thread(target=lambda: inherited.append(os.sched_getaffinity(0)))
            kept_in = core.core
            thread.start()
            thread.join()
        assert inherited == [{kept_in}]
        assert os.sched_getaffinity(0) == every


class TestMachine:
    def test_a_visit_begins_with_a_look_and_the_row_counts_moves(self, host):
        machine = HostMachine(core=host.core())
        machine.begin()
        machine.mark()
        host.taken_ns |= {1: SLOW_NS, 2: QUICK_NS}
        host.now_ns = SECOND_NS
        machine.mark()
        found = machine.summary()
        assert (found["host_probe_us"], found["host_probe_us_max"], found["host_core_moves"]) == (50.0, 50.0, 1)

    def test_without_one_nothing_is_moved(self):
        machine = HostMachine()
        machine.mark()
        assert "host_core_moves" not in machine.summary()

"""Peak memory, over the resets of torch's own mark."""

from __future__ import annotations

import contextlib

import pytest
import torch

from tasks.memory import PeakMemory, wait_for_room

MIB = 2**20


class Allocator:
    """CUDA's allocator as far as its mark goes."""

    def __init__(self):
        self.peak = 0

    def use(self, mib):
        self.peak = max(self.peak, mib * MIB)


@pytest.fixture
def allocator(monkeypatch):
    found = Allocator()
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: found.peak)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: setattr(found, "peak", 0))
    return found


def test_a_step_is_looked_at_for_itself_and_what_was_before_is_not_forgotten(allocator):
    peak = PeakMemory(torch.device("cuda", 0))
    allocator.use(900)  # the accuracy reference

    assert peak.of_step(lambda: allocator.use(300), contextlib.nullcontext) == 300
    assert peak.of_step(lambda: allocator.use(200), contextlib.nullcontext) == 200
    assert peak.so_far() == 900
    allocator.use(1000)
    assert peak.so_far() == 1000


def test_the_cpus_allocator_does_not_count():
    def fails():
        raise AssertionError("not to be stepped")

    peak = PeakMemory(torch.device("cpu"))

    assert peak.of_step(fails, contextlib.nullcontext) is None
    assert peak.so_far() is None


class TestRoom:
    """A device of 1000 MiB. Each poll shows so much free; this process holds 100."""

    @pytest.fixture
    def waits(self, monkeypatch):
        def run(free_mib, needed_mib=500, limit_s=1.0):
            shown, slept = iter(free_mib), []
            monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (next(shown) * MIB, 1000 * MIB))
            monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 100 * MIB)
            return wait_for_room(torch.device("cuda"), needed_mib * MIB, slept.append, limit_s), len(slept)

        return run

    def test_it_ends_when_neighbours_have_given_back_enough(self, waits):
        assert waits([200, 300, 500]) == (True, 2)

    def test_what_nobody_else_holds_is_not_waited_for(self, waits):
        assert waits([880], needed_mib=950) == (False, 0)
        assert waits([880]) == (False, 0)  # it ran out of memory alone, whatever is free now

    def test_a_process_that_could_not_even_begin_on_the_device_waits(self, monkeypatch):
        answers, slept = iter([RuntimeError("CUDA error: out of memory"), (800 * MIB, 1000 * MIB)]), []

        def info(device):
            answer = next(answers)
            if isinstance(answer, Exception):
                raise answer
            return answer

        monkeypatch.setattr(torch.cuda, "mem_get_info", info)
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
        assert wait_for_room(torch.device("cuda"), 500 * MIB, slept.append)
        assert len(slept) == 1

    def test_there_is_to_be_room_for_the_peak_that_was_expected(self, monkeypatch):
        wanted = []
        monkeypatch.setattr("tasks.memory.wait_for_room", lambda device, needed: wanted.append(needed // MIB) or True)
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 300 * MIB)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 100 * MIB)
        for expected_mib in (0.0, 700.0):
            assert PeakMemory(torch.device("cuda")).wait_for_room(expected_mib)
        assert wanted == [200, 600]

    def test_it_gives_up(self, waits):
        assert waits([200] * 10) == (False, 4)

    def test_the_cpu_has_no_room_to_wait_for(self):
        assert not wait_for_room(torch.device("cpu"), 1)
        assert not PeakMemory(torch.device("cpu")).wait_for_room()

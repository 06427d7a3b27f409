"""Peak memory, over the resets of torch's own mark."""

from __future__ import annotations

import contextlib

import pytest
import torch

from tasks.memory import PeakMemory

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

"""The probe of the host's speed: its work is always the same, and it takes the best of some tries."""

from __future__ import annotations

from tasks import host_speed


class TestProbe:
    def test_it_is_the_best_of_three(self, monkeypatch):
        ends = iter([0, 90_000, 100_000, 164_000, 200_000, 270_000])
        monkeypatch.setattr(host_speed.time, "perf_counter_ns", lambda: next(ends))
        assert host_speed.probe_ns() == 64_000

    def test_it_is_always_the_same_work(self, monkeypatch):
        done = []

        def counted(count):
            for number in range(count):
                done.append(number)
                yield number

        monkeypatch.setattr(host_speed, "range", lambda count: counted(count) if count == host_speed.LOOPS else range(count), raising=False)
        host_speed.probe_ns()
        assert done == [*range(host_speed.LOOPS)] * host_speed.TRIES

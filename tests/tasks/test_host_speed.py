"""The probe of the host's speed: its work is always the same, and it takes the best of some tries."""

from __future__ import annotations

from tasks import host_speed


class TestProbe:
    def test_it_is_the_best_of_three(self, monkeypatch):
        ends = iter([0, 90_000, 100_000, 164_000, 200_000, 270_000])
        monkeypatch.setattr(host_speed.time, "perf_counter_ns", lambda: next(ends))
        assert host_speed.probe_ns() == 64_000

    def test_ten_times_the_work_takes_longer(self, monkeypatch):
        """It does the work, rather than to look at the clock alone; ten times as much, for machines change by half."""
        usual = min(host_speed.probe_ns() for _ in range(20))
        monkeypatch.setattr(host_speed, "LOOPS", 10 * host_speed.LOOPS)
        assert min(host_speed.probe_ns() for _ in range(20)) > 4 * usual

"""The verdict on two runs, strict and shared, as the benchmark of sharing gives it."""

from __future__ import annotations

import dataclasses
import json
import math
import random
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.compare import Change
from orchestrator.record import Session
from orchestrator.report.synthetic import store_run, synthetic_run, true_logs
from orchestrator.statistics.differences import Judgement, Verdict
from orchestrator.store import Store
from tests.benchmarks import bench_sharing
from tests.benchmarks.bench_sharing import agreement, by_precision, differing, heavier, mean_and_error, throughput
from tests.orchestrator.stored import a_record

ENDS = ("speedup", "speedup_low", "speedup_high")
RUN = synthetic_run(true_logs({"timm": 8, "huggingface": 6}))


def test_the_interval_is_students():
    found = agreement([0.001, 0.002, 0.003])

    assert found.mean == pytest.approx(0.002)
    assert found.high - found.mean == pytest.approx(2.919986 * 0.001 / math.sqrt(3), rel=1e-5)
    assert found.holds
    assert not agreement([0.006] * 5).holds  # the mean is too far off
    assert not agreement([0.03, -0.03, 0.0]).holds  # nobody knows
    assert not agreement([0.0]).holds


def test_a_difference_counts_by_how_well_it_is_known():
    """Two well-known ones that agree, and one of which little is known: their errors explain how they lie, and nothing is added to them."""
    found = by_precision([0.001, 0.003, 0.2], [0.002, 0.002, 0.2])

    weights = [250_000.0, 250_000.0, 25.0]
    assert found.mean == pytest.approx(sum(w * d for w, d in zip(weights, [0.001, 0.003, 0.2], strict=True)) / sum(weights))
    assert found.holds
    assert not agreement([0.001, 0.003, 0.2]).holds


@given(st.lists(st.floats(-0.2, 0.2), min_size=2, max_size=20), st.floats(0.001, 0.1))
def test_equal_errors_are_equal_weights(differences, error):
    plain, weighed = agreement(differences), by_precision(differences, [error] * len(differences))

    assert (weighed.mean, weighed.high) == pytest.approx((plain.mean, plain.high), abs=1e-12)


def test_what_scatters_beyond_its_errors_is_no_better_known_than_it_scatters():
    """Worked by hand: the weighted mean is 0 and Q = 2 * 0.05**2 / 0.01**2 = 50, with two degrees of freedom."""
    far = by_precision([0.05, -0.05, 0.0], [0.01, 0.01, 0.05])

    fixed = [10_000.0, 10_000.0, 400.0]
    scatter = (50.0 - 2) / (sum(fixed) - sum(w * w for w in fixed) / sum(fixed))
    weights = [1 / (0.0001 + scatter)] * 2 + [1 / (0.0025 + scatter)]
    half = 2.919986 * math.sqrt(sum(w * d * d for w, d in zip(weights, [0.05, -0.05, 0.0], strict=True)) / sum(weights) / 2)
    assert far.high - far.mean == pytest.approx(half, rel=1e-5)


def test_throughput_counts_the_time_that_devices_were_held():
    record = dataclasses.replace(a_record(), sessions=(Session(0.0, 1800.0, devices=1), Session(3600.0, 5400.0, devices=1)))

    assert throughput(record, [(0.0, 60.0)] * 40) == 40.0
    assert throughput(a_record(), [(0.0, 60.0)] * 40) is None


def test_of_a_strict_run_that_was_broken_off_the_rows_own_time_counts():
    """Four devices, three rows of an hour each, and the fourth device had been at work for the same hour when the driver was killed."""
    spans = [(0.0, 3600.0)] * 3
    killed = dataclasses.replace(a_record(), sessions=(Session(0.0, None, devices=4),))
    ended = dataclasses.replace(a_record(), sessions=(Session(0.0, 3600.0, devices=4),))
    beside_neighbours = dataclasses.replace(a_record(), sessions=(Session(0.0, None, devices=1, sharing=16),))

    assert throughput(killed, spans) == 1.0
    assert throughput(ended, spans) == 0.75
    assert throughput(beside_neighbours, spans) == 3.0


def test_a_part_of_the_tasks_is_weighed_by_what_they_took_beside_neighbours():
    seconds = {"small": 10.0, "middle": 20.0, "large": 60.0}

    assert heavier(["large"], seconds) == 2.0
    assert heavier(["small", "middle", "elsewhere"], seconds) == 0.5
    assert heavier(["elsewhere"], seconds) is None
    assert heavier(["small"], {"small": 0.0}) is None


@pytest.mark.parametrize(("bias", "code"), [(0.0, 0), (0.02, 1)])
def test_two_stored_runs_are_judged(tmp_path, monkeypatch, capsys, bias, code):
    noise = random.Random(1)

    def remeasured(row):
        factor = math.exp(bias + noise.gauss(0.0, 0.002))
        ends = {name: value * factor for name in ENDS if (value := getattr(row, name))}
        return dataclasses.replace(row, **ends, compiled_ms=row.compiled_ms and row.compiled_ms / factor)

    shared = dataclasses.replace(RUN, run_id="shared", rows=tuple(map(remeasured, RUN.rows)))
    for run in (dataclasses.replace(RUN, run_id="strict"), shared):
        store_run(str(tmp_path), run)
    monkeypatch.setattr(sys, "argv", ["bench_sharing", "strict", "shared", "--results", str(tmp_path)])

    assert Store(str(tmp_path)).resolve("shared").rows(("task_id",)).num_rows == len(RUN.rows)
    assert bench_sharing.main() == code
    out = capsys.readouterr().out
    assert "0 tasks differ" in out or code
    assert f"mean {bias:+.3f}"[:-1] in out


def test_pairs_of_runs_are_judged_together(tmp_path, monkeypatch, capsys):
    """Two machines, one of which finds everything 1 % faster beside neighbours, the other 1 % slower: nothing is shown of either alone."""
    noise = random.Random(1)
    for number, bias in enumerate((0.01, -0.01)):
        for name, moved in (("strict", 0.0), ("shared", bias)):
            factors = {row.task_id: math.exp(moved + noise.gauss(0.0, 0.001)) for row in RUN.rows}
            changed = tuple(
                dataclasses.replace(
                    row,
                    compiled_device_ms=2.0,
                    **{end: value * factors[row.task_id] for end in ENDS if (value := getattr(row, end))},
                )
                for row in RUN.rows
            )
            store_run(str(tmp_path), dataclasses.replace(RUN, run_id=f"{name}{number}", rows=changed))

    def judged(*names):
        monkeypatch.setattr(sys, "argv", ["bench_sharing", *names, "--results", str(tmp_path)])
        return bench_sharing.main(), capsys.readouterr().out

    assert judged("strict0", "shared0")[0] == judged("strict1", "shared1")[0] == 1
    code, out = judged("strict0", "shared0", "strict1", "shared1")
    assert code == 0
    tasks = 2 * sum(row.speedup is not None for row in RUN.rows)
    assert f"ln(compiled ms on the device), shared less strict, {tasks} tasks: mean +0.0000" in out
    with pytest.raises(SystemExit):
        judged("strict0", "shared0", "strict1")
    assert "runs come in pairs" in capsys.readouterr().err
    untimed = tuple(dataclasses.replace(row, status="oom", **dict.fromkeys(ENDS)) for row in RUN.rows)
    store_run(str(tmp_path), dataclasses.replace(RUN, run_id="untimed", rows=untimed))
    with pytest.raises(SystemExit):
        judged("strict0", "untimed")
    assert "no task was timed in both" in capsys.readouterr().err


def test_tasks_that_were_left_out_are_no_throughput(tmp_path, monkeypatch, capsys):
    left_out = {row.task_id for row in RUN.rows[:2]}
    for name in ("strict", "shared"):
        rows = tuple(
            dataclasses.replace(row, status="skipped", **dict.fromkeys(ENDS)) if row.task_id in left_out else row for row in RUN.rows
        )
        store_run(str(tmp_path), dataclasses.replace(RUN, run_id=name, rows=rows))
    monkeypatch.setattr(sys, "argv", ["bench_sharing", "strict", "shared", "--results", str(tmp_path)])

    bench_sharing.main()

    run = sum(row.status != "skipped" for row in RUN.rows if row.task_id not in left_out)
    assert f"strict: {run} rows" in capsys.readouterr().out


def test_a_driver_that_was_killed_held_its_device_until_its_last_row(tmp_path, monkeypatch, capsys):
    for name, held_s in (("strict", 7200.0), ("shared", 3600.0)):
        rows = tuple(dataclasses.replace(row, ended=held_s) for row in RUN.rows)
        store_run(str(tmp_path), dataclasses.replace(RUN, run_id=name, rows=rows))
        path = tmp_path / name / "run.json"
        path.write_text(
            json.dumps(json.loads(path.read_text()) | {"sessions": [dataclasses.asdict(Session(0.0, None, devices=1, sharing=16))]})
        )
    monkeypatch.setattr(sys, "argv", ["bench_sharing", "strict", "shared", "--results", str(tmp_path)])

    bench_sharing.main()

    assert "throughput, shared over strict: 2.00" in capsys.readouterr().out


class TestDiffering:
    def changes(self, *of_task: tuple[str, float, float]) -> list[Change]:
        """Of tasks' names, differences and p values, each with a standard error of 0.02."""
        return [
            Change(name, None, None, Judgement(change, 0.02, None, p, p, Verdict.UNCLEAR), None, None, None, None)
            for name, change, p in of_task
        ]

    def names(self, *of_task: tuple[str, float, float]) -> set[str]:
        return {task.task_id for task in differing(self.changes(*of_task))}

    def test_a_single_pair_is_judged_by_its_own_p(self):
        assert self.names(("moved", 0.2, 1e-6), ("same", 0.01, 0.6)) == {"moved"}

    def test_what_pairs_do_not_agree_on_is_not_the_modes(self):
        assert self.names(("either way", 0.4, 1e-8), ("either way", -0.2, 1e-5), ("same", 0.01, 0.6)) == set()

    def test_what_they_agree_on_is_found_where_neither_alone_would_do(self):
        once = [("moved", 0.05, 0.04), ("same", 0.01, 0.6), ("too", -0.01, 0.6)]
        assert self.names(*once) == set()
        assert self.names(*once, ("moved", 0.052, 0.04), ("moved", 0.048, 0.04)) == {"moved"}

    def test_long_tails_are_not_forgotten_when_pairs_are_put_together(self):
        """Ten of its errors away, and all the same p is 0.2: few pairs, which told little of their own scatter."""
        assert self.names(("moved", 0.2, 0.2), ("moved", 0.2, 0.2)) == set()

    @given(st.lists(st.tuples(st.floats(-0.2, 0.2), st.floats(0.005, 0.1)), min_size=2, max_size=6))
    def test_the_mean_lies_between_and_is_no_worse_known_than_one_of_them(self, pairs):
        values, errors = zip(*pairs, strict=True)
        mean, error = mean_and_error(values, errors)
        assert min(values) - 1e-12 <= mean <= max(values) + 1e-12
        assert error <= math.sqrt(max(errors) ** 2 + bench_sharing.scatter_beyond(values, errors))

"""The verdict on two runs, strict and shared, as the benchmark of sharing gives it."""

from __future__ import annotations

import dataclasses
import json
import math
import random
import sys

import pytest

from orchestrator.record import Session
from orchestrator.report.synthetic import store_run, synthetic_run, true_logs
from orchestrator.store import Store
from tests.benchmarks import bench_sharing
from tests.benchmarks.bench_sharing import agreement, heavier, throughput
from tests.orchestrator.stored import a_record

RUN = synthetic_run(true_logs({"timm": 8, "huggingface": 6}))


def test_the_interval_is_students():
    found = agreement([0.001, 0.002, 0.003])

    assert found.mean == pytest.approx(0.002)
    assert found.high - found.mean == pytest.approx(2.919986 * 0.001 / math.sqrt(3), rel=1e-5)
    assert found.holds
    assert not agreement([0.006] * 5).holds  # the mean is too far off
    assert not agreement([0.03, -0.03, 0.0]).holds  # nobody knows
    assert not agreement([0.0]).holds


def test_throughput_counts_the_time_that_devices_were_held():
    record = dataclasses.replace(a_record(), sessions=(Session(0.0, 1800.0, devices=1), Session(3600.0, 5400.0, devices=1)))

    assert throughput(record, 40) == 40.0
    assert throughput(a_record(), 40) is None


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
        ends = {name: value * factor for name in ("speedup", "speedup_low", "speedup_high") if (value := getattr(row, name))}
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


def test_a_driver_that_was_killed_held_its_device_until_its_last_row(tmp_path, monkeypatch, capsys):
    for name, held_s in (("strict", 7200.0), ("shared", 3600.0)):
        rows = tuple(dataclasses.replace(row, ended=held_s) for row in RUN.rows)
        store_run(str(tmp_path), dataclasses.replace(RUN, run_id=name, rows=rows))
        path = tmp_path / name / "run.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"sessions": [dataclasses.asdict(Session(0.0, None, devices=1))]}))
    monkeypatch.setattr(sys, "argv", ["bench_sharing", "strict", "shared", "--results", str(tmp_path)])

    bench_sharing.main()

    assert "throughput, shared over strict: 2.00" in capsys.readouterr().out

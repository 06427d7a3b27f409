"""Tasks that share a GPU, on a node that claims to have one: toys need none."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest
from ray.cluster_utils import Cluster
from rich.console import Console

from orchestrator import run as runs
from orchestrator.cluster import RayCluster
from orchestrator.costs import Cost
from orchestrator.errors import ExitCode
from orchestrator.request import RunRequest
from orchestrator.store import Store

MANIFEST = """\
schema_version: 1
name: sharing
matrix: {dtype: [float32]}
execution: {device: cuda, sharing: auto}
suites:
  toy:
    - {name: slow_pass.1, options: {seconds: 11, exclusive_seconds: 0.1}}
    - {name: slow_pass.2, options: {seconds: 11, exclusive_seconds: 0.1}}
    - {name: oom.crowded, options: {seconds: 3, from_neighbours: 1}}
    - oom
"""


@pytest.fixture
def address_of_two():
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 8, "num_gpus": 2})
    yield cluster.address
    cluster.shutdown()


@pytest.fixture
def address():
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 8, "num_gpus": 1})
    yield cluster.address
    cluster.shutdown()


@pytest.mark.slow
def test_who_runs_out_of_memory_beside_neighbours_gets_more_room_and_then_the_device(address, tmp_path):
    path = tmp_path / "sharing.yaml"
    path.write_text(MANIFEST)
    request = RunRequest(path, str(tmp_path), "r", address)

    ended = runs.run(request, Console(file=io.StringIO(), width=200), connect=RayCluster)

    run = Store(str(tmp_path)).resolve("r")
    rows = {row["model"]: row for row in run.rows().to_pylist()}
    assert ended.ending.exit_code is ExitCode.SOME_FAILED
    assert run.record.cluster["sharing"] >= 4
    assert run.record.cluster["sharing_why"]
    assert (rows["oom"]["status"], rows["oom"]["attempt"]) == ("oom", 3)
    assert rows["oom.crowded"]["status"] == "pass"
    assert rows["oom.crowded"]["attempt"] in (2, 3)  # by whether one more neighbour was still there
    both = [rows[f"slow_pass.{number}"] for number in (1, 2)]
    assert max(row["started"] for row in both) < min(row["ended"] for row in both)  # they did share
    assert rows["oom.crowded"]["started"] >= min(row["ended"] for row in both)  # with three quarters of it no two others fit


IN_ORDER = """\
schema_version: 1
name: order
matrix: {dtype: [float32]}
execution: {device: cpu, sharing: 8}
suites:
  toy:
"""


@pytest.mark.slow
def test_tasks_start_in_the_order_of_the_plan_whatever_shapes_they_ask_for(tmp_path):
    """Ray takes turns among the shapes of what waits there: of two that wait it starts the one of whose shape fewer run."""
    names = [f"slow_pass.{number:02}" for number in range(20)]
    shapes = [1.0] * 9 + [0.9] * 11  # eight places: what comes ninth has the shape of all that run
    seconds = [8 + number / 4 for number in range(8)] + [0.5] * 12  # the first are all at work before one of them ends
    lines = [
        f"    - {{name: {name}, num_cpus: {cpus}, options: {{seconds: {spent}}}}}\n"
        for name, cpus, spent in zip(names, shapes, seconds, strict=True)
    ]
    path = tmp_path / "order.yaml"
    path.write_text(IN_ORDER + "".join(lines))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 8})
    try:
        runs.run(RunRequest(path, str(tmp_path), "r", cluster.address), Console(file=io.StringIO(), width=200), connect=RayCluster)
    finally:
        cluster.shutdown()

    started = {row["model"]: row["started"] for row in Store(str(tmp_path)).resolve("r").rows().to_pylist()}
    overtaken_by = sum(started[name] < started[names[8]] for name in names[9:])
    assert overtaken_by <= 3  # by one, or by those that begin while two end at once; by all eleven if two wait in Ray


DEALT = """\
schema_version: 1
name: dealt
matrix: {dtype: [float32]}
execution: {device: cuda, sharing: auto, compile_helpers: 1}
suites:
  toy:
"""


@pytest.mark.slow
def test_the_longest_are_dealt_out_over_a_node_s_gpus(address_of_two, tmp_path, monkeypatch):
    """Without that, Ray would fill the first GPU with them."""
    names = [f"slow_pass.{number}" for number in range(6)]
    costs = {f"toy/{name}/float32/training/inductor": Cost(60.0 - 10 * number) for number, name in enumerate(names)}
    monkeypatch.setattr(runs, "recorded", lambda *_: costs)
    path = tmp_path / "dealt.yaml"
    path.write_text(DEALT + "".join(f"    - {{name: {name}, options: {{seconds: 2}}}}\n" for name in names))
    first = RunRequest(path, str(tmp_path), "r", address_of_two)
    again = replace(first, resume=True, rerun_tasks=frozenset(names[2:4]))

    def gpus(request):
        runs.run(request, Console(file=io.StringIO(), width=200), connect=RayCluster)
        rows = {row["model"]: row for row in Store(str(tmp_path)).resolve("r").rows().to_pylist()}
        return [json.loads(rows[name]["environment"])["CUDA_VISIBLE_DEVICES"] for name in names]

    assert gpus(first) in (["0", "1"] * 3, ["1", "0"] * 3)
    assert set(gpus(again)[2:4]) == {"0", "1"}  # no more places than are needed

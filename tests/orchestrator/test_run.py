"""A run against a cluster that changes while it is looked at."""

from __future__ import annotations

import dataclasses
import io

import pytest
from rich.console import Console

from orchestrator import run as runs
from orchestrator.errors import ExitCode, PreflightError
from orchestrator.manifest import load_manifest
from tasks.preload import modules_of
from tasks.probe import probe
from tasks.spec import ModelSpec
from tests.orchestrator.fakes import NODE, FakeCluster, task

TOYS = """\
schema_version: 1
name: toys
matrix: {dtype: [float32]}
execution: {device: cpu, num_cpus: 1}
suites:
  toy: [pass.1, pass.2]
"""


class Changing(FakeCluster):
    """``probe`` asks one node after the other; ``alive`` is what is left then."""

    def __init__(self, answers, alive):
        super().__init__()
        self.answers, self.alive = iter(answers), alive

    def nodes(self):
        return self.alive

    def probe(self):
        return next(self.answers)


def start(tmp_path, cluster):
    (tmp_path / "toys.yaml").write_text(TOYS)
    request = runs.RunRequest(tmp_path / "toys.yaml", str(tmp_path / "out"), "r")
    return runs.run(request, Console(file=io.StringIO()), connect=lambda _: cluster).ending.exit_code


def test_a_node_that_dies_while_it_is_asked_does_not_refuse_the_plan(tmp_path):
    assert start(tmp_path, Changing([{NODE.name: probe(), "dead": "the node does not exist any more"}], (NODE,))) is ExitCode.PASSED


def test_nodes_are_asked_again_if_all_of_them_were_replaced(tmp_path):
    assert start(tmp_path, Changing([{"dead": "gone"}, {NODE.name: probe()}], (NODE,))) is ExitCode.PASSED


def test_a_node_that_lives_and_cannot_answer_does(tmp_path):
    broken = dataclasses.replace(NODE, name="broken")
    with pytest.raises(PreflightError, match="broken cannot run this project's code: no module"):
        start(tmp_path, Changing([{NODE.name: probe(), "broken": "no module"}], (NODE, broken)))


def test_a_cluster_without_a_node_is_refused(tmp_path):
    with pytest.raises(PreflightError, match="no live node"):
        start(tmp_path, Changing([{}], ()))


def test_on_a_cluster_the_nodes_that_get_tasks_load_what_the_models_need(tmp_path):
    head = dataclasses.replace(NODE, name="head", num_cpus=0.0)
    cluster = FakeCluster()
    specs = [dataclasses.replace(task("m"), model=ModelSpec("timm", "m"))]
    runs._warm_up(cluster, [head, NODE], specs, Console(file=io.StringIO()))
    assert cluster.warmed == ((NODE.name,), modules_of(["timm"]))
    cluster.warmed = None
    runs._warm_up(cluster, [NODE], [task("toy")], Console(file=io.StringIO()))
    assert cluster.warmed is None


def test_a_node_that_cannot_warm_up_starts_cold(tmp_path):
    class Cold(FakeCluster):
        def warm_up(self, nodes, modules):
            return {NODE.name: "the disk"}

    console = Console(file=io.StringIO(), width=200)
    runs._warm_up(Cold(), [NODE], [dataclasses.replace(task("m"), model=ModelSpec("timm", "m"))], console)
    assert f"node {NODE.name} starts cold: the disk" in console.file.getvalue()


def test_a_head_that_takes_no_tasks_does_not_count_for_sharing(tmp_path):
    (tmp_path / "toys.yaml").write_text(TOYS.replace("num_cpus: 1", "sharing: auto, labels: {pool: nightly}"))
    loaded = load_manifest(tmp_path / "toys.yaml")
    head = dataclasses.replace(NODE, name="head", num_cpus=0.0, labels={"pool": "nightly"})
    small = dataclasses.replace(NODE, name="small", num_cpus=1.0)
    large = dataclasses.replace(NODE, name="large", num_cpus=8.0, labels={"pool": "nightly"})
    assert runs._sharing(loaded, "cpu", [head, small, large], {}).cores == 8.0

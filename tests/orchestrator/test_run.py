"""A run against a cluster that changes while it is looked at."""

from __future__ import annotations

import dataclasses
import io

import pytest
from rich.console import Console

from orchestrator import run as runs
from orchestrator.errors import ExitCode, PreflightError, RunLockedError
from orchestrator.files import LocalFiles
from orchestrator.lock import RunLock
from tasks.probe import probe
from tests.orchestrator.fakes import NODE, FakeCluster

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


def test_a_resume_waits_for_the_lock_of_a_driver_that_is_going(tmp_path, monkeypatch):
    start(tmp_path, Changing([{NODE.name: probe()}], (NODE,)))
    held = RunLock.acquire(LocalFiles(tmp_path / "out" / "r"))
    waits = []

    def wait(seconds):
        waits.append(seconds)
        if len(waits) == 3:
            held.release()

    request = runs.RunRequest(tmp_path / "toys.yaml", str(tmp_path / "out"), "r", resume=True)
    with pytest.raises(RunLockedError):
        runs.run(request, Console(file=io.StringIO()), connect=lambda _: Changing([{NODE.name: probe()}], (NODE,)))
    monkeypatch.setattr(runs.time, "sleep", wait)
    said = io.StringIO()
    request = dataclasses.replace(request, lock_wait_s=60.0)
    ended = runs.run(request, Console(file=said), connect=lambda _: Changing([{NODE.name: probe()}], (NODE,)))
    assert ended.ending.exit_code is ExitCode.PASSED
    assert len(waits) == 3
    assert said.getvalue().count("waiting up to 60 s") == 1


def test_the_nodes_of_a_cluster_that_can_work_read_their_libraries_first(tmp_path, caplog):
    head = dataclasses.replace(NODE, name="head", num_cpus=0.0)
    answers = [{NODE.name: probe(), "head": probe()}]
    for suites, address, expected in (
        ("toy: [pass]", "auto", []),
        ("ours: [{name: m, factory: 'a.b:c', batch_size: 1}], timm: [lcnet_050], toy: [pass]", "auto", [([NODE.name], ["ours", "timm"])]),
        ("timm: [lcnet_050]", None, []),
    ):
        cluster = Changing(list(answers), (NODE, head))
        (tmp_path / "toys.yaml").write_text(TOYS.replace("  toy: [pass.1, pass.2]", f"  {{{suites}}}"))
        request = runs.RunRequest(tmp_path / "toys.yaml", str(tmp_path / "out"), f"r{len(expected)}{address}", address)
        runs.run(request, Console(file=io.StringIO()), connect=lambda _, cluster=cluster: cluster)
        assert cluster.prefetched == expected
    assert "slow disk; its first tasks may take longer" in caplog.text

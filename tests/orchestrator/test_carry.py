"""What a run takes over from an earlier one: the rule alone, and ``sweep run --carry``."""

from __future__ import annotations

import dataclasses
import json
import sys

import pytest

from orchestrator import cli
from orchestrator import run as runs
from orchestrator.carry import Carriable, carriable
from orchestrator.errors import ExitCode
from orchestrator.nodes import NodeInfo
from orchestrator.store import Store
from orchestrator.verify import verify
from tasks.probe import Gpu, NodeProbe, code_version, probe
from tasks.spec import FailureClass, ResourceSpec, Status
from tests.orchestrator.fakes import NODE, FakeCluster
from tests.orchestrator.fakes import passed as passed_at_once
from tests.orchestrator.stored import a_run, a_task, failed, passed

CODE = code_version()
GPUS = (Gpu("NVIDIA H100", "GPU-1", 90, 80_000),)
PROBE = NodeProbe("host", "3.11.7", "v1", 2, {"torch": "2.13.0", "numpy": None}, "13.0", GPUS, "580.1")
GPU_NODE = NodeInfo("gpu:1", "1", 8.0, 1.0, 64_000.0)


@pytest.fixture
def found(tmp_path):
    """Judges one task, measured on an H100, against nodes as they are now."""
    task = dataclasses.replace(a_task(1, suite="timm"), resources=ResourceSpec("cuda", 1.0, 1.0))
    outcome = passed(task)
    versions = {"python": "3.11.7", "torch": "2.13.0+cu130", "cuda": "13.0", "driver": "580.1"}
    measured = dataclasses.replace(outcome.measurement, versions=versions, device="NVIDIA H100")
    run = a_run(Store(str(tmp_path)), [task])
    run.append([(task, dataclasses.replace(outcome, measurement=measured))])

    def judge(*probes, task=task, code=CODE, **changes):
        probes = probes or (dataclasses.replace(PROBE, **changes),)
        nodes = [dataclasses.replace(GPU_NODE, name=f"n{number}") for number in range(len(probes))]
        return carriable(run, [task], nodes, {node.name: probe for node, probe in zip(nodes, probes, strict=True)}, code)

    judge.task = task
    return judge


def test_what_passed_in_the_same_environment_is_taken_over(found):
    assert found() == Carriable((found.task.task_id,), {})


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"versions": {"torch": "2.14.0"}}, "torch 2.13.0+cu130, here 2.14.0"),
        ({"torch_cuda": "12.8"}, "cuda 13.0, here 12.8"),
        ({"python": "3.12.0"}, "python 3.11.7, here 3.12.0"),
        ({"driver": "590.0"}, "driver 580.1, here 590.0"),
        ({"gpus": (dataclasses.replace(GPUS[0], name="NVIDIA A100"),)}, "device NVIDIA H100, here NVIDIA A100"),
    ],
)
def test_another_environment_is_measured_again_and_named(found, changes, reason):
    assert found(**changes) == Carriable((), {reason: 1})


def test_every_node_that_could_run_the_task_has_to_match(found):
    other = dataclasses.replace(PROBE, versions={"torch": "2.14.0"})
    assert found(PROBE, other).task_ids == ()
    assert found(PROBE, PROBE).task_ids == (found.task.task_id,)


def test_another_task_or_code_is_measured_again(found):
    assert found(task=dataclasses.replace(found.task, digest="another")).refused == {"another digest": 1}
    assert found(code="another").refused == {"another version of this project's code": 1}


def test_what_failed_or_cannot_say_where_it_ran_is_measured_again(tmp_path):
    tasks = [dataclasses.replace(a_task(number, suite="timm"), resources=ResourceSpec("cuda", 1.0, 1.0)) for number in range(3)]
    run = a_run(Store(str(tmp_path)), tasks)
    lost = failed(tasks[1], status=Status.INFRA_ERROR, failure_class=FailureClass.NODE_LOST)
    run.append([(tasks[0], failed(tasks[0])), (tasks[1], lost), (tasks[2], passed(tasks[2]))])
    found = carriable(run, tasks, [GPU_NODE], {GPU_NODE.name: PROBE}, code_version())
    assert found == Carriable((), {"an environment that is not known": 1})


# --- through the command line -----------------------------------------------------------------------------------------------------

TOYS = """\
schema_version: 1
name: toys
matrix: {dtype: [float32]}
execution: {device: cpu, num_cpus: 1}
suites:
  toy: [pass.1, pass.2, %s]
"""


class Toys(FakeCluster):
    def probe(self):
        return {NODE.name: probe()}


@pytest.fixture
def sweep(tmp_path, monkeypatch, capsys):
    """The command line on a fake cluster; gives exit status, stdout, stderr and what was launched."""
    monkeypatch.chdir(tmp_path)
    plain_run = runs.run

    def run(*arguments):
        cluster = Toys()
        monkeypatch.setattr(runs, "run", lambda request, console: plain_run(request, console, connect=lambda _: cluster))
        monkeypatch.setattr(sys, "argv", ["sweep", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        return ended.value.code, captured.out, captured.err, [task_id.split("/")[1] for task_id, _ in cluster.launched]

    return run


def test_a_run_takes_over_what_has_not_changed_and_its_rows_say_so(sweep, tmp_path):
    (tmp_path / "old.yaml").write_text(TOYS % "pass.3")
    (tmp_path / "new.yaml").write_text(TOYS % "{name: pass.3, options: {eager_ms: 7.0}}")
    assert sweep("run", "old.yaml", "--run-id", "old")[0] == ExitCode.PASSED
    code, out, err, _ = sweep("plan", "new.yaml", "--results", "results", "--carry", "old", "--json")
    assert code == 0, err
    assert (code, json.loads(out)["reasons"]) == (0, {"changed": 1, "done": 2})
    code, _, err, launched = sweep("run", "new.yaml", "--run-id", "new", "--carry", "old")
    assert (code, launched) == (ExitCode.PASSED, ["pass.3"])
    assert "took over 2 result(s) of run old" in err
    assert "measured again: 1 with another digest" in err
    store = Store("results").resolve("new")
    rows = {row["model"]: row["carried_from"] for row in store.rows(("model", "carried_from")).to_pylist()}
    assert rows == {"pass.1": "old", "pass.2": "old", "pass.3": None}
    assert {violation.rule for violation in verify(store)} <= {"speedup"}  # the fake's rows have no numbers
    code, _, err, launched = sweep("run", "new.yaml", "--run-id", "new", "--carry", "old", "--resume")
    assert (code, launched) == (ExitCode.PASSED, [])
    assert "took over 0 result(s)" in err


def test_only_what_passed_is_taken_over(sweep, tmp_path, monkeypatch):
    (tmp_path / "toys.yaml").write_text(TOYS % "pass.3")

    def crash_once(task_id, attempt):
        from orchestrator.events import Ended

        outcome = passed_at_once(task_id, attempt)
        if "pass.3" in task_id:
            outcome = dataclasses.replace(outcome, status=Status.CRASH, failure_class=FailureClass.CRASH)
        return [Ended(0.0, task_id, attempt, outcome)]

    with monkeypatch.context() as crashing:
        crashing.setattr(Toys, "__init__", lambda self: FakeCluster.__init__(self, crash_once))
        assert sweep("run", "toys.yaml", "--run-id", "old")[0] == ExitCode.SOME_FAILED
    assert sweep("run", "toys.yaml", "--run-id", "new", "--carry", "old")[3] == ["pass.3"]


@pytest.mark.parametrize(("carry", "told"), [("nosuch", "there is no run 'nosuch'"), ("old", "cannot take over its own")])
def test_a_run_that_cannot_give_anything_is_refused(sweep, tmp_path, carry, told):
    (tmp_path / "toys.yaml").write_text(TOYS % "pass.3")
    sweep("run", "toys.yaml", "--run-id", "old")
    code, _, err, launched = sweep("run", "toys.yaml", "--run-id", "old", "--resume", "--carry", carry)
    assert (code, launched) == (ExitCode.USAGE, [])
    assert told in err
    assert sweep("plan", "toys.yaml", "--carry", "old")[0] == ExitCode.USAGE

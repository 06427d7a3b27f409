"""Scripts of ``sweep repro``, run as a user runs them: as a file, by a process of their own."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from orchestrator.errors import ExitCode
from orchestrator.store import Store
from tasks.spec import CompileSpec, FailureClass, Measurement, ModelSpec, Outcome, Phase, PrecisionSpec, ResourceSpec, Status, TaskSpec
from tests.orchestrator import stored
from tests.orchestrator.test_cli import sweep

INJECTED = "cpp.inject_relu_bug_TESTING_ONLY"  # Inductor's own switch for a wrong relu


def a_task(name="mlp", backend="aot_eager", **changes):
    spec = TaskSpec(
        task_id=f"factory/{name}/float32/training/{backend}",
        model=ModelSpec("factory", name, factory=f"tests.tasks.models:{name}"),
        mode="training",
        backend=backend,
        precision=PrecisionSpec("float32"),
        compile=CompileSpec(backend=backend),
        resources=ResourceSpec(threads=1),
    )
    return dataclasses.replace(spec, **changes)


def an_outcome(task, status=Status.PASS, **fields):
    measurement = Measurement(
        accuracy="pass", accuracy_tolerance=1e-3, accuracy_margin=0.9, reference="float64", versions={"torch": "2.0.0"}
    )
    failure_class = {Status.FAIL_COMPILE: FailureClass.COMPILER, Status.FAIL_ACCURACY: FailureClass.ACCURACY}.get(status)
    measurement = dataclasses.replace(measurement, **fields)
    return Outcome(task.task_id, 1, status, Phase.TIME, failure_class, None, measurement=measurement)


def stored_run(path, *outcomes):
    with stored.a_run(Store(str(path)), [task for task, _ in outcomes]) as run:
        run.append(outcomes)
    return str(path)


def script_of(path, task, outcome):
    return sweep("repro", task.task_id, "--results", stored_run(path / "results", (task, outcome)), "--output", str(path / "repro.py"))


def run(path, *arguments):
    return subprocess.run([sys.executable, str(path / "repro.py"), *arguments], capture_output=True, text=True, timeout=250)


class TestScript:
    @pytest.mark.parametrize(("dtype", "mode", "optimizer"), [("float32", "training", "adam"), ("amp", "inference", "none")])
    def test_a_step_that_is_right_agrees(self, tmp_path, dtype, mode, optimizer):
        task = a_task(precision=PrecisionSpec(dtype), mode=mode, optimizer=optimizer)
        assert script_of(tmp_path, task, an_outcome(task)).returncode == ExitCode.PASSED
        done = run(tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "values agree" in done.stdout
        assert ("gradient.4.weight" in done.stdout) is (mode == "training")
        assert "2.0.0" in done.stdout  # recorded, beside what is here

    def test_a_wrong_result_is_shown_worst_first(self, tmp_path):
        task = a_task("mlp", "tests.tasks.wrong")
        script_of(tmp_path, task, an_outcome(task, Status.FAIL_ACCURACY, accuracy="fail", accuracy_reason="3 of 19 values differ"))
        path = tmp_path / "repro.py"
        path.write_text(WRONG_BACKEND + path.read_text().replace('"""', "'''", 2).replace("from __future__ import annotations\n", ""))
        done = run(tmp_path)
        assert done.returncode == 1, done.stdout + done.stderr
        assert "# 3 of 19 values differ" in path.read_text()
        values = [line for line in done.stdout.splitlines() if ".weight" in line or "loss." in line]
        ratios = [float(line.split()[0]) for line in values]
        assert ratios == sorted(ratios, reverse=True)
        assert ratios[0] > 1

    def test_a_compiler_that_fails_shows_its_traceback(self, tmp_path):
        task = a_task(compile=CompileSpec(backend="aot_eager", fullgraph=True))
        script_of(tmp_path, task, an_outcome(task, Status.FAIL_COMPILE, accuracy=None))
        done = run(tmp_path)
        assert done.returncode == 1
        assert "Traceback" in done.stderr
        assert "backward" in done.stderr
        assert "compiled: fails" in done.stdout

    def test_a_device_that_is_not_there(self, tmp_path):
        task = a_task(resources=ResourceSpec(device="cuda"))
        script_of(tmp_path, task, an_outcome(task))
        done = run(tmp_path)
        assert done.returncode == 2
        assert "no CUDA device" in done.stderr


WRONG_BACKEND = """from __future__ import annotations
import torch

def wrong(graph, inputs):
    return lambda *values: tuple(value * 1.02 if value.is_floating_point() else value for value in graph(*values))

torch._dynamo.register_backend(wrong, name="tests.tasks.wrong")
"""

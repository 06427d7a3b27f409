"""Faults of a compiler, found by a worker as a sweep starts it: in a process of its own, with nothing in it replaced."""

from __future__ import annotations

import pytest

from tasks.spec import CompileSpec, FailureClass, MeasureSpec, ModelSpec, PrecisionSpec, ResourceSpec, Status, TaskSpec
from tasks.supervisor import Finished, supervise
from tests.tasks.processes_fixtures import attempt

QUICK = MeasureSpec(half_width=10.0, min_pairs=7, max_pairs=7, max_time_s=2.0, block_iterations=1, warmup_max_s=0.2)


def judged(fault, mode):
    model = ModelSpec("factory", "faulty", factory="tests.tasks.faulty_models:build", options={"fault": fault})
    task = TaskSpec(
        task_id=f"factory/faulty/{mode}",
        model=model,
        mode=mode,
        backend="aot_eager",
        precision=PrecisionSpec("float32"),
        compile=CompileSpec(backend="aot_eager"),
        measure=QUICK,
        resources=ResourceSpec(threads=1),
        optimizer="sgd" if fault == "skipped step" else "none",
    )
    *_, last = supervise(task, attempt())
    assert isinstance(last, Finished)
    return last.outcome


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "mode", "tensor"),
    [
        ("wrong gradient", "training", "gradient.layer.weight"),
        ("two percent off", "training", ""),  # the loss, or one of the gradients
        ("stale buffer", "training", "buffer.mean"),
        ("skipped step", "training", "parameter.layer."),
        ("one nan", "inference", "output"),
        ("another dtype", "inference", "output"),
    ],
)
def test_a_planted_fault_is_found(node_directory, fault, mode, tensor):
    outcome = judged(fault, mode)
    found = outcome.measurement
    assert (outcome.status, outcome.failure_class, found.accuracy) == (Status.FAIL_ACCURACY, FailureClass.ACCURACY, "fail"), outcome
    assert found.accuracy_tensor.startswith(tensor)
    assert found.accuracy_margin < 0
    assert found.speedup is not None


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["training", "inference"])
def test_without_a_fault_it_passes(node_directory, mode):
    outcome = judged("none", mode)
    assert (outcome.status, outcome.measurement.accuracy) == (Status.PASS, "pass"), outcome

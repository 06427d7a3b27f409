"""A worker in a process of its own, with nothing replaced: how it ends, what faults it finds; and, in this one, where its frames lie."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tasks import execute, worker
from tasks.channel import Channel
from tasks.frames import ROOM_BYTES
from tasks.spec import (
    CompileSpec,
    FailureClass,
    MeasureSpec,
    ModelSpec,
    PrecisionSpec,
    ResourceSpec,
    Status,
    TaskSpec,
    WorkerResult,
    decode,
    encode,
)
from tasks.supervisor import Finished, supervise
from tests.tasks.processes_fixtures import attempt

QUICK = MeasureSpec(half_width=10.0, min_pairs=7, max_pairs=7, max_time_s=2.0, block_iterations=1, warmup_max_s=0.2)

ENDS = """
import os, runpy, sys

class Last:
    def __del__(self):
        os.write(1, b"taken apart")

last = Last()
runpy.run_module("tasks.worker", run_name="__main__")
"""


def test_it_leaves_its_result_and_takes_nothing_apart(tmp_path):
    spec, out = tmp_path / "spec.json", tmp_path / "out.json"
    task = TaskSpec("toy/pass", ModelSpec("toy", "pass"), mode="inference", backend="toy", precision=PrecisionSpec("float32"))
    spec.write_text(json.dumps(encode(task)))
    done = subprocess.run(
        [sys.executable, "-c", ENDS, spec, out], cwd=Path(__file__).parent.parent.parent, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert decode(WorkerResult, json.loads(out.read_text())).status is Status.PASS


def test_frames_above_it_have_room(monkeypatch):
    task = TaskSpec("timm/m", ModelSpec("timm", "m"), mode="inference", backend="inductor", precision=PrecisionSpec("float32"))

    def claimed_below(*_):
        frame, most = sys._getframe(), 0
        while frame is not None:
            frame, most = frame.f_back, max(most, frame.f_code.co_stacksize)
        return most

    monkeypatch.setattr(execute, "execute", claimed_below)
    assert worker.run(task, Channel(None), Path()) * 8 > ROOM_BYTES


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

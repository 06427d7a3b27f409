"""What a survey answers: facts from fake builds, real eager steps under a lock, and nothing else on its stdout."""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
import threading
import types
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from tasks.spec import ModelSpec, PrecisionSpec, TaskSpec, encode
from tasks.suites import survey
from tasks.suites.benchmark import Benchmark, UnsupportedModelError, mean_of_outputs
from tasks.suites.torchvision_compat import DETECTION_FIDELITY

ROOT = Path(__file__).parents[3]
LENNARD_JONES = ModelSpec("torchbench", "lennard_jones", batch_size=3)


class FailsInHalfPrecision(nn.Linear):
    def forward(self, x):
        if torch.is_autocast_enabled("cpu"):
            raise RuntimeError("no such kernel")
        return super().forward(x)


@pytest.fixture
def factories(monkeypatch):
    """A module of factories. ``built`` keeps the types of the weights that were made, ``refused`` what fake tensors could not do."""
    module = types.ModuleType("factories_of_a_survey")
    module.built = []

    def linear(kind=nn.Linear):
        layer = kind(4, 2)
        module.built.append(type(layer.weight.data))
        return layer, (torch.ones(5, 4),), None

    def needs_numbers(_):
        if torch.rand(1).item() > 2:
            raise AssertionError
        return linear()

    def unsupported(_):
        module.built.append("asked")
        raise UnsupportedModelError("not here")

    def failing(_):
        raise RuntimeError("broken")

    module.plain = lambda _: linear()
    module.half = lambda _: linear(FailsInHalfPrecision)
    module.needs_numbers, module.unsupported, module.failing = needs_numbers, unsupported, failing
    module.infinite = lambda _: (nn.Linear(4, 2), (torch.full((5, 4), torch.inf),), None)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


def own(name):
    return ModelSpec("mine", "m", factory=f"factories_of_a_survey:{name}")


def check(model, lock, mode="training", dtypes=("float32", "amp"), tell=lambda _: None):
    return survey.check([TaskSpec(f"x/{dtype}", model, mode, "eager", PrecisionSpec(dtype)) for dtype in dtypes], lock, tell)


@pytest.fixture
def lock(tmp_path):
    return tmp_path / "lock"


def test_a_model_is_described_at_the_asked_size():
    assert survey.describe(LENNARD_JONES, "inference") == {
        "parameters": 865,
        "source": "rebuilt",
        "fidelity": None,
        "batch_size": 3,
        "inputs": "float32[3, 1]",
    }


def test_describing_takes_no_memory_for_weights(factories):
    survey.describe(own("plain"), "training")
    assert factories.built == [FakeTensor]


def test_a_model_that_needs_real_numbers_is_built_for_real(factories):
    assert survey.describe(own("needs_numbers"), "training")["parameters"] == 10
    assert factories.built == [torch.Tensor]


def test_what_is_unsupported_is_not_tried_twice(factories):
    assert survey.describe(own("unsupported"), "training") == {"status": "unsupported", "error": "not here"}
    assert factories.built == ["asked"]


def test_what_cannot_be_built_says_why(factories):
    described = survey.describe(own("failing"), "training")
    assert described["status"] == "fail_eager"
    assert "RuntimeError: broken" in described["error"]


@pytest.mark.parametrize(
    ("fidelity", "kept"), [(None, None), ("random images", "random images"), (f"random images; {DETECTION_FIDELITY}", "random images")]
)
def test_what_this_machine_lacks_is_no_fact_of_the_model(fidelity, kept):
    benchmark = Benchmark(nn.Identity(), (torch.ones(1),), {}, mean_of_outputs, 1, "library", fidelity)
    assert survey.facts(benchmark)["fidelity"] == kept


@pytest.mark.parametrize("mode", ["training", "inference"])
def test_a_check_steps_in_each_dtype(lock, mode):
    found = check(LENNARD_JONES, lock, mode)

    assert (found["parameters"], found["batch_size"], found["inputs"]) == (865, 3, "float32[3, 1]")
    for dtype in ("float32", "amp"):
        assert found[dtype]["status"] == "pass"
        assert 0 < found[dtype]["eager_ms"] < 1e4
        assert found[dtype]["finite"]
        assert 0 < found[dtype]["steps"] <= survey.MAX_STEPS


def test_one_dtype_can_fail_alone(factories, lock):
    found = check(own("half"), lock)

    assert found["float32"]["status"] == "pass"
    assert found["amp"]["status"] == "fail_eager"
    assert "no such kernel" in found["amp"]["error"]


def test_a_build_that_fails_is_the_whole_answer(factories, lock):
    assert check(own("unsupported"), lock) == {"status": "unsupported", "error": "not here"}


def test_results_that_are_not_finite_are_noticed(factories, lock):
    assert check(own("infinite"), lock, dtypes=["float32"])["float32"]["finite"] is False


def test_steps_wait_for_the_lock_and_builds_do_not(lock):
    phases, waiting = [], threading.Event()

    def tell(line):
        phases.append(line["phase"])
        if line["phase"] == "wait":
            waiting.set()

    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        thread = threading.Thread(target=check, args=(LENNARD_JONES, lock), kwargs={"tell": tell})
        thread.start()
        assert waiting.wait(60)
        thread.join(0.3)
        assert phases == ["build", "wait"]
    thread.join()
    assert phases == ["build", "wait", "float32", "amp"]


def test_a_device_that_is_not_there_is_an_answer(lock):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    task = TaskSpec("x", LENNARD_JONES, "training", "eager", PrecisionSpec("float32"))
    on_cuda = replace(task, resources=replace(task.resources, device="cuda"))
    assert survey.check([on_cuda], lock, lambda _: None)["status"] == "infra_error"


def test_the_process_answers_line_by_line_whatever_models_print(tmp_path):
    (tmp_path / "noisy.py").write_text(
        "import torch\ndef build(_):\n    print('noise')\n    return torch.nn.Linear(4, 2), (torch.ones(5, 4),), None\n"
    )
    noisy = encode(ModelSpec("mine", "m", factory="noisy:build"))
    task = encode(TaskSpec("x", ModelSpec("mine", "m", factory="noisy:build"), "inference", "eager", PrecisionSpec("amp")))
    questions = [{"describe": {"training": noisy}}, {"check": [task], "lock": str(tmp_path / "lock")}]
    done = subprocess.run(
        [sys.executable, "-m", "tasks.suites.survey"],
        input="".join(json.dumps(question) + "\n" for question in questions),
        env={"PYTHONPATH": f"{ROOT}:{tmp_path}", "PATH": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )
    described, *phases, checked = [json.loads(line) for line in done.stdout.splitlines()]

    assert done.returncode == 0, done.stderr
    assert "noise" in done.stderr
    assert described["training"]["parameters"] == 10
    assert phases == [{"phase": "build"}, {"phase": "wait"}, {"phase": "amp"}]
    assert checked["amp"]["status"] == "pass"

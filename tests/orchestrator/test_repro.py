"""Scripts of ``sweep repro``, run as a user runs them: as a file, by a process of their own."""

from __future__ import annotations

import dataclasses
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator import minify, repro
from orchestrator.errors import ExitCode, UsageError
from orchestrator.store import Store
from tasks import judgement
from tasks.spec import CompileSpec, FailureClass, Measurement, ModelSpec, Outcome, Phase, PrecisionSpec, ResourceSpec, Status, TaskSpec
from tests.orchestrator import stored
from tests.orchestrator.test_cli import sweep
from tests.tasks import models

INJECTED = "cpp.inject_relu_bug_TESTING_ONLY"  # Inductor's own switch for a wrong relu


FLOAT32 = PrecisionSpec("float32")


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
    """Run the script with this checkout on its path: the models and backends of the tests are not installed."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, str(path / "repro.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=250, env=environment)


def with_backend(path, source):
    script = path / "repro.py"
    script.write_text(source + script.read_text().replace('"""', "'''", 2).replace("from __future__ import annotations\n", ""))


class TestScript:
    @pytest.mark.parametrize(
        ("dtype", "mode", "optimizer"),
        [("float32", "training", "adam"), pytest.param("amp", "inference", "none", marks=pytest.mark.slow)],
    )
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
        with_backend(tmp_path, WRONG_BACKEND)
        done = run(tmp_path)
        assert done.returncode == 1, done.stdout + done.stderr
        assert "# 3 of 19 values differ" in (tmp_path / "repro.py").read_text()
        assert "roundings" not in done.stdout
        values = [line for line in done.stdout.splitlines() if ".weight" in line or "loss." in line]
        ratios = [float(line.split()[0]) for line in values]
        assert ratios == sorted(ratios, reverse=True)
        assert ratios[0] > 1

    @pytest.mark.parametrize("optimizer", [pytest.param("none", marks=pytest.mark.slow), "sgd"])
    def test_what_roundings_of_the_weights_do_is_no_fault(self, tmp_path, optimizer):
        task = a_task("fitted", "tests.tasks.rounding", optimizer=optimizer)
        script_of(tmp_path, task, an_outcome(task))
        with_backend(tmp_path, ROUNDING_BACKEND)
        script = tmp_path / "repro.py"
        script.write_text(script.read_text().replace("TF32_EPSILON if tf32 else 0.0", "TF32_EPSILON"))  # as on a GPU
        done = run(tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "values within what roundings of the weights do to them (" in done.stdout

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

    def test_a_task_without_a_row_has_a_script(self, tmp_path):
        text = repro.script(a_task(), None, "run-1")
        assert "has no row" in text
        assert f"'tolerance': {repro.UNRECORDED_TOLERANCE}" in text
        compile(text, "repro.py", "exec")

    def test_without_a_file_the_script_goes_to_stdout(self, tmp_path):
        task = a_task()
        done = sweep("repro", "factory/mlp", "--results", stored_run(tmp_path, (task, an_outcome(task))))
        assert done.returncode == ExitCode.PASSED
        compile(done.stdout, "repro.py", "exec")
        assert "import ray" not in done.stdout
        assert "orchestrator" not in done.stdout

    def test_an_unknown_task_is_told_with_close_ones(self, tmp_path):
        task = a_task()
        done = sweep("repro", "factory/mpl/float32", "--results", stored_run(tmp_path, (task, an_outcome(task))))
        assert (done.returncode, done.stdout) == (ExitCode.USAGE, "")
        assert f"did you mean {task.task_id}?" in done.stderr

    def test_a_toy_has_nothing_to_reproduce(self):
        with pytest.raises(UsageError, match="is a toy"):
            repro.script(stored.a_task(1), None, "run-1")


class TestRules:
    """A script judges as the task did."""

    @pytest.mark.parametrize("tolerance", [1e-3, 1e-2, 5e-2])
    @pytest.mark.parametrize("device", ["cpu", "cuda"])
    @pytest.mark.parametrize("tf32", [True, False])
    @pytest.mark.parametrize(("dtype", "autocast"), [("float32", None), ("amp", None), ("amp", "bfloat16")])
    def test_by_the_same_rule(self, dtype, autocast, tf32, device, tolerance):
        import torch

        from tasks.accuracy import rule_for
        from tasks.step import Workload, autocast_dtype

        place, precision = torch.device(device), PrecisionSpec(dtype, tf32, autocast)
        workload = Workload(torch.nn.Identity(), (), {}, None, True, autocast_dtype(precision, place), None, None)
        assert self.settings(precision=precision, tolerance=tolerance).rule(place) == rule_for(tolerance, workload, precision, place)

    @pytest.mark.parametrize("recorded", ["none", "negligible", "decisive", None])
    def test_with_the_random_numbers_that_the_task_found(self, recorded):
        assert self.settings(random_numbers=recorded).random_numbers == recorded

    @pytest.mark.parametrize(
        ("name", "expected", "recorded"),
        [("mlp", "none", False), ("shaken", "negligible", False), ("wavering", "decisive", False), ("noisy", "decisive", True)],
    )
    def test_and_finds_out_what_is_not_recorded(self, monkeypatch, name, expected, recorded):
        import torch

        from tasks import reproduction

        seen = []
        original = reproduction._Arms.run
        monkeypatch.setattr(
            reproduction._Arms,
            "run",
            lambda arms, name, *rest, **more: seen.append((arms, name, more)) or original(arms, name, *rest, **more),
        )
        monkeypatch.setattr(sys, "argv", ["repro.py"])

        def build(device):
            request = type("Request", (), {"batch_size": None, "training": True})
            made = getattr(models, name)(request)
            return made.module, made.args, made.kwargs, made.loss

        settings = self.settings(random_numbers=expected if recorded else None)
        assert reproduction.reproduce(build, settings) == reproduction.EXIT_SAME
        assert seen[0][0].random == expected
        assert [more["seed_offset"] for _, arm, more in seen if arm == "eager, again"] == [int(expected == "negligible")]
        torch._dynamo.reset()

    @pytest.mark.parametrize(("name", "told"), [("augmented", False), ("noisy", True)])
    def test_and_takes_a_reference_by_what_it_draws(self, monkeypatch, capsys, name, told):
        """Not by gradients, which underflow in float16."""
        from tasks import reproduction

        monkeypatch.setattr(sys, "argv", ["repro.py"])

        def build(device):
            made = getattr(models, name)(type("Request", (), {"training": True}))
            return made.module, made.args, made.kwargs, made.loss

        settings = self.settings(PrecisionSpec("amp", autocast_dtype="float16"), random_numbers="decisive")
        assert reproduction.reproduce(build, settings) == reproduction.EXIT_SAME
        assert ("draws other random numbers than eager" in capsys.readouterr().out) is told

    def settings(self, precision=FLOAT32, tolerance=1e-3, **row):
        from tasks.reproduction import Settings

        row = dict.fromkeys(repro.COLUMNS) | {"accuracy_tolerance": tolerance} | row
        return Settings(**repro._settings(a_task(precision=precision), row))


LIBRARY_MODELS = [
    ("timm", "lcnet_050", 2),
    ("timm", "resmlp_12_224", 1),
    ("torchbench", "squeezenet1_1", 2),
    ("huggingface", "MobileBertForMaskedLM", 1),
]


class TestBuilding:
    @pytest.mark.models
    @pytest.mark.parametrize("mode", ["training", "inference"])
    @pytest.mark.parametrize(("suite", "name", "batch_size"), LIBRARY_MODELS)
    def test_a_script_builds_what_the_suite_builds(self, tmp_path, monkeypatch, suite, name, batch_size, mode):
        import torch

        from tasks.suites.loader import load

        model = ModelSpec(suite, name, batch_size=batch_size)
        task = a_task(model=model, mode=mode)
        made = load(model, mode, torch.device("cpu"), task.seed)
        (tmp_path / "script_of_a_task.py").write_text(repro.script(task, None, "run-1"))
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "script_of_a_task", raising=False)
        script = importlib.import_module("script_of_a_task")
        module, args, kwargs, loss = script._seeded(script.build, task.seed, torch.device("cpu"))
        ours, theirs = dict(module.state_dict()), dict(made.module.state_dict())
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
        assert all(torch.equal(one, other) for one, other in zip(args, made.args, strict=True))
        assert all(torch.equal(value, made.kwargs[key]) for key, value in kwargs.items())
        assert module.training is made.module.training
        assert loss.__name__ == made.loss.__name__  # by which judgement knows a loss whose digits may cancel
        with torch.no_grad():
            torch.manual_seed(0)
            ours = loss(module(*args, **kwargs))
            torch.manual_seed(0)
            assert torch.equal(ours, made.loss(made.module(*made.args, **made.kwargs)))

    @pytest.mark.parametrize(("name", "loss"), [("lcnet_050", "mean_of_outputs"), ("mnasnet_100", "scaled_mean_of_outputs")])
    def test_a_loss_has_the_name_by_which_judgement_knows_it(self, name, loss):
        text = repro.script(a_task(model=ModelSpec("timm", name, batch_size=2)), None, "run-1")
        assert f"def {loss}(outputs):" in text
        assert loss in judgement.MEANS

    @pytest.mark.parametrize("suite", ["timm", "torchbench", "huggingface"])
    def test_only_what_a_library_has_whole_is_built_without_the_project(self, suite):
        name = {"timm": "lcnet_050", "torchbench": "resnet18", "huggingface": "BertForMaskedLM"}[suite]
        text = repro.script(a_task(model=ModelSpec(suite, name)), None, "run-1")
        head = text.split('"""')[1]
        assert ("nothing of this project" in head) is (suite != "huggingface")
        assert ("from tasks" in text) is (suite == "huggingface")
        assert "from tasks" in repro.script(a_task(model=ModelSpec(suite, name, options={"image_size": 64})), None, "run-1")


class TestMinify:
    @pytest.mark.slow
    @pytest.mark.timeout(1200)
    @pytest.mark.parametrize(("planted", "status"), [("accuracy", Status.FAIL_ACCURACY), ("compile_error", Status.FAIL_COMPILE)])
    def test_a_fault_of_inductor_becomes_a_single_call(self, tmp_path, planted, status):
        task = a_task("clipped", "inductor", compile=CompileSpec(options={INJECTED: planted}), mode="inference")
        results = stored_run(tmp_path / "results", (task, an_outcome(task, status, accuracy="fail")))
        done = sweep("repro", "clipped", "--results", results, "--minify", "--output", str(tmp_path / "out"), timeout=900)
        assert done.returncode == ExitCode.PASSED, done.stdout + done.stderr
        assert done.stdout.startswith(f"{tmp_path / 'out' / 'repro.py'}: a graph of 1 call ")
        assert "aten.relu.default" in (tmp_path / "out" / "repro.py").read_text()

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "no graph of the task has other results"),
            ("raise SystemExit(1)", "outside of the graphs"),
            ("import os; os.kill(os.getpid(), 9)", "died by SIGKILL"),
        ],
    )
    def test_nothing_to_minify_is_said(self, tmp_path, text, message):
        found = minify.minify(text, tmp_path / "out", backend="inductor", accuracy=True)
        assert found.script is None
        assert message in found.message
        assert str(tmp_path / "out" / "task.log") in found.message

    @pytest.mark.parametrize(
        ("left", "message"), [("raise SystemExit(1)", "a graph of 0 calls"), ("", "does not fail"), (None, "left nothing")]
    )
    def test_what_the_launcher_leaves_has_to_fail(self, tmp_path, left, message):
        """The folder, the order of the three processes and their environment, without torch."""
        launcher = "" if left is None else f"open('repro.py', 'w').write({left!r})"
        task = (
            "import os, pathlib\n"
            "assert (os.environ['TORCHDYNAMO_REPRO_LEVEL'], os.environ['TORCHDYNAMO_REPRO_AFTER']) == ('2', 'dynamo')\n"
            "place = pathlib.Path(os.environ['TORCH_COMPILE_DEBUG_DIR']) / 'deep'\nplace.mkdir()\n"
            f"(place / 'minifier_launcher.py').write_text({launcher!r})"
        )
        found = minify.minify(task, tmp_path / "out", backend="aot_eager", accuracy=False)
        assert message in found.message
        assert (found.script is not None) is (message == "a graph of 0 calls")


WRONG_BACKEND = """from __future__ import annotations
import torch

def wrong(graph, inputs):
    return lambda *values: tuple(value * 1.02 if value.is_floating_point() else value for value in graph(*values))

torch._dynamo.register_backend(wrong, name="tests.tasks.wrong")
"""

ROUNDING_BACKEND = """from __future__ import annotations
import torch

def rounded(value):
    return value + (value.half().float() - value).detach() if value.requires_grad else value

def rounding(graph, inputs):
    return lambda *values: graph(*map(rounded, values))

torch._dynamo.register_backend(rounding, name="tests.tasks.rounding")
"""

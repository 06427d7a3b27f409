"""Every failure is a result: which status, of which class, in which phase."""

from __future__ import annotations

import pytest
import torch

from tasks import compilation, execute, hardware, stepper
from tasks.spec import (
    CompileSpec,
    FailureClass,
    ModelSpec,
    Phase,
    ResourceSpec,
    Status,
)
from tests.tasks import models
from tests.tasks.execute.harness import run


class TestFailures:
    def test_a_model_that_cannot_be_built(self):
        result = run("mlp", model=ModelSpec("factory", "x", factory="tests.tasks.models:no_such"))
        assert (result.status, result.phase, result.failure_class) == (Status.FAIL_EAGER, Phase.BUILD, FailureClass.MODEL)
        assert "no_such" in result.error

    def test_a_package_that_is_missing(self):
        result = run("mlp", model=ModelSpec("factory", "x", factory="no_such_package:build"))
        assert (result.status, result.failure_class) == (Status.UNSUPPORTED, FailureClass.UNSUPPORTED)
        assert "pip install no_such_package" in result.error

    def test_a_model_that_fails_in_eager_mode(self, capsys):
        result = run("failing")
        assert (result.status, result.phase, result.failure_class) == (Status.FAIL_EAGER, Phase.EAGER, FailureClass.MODEL)
        assert result.error.startswith("ValueError: no such axis\nat tests/tasks/models.py:")
        assert "Traceback" in capsys.readouterr().err
        assert (result.measurement.batch_size, result.measurement.speedup) == (4, None)

    def test_a_device_that_is_too_small(self):
        result = run("exhausting")
        assert (result.status, result.phase, result.failure_class) == (Status.OOM, Phase.EAGER, FailureClass.DEVICE_OOM)

    def test_a_compiler_that_fails(self):
        result = run("mlp", compile=CompileSpec(backend="unable"))
        assert (result.status, result.phase, result.failure_class) == (Status.FAIL_COMPILE, Phase.COMPILE, FailureClass.COMPILER)
        assert "NotImplementedError: cannot do it" in result.error
        assert "TORCHDYNAMO_VERBOSE" not in result.error

    def test_a_compiler_that_fails_and_may(self):
        result = run("mlp", compile=CompileSpec(backend="unable", suppress_errors=True))
        assert (result.status, result.measurement.fell_back) == (Status.PASS, True)

    def test_a_backend_that_does_not_exist(self):
        result = run("mlp", compile=CompileSpec(backend="no_such"))
        assert (result.status, result.phase) == (Status.FAIL_COMPILE, Phase.COMPILE)
        assert "no_such" in result.error

    def test_options_that_exclude_each_other(self):
        result = run("mlp", compile=CompileSpec(mode="default", options={"max_autotune": True}))
        assert result.status is Status.FAIL_COMPILE

    def test_a_graph_that_must_be_whole_and_is_not(self):
        result = run("mlp", compile=CompileSpec(backend="aot_eager", fullgraph=True))
        assert result.status is Status.FAIL_COMPILE
        assert "backward" in result.error

    @torch._dynamo.config.patch(recompile_limit=2)
    def test_a_model_that_compiles_anew_at_every_call_is_no_compiled_run(self):
        result = run("counting", mode="inference")
        assert (result.status, result.phase, result.failure_class) == (Status.FAIL_COMPILE, Phase.COMPILE, FailureClass.COMPILER)
        assert "recompile limit exceeded" in result.error

    @torch._dynamo.config.patch(recompile_limit=2)
    def test_unless_it_may_fall_back(self):
        result = run("counting", mode="inference", compile=CompileSpec(backend="aot_eager", suppress_errors=True))
        found = result.measurement
        assert (result.status, found.recompiles, found.fell_back) == (Status.PASS, torch._dynamo.config.recompile_limit, True)

    def test_a_model_of_which_nothing_can_be_compiled_is_no_compiled_run(self):
        result = run("breaking", mode="inference")
        assert (result.status, result.phase, result.failure_class) == (Status.FAIL_COMPILE, Phase.COMPILE, FailureClass.COMPILER)
        assert "all of it runs in eager mode: Call to `torch._dynamo.graph_break()`" in result.error

    def test_a_frame_that_cannot_be_compiled_is_told_and_no_failure(self):
        result = run("partly_breaking", mode="inference")
        found = result.measurement
        assert (result.status, found.fell_back, found.graphs > 0, found.graph_breaks > 0) == (Status.PASS, True, True, True)

    def test_a_recompile_that_never_ends_fails(self, monkeypatch):
        def compile_step(step, spec, **more):
            inner = original(step, spec, **more)

            def one_step():
                if torch._dynamo.eval_frame._stance.stance == "fail_on_recompile":
                    raise RuntimeError(
                        "Detected recompile when torch.compile stance is 'fail_on_recompile'. filename: 'a.py'\n  - 0/0: n == 1"
                    )
                return inner()

            return one_step

        original = compilation.compile_step
        monkeypatch.setattr(compilation, "compile_step", compile_step)
        result = run("mlp")
        assert (result.status, result.phase, result.failure_class) == (Status.FAIL_RUN, Phase.TIME, FailureClass.COMPILER)
        assert "0/0: n == 1" in result.error

    def test_a_loss_that_is_not_a_number_is_reported(self, uncompiled):
        result = run("nan_loss")
        found = result.measurement
        assert (result.status, found.accuracy) == (Status.PASS, "skipped")
        assert "nothing finite to compare" in found.accuracy_reason
        assert "loss is nan" in found.accuracy_reason
        assert found.speedup is not None

    def test_gradients_that_are_no_numbers_are_no_pass(self, uncompiled):
        found = run("rooted").measurement
        assert (found.accuracy, found.speedup is not None) == ("skipped", True)
        assert "no gradient holds a number" in found.accuracy_reason
        assert "are not finite, and were left out" in found.accuracy_reason

    def test_cuda_that_is_not_there(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        result = run("mlp", resources=ResourceSpec(device="cuda"))
        assert (result.status, result.failure_class) == (Status.INFRA_ERROR, FailureClass.DEVICE)

    def test_a_machine_that_is_never_fit(self, monkeypatch, uncompiled):
        monkeypatch.setattr(hardware.HostMachine, "fault", lambda self: "the machine throttled")
        result = run("mlp")
        assert (result.status, result.failure_class, result.measurement.quality) == (
            Status.INFRA_ERROR,
            FailureClass.DEVICE,
            "contaminated",
        )
        assert "throttled" in result.error


class Switching(torch.nn.Module):
    """Another function, and so a guard that fails, once it is told to be."""

    def __init__(self):
        super().__init__()
        self.layer, self.late = torch.nn.Linear(8, 8), 0

    def forward(self, inputs):
        return self.layer(inputs) * (1.0 + self.late)


BEFORE, BETWEEN = "before the warm-up", "between pairs"


class TestCompiledWhileTiming:
    """What is compiled in the time phase is judged, too: its code is another than the one that was verified."""

    GRAPHS = 1  # of the step

    def run(self, monkeypatch, moment, factor, again=lambda module: None):
        """The backend's graphs are wrong by ``factor`` from the second on; ``again`` is called whenever a verdict is sought later."""
        module, graphs, checks = Switching(), [], []

        def backend(graph, inputs):
            graphs.append(graph)
            wrong = factor if len(graphs) > self.GRAPHS else 1.0
            return lambda *values: [value * wrong for value in graph(*values)]

        def switch(execution, *rest):
            if moment == BEFORE:
                module.late = 1
            return original_time(execution, *rest)

        def visit(stepper, *rest):
            if stepper.blocks > 6:
                module.late = 1
            return original_visit(stepper, *rest)

        def check(*arguments, **more):
            checks.append(1)
            if len(checks) > 1:
                again(module)
            return original_check(*arguments, **more)

        original_time, original_visit, original_check = execute._Execution._time, stepper.Stepper.visit, execute.accuracy.check
        monkeypatch.setattr(models, "switching", lambda request: models.benchmark(module, (torch.randn(16, 8),)), raising=False)
        monkeypatch.setattr(execute._Execution, "_time", switch)
        monkeypatch.setattr(stepper.Stepper, "visit", visit)
        monkeypatch.setattr(execute.accuracy, "check", check)
        result = run("switching", mode="inference", compile=CompileSpec(backend=backend))
        assert len(graphs) > self.GRAPHS
        return result

    @pytest.mark.parametrize("moment", [BEFORE, BETWEEN])
    def test_wrong_code_is_found(self, monkeypatch, moment):
        result = self.run(monkeypatch, moment, 1.5)
        assert (result.status, result.phase, result.measurement.accuracy) == (Status.FAIL_ACCURACY, Phase.TIME, "fail")
        assert "judged again" in result.measurement.accuracy_reason

    def test_right_code_passes_and_the_row_says_that_it_was_judged_again(self, monkeypatch):
        result = self.run(monkeypatch, BETWEEN, 1.0)
        found = result.measurement
        assert (result.status, found.accuracy) == (Status.PASS, "pass")
        assert "compiled again in the time phase, and judged again" in found.accuracy_reason
        assert "recompiled: " in found.machine["quality_reason"]

    def test_code_that_never_settles_is_not_judged(self, monkeypatch):
        def again(module):
            module.late += 1

        result = self.run(monkeypatch, BEFORE, 1.0, again)
        found = result.measurement
        assert (result.status, found.accuracy, found.accuracy_margin) == (Status.PASS, "skipped", None)
        assert found.quality in ("recompiled", "contaminated")  # the latter where other processes are at work
        assert execute.NEVER_SETTLES in found.accuracy_reason
        assert execute.NEVER_SETTLES in found.machine["quality_reason"]


@torch._dynamo.register_backend(name="unable")
def _unable(graph, inputs):
    raise NotImplementedError("cannot do it")

from __future__ import annotations

import contextlib
import dataclasses
import math

import pytest
import torch

from tasks import compilation, execute, hardware, headroom, stepper
from tasks.channel import Channel
from tasks.spec import (
    AccuracySpec,
    CompileSpec,
    DeadlineSpec,
    FailureClass,
    MeasureSpec,
    ModelSpec,
    Phase,
    PrecisionSpec,
    ResourceSpec,
    Status,
    TaskSpec,
    WorkerResult,
    decode,
    encode,
)
from tests.tasks import models

QUICK = MeasureSpec(half_width=10.0, min_pairs=7, max_pairs=7, max_time_s=2.0, block_iterations=2, warmup_max_s=0.2)


class Listener(Channel):
    """A channel that writes down what it is told."""

    def __init__(self):
        super().__init__(None)
        self.heard = []

    def phase(self, phase):
        self.heard.append(phase.value)

    def _send(self, message):
        self.heard += [f"{name} {what}" for name, what in message.items() if name in ("lease", "device")]


@pytest.fixture(autouse=True)
def tidy(monkeypatch):
    """Blocks of two iterations, no garbage collected before each, and no state of the compiler left behind."""
    monkeypatch.setattr("tasks.measure.quiet_collector", contextlib.nullcontext)
    monkeypatch.setattr("tasks.measure.SHORT_BLOCK_NS", 1)
    monkeypatch.setattr("tasks.warmup.WINDOW_NS", 1)
    monkeypatch.setattr(execute, "WARM_CPU_S", 0.0)
    threads = torch.get_num_threads()
    yield
    torch._dynamo.reset()
    torch._dynamo.config.suppress_errors = torch._dynamo.config.fail_on_recompile_limit_hit = False
    torch.set_num_threads(threads)


def task(name, **changes):
    """A quick task on the model of tests.tasks.models with that name."""
    spec = TaskSpec(
        task_id=f"factory/{name}",
        model=ModelSpec("factory", name, factory=f"tests.tasks.models:{name}"),
        mode="training",
        backend="aot_eager",
        precision=PrecisionSpec("float32"),
        compile=CompileSpec(backend="aot_eager"),
        measure=QUICK,
        resources=ResourceSpec(threads=1),
    )
    return dataclasses.replace(spec, **changes)


def run(name, channel=None, **changes):
    return execute.execute(task(name, **changes), channel or Channel(None))


@pytest.fixture
def uncompiled(monkeypatch):
    """Where compiling is not the point: the compiled step is the eager one."""
    monkeypatch.setattr(compilation, "compile_step", lambda step, spec, **more: step)


class TestRow:
    @pytest.mark.parametrize(("precision", "optimizer"), [("float32", "none"), ("amp", "none"), ("amp", "sgd"), ("float32", "adam")])
    def test_a_training_task_passes(self, precision, optimizer):
        result = run("mlp", precision=PrecisionSpec(precision), optimizer=optimizer)
        found = result.measurement
        assert (result.status, result.phase, result.failure_class, result.error) == (Status.PASS, Phase.TIME, None, None)
        assert (found.accuracy, found.deterministic, found.reference) == ("pass", True, "float64")
        assert 0 <= found.accuracy_margin <= 1
        assert found.speedup_low <= found.speedup <= found.speedup_high
        assert (found.pairs, found.graphs >= 1, found.recompiles, found.fell_back) == (7, True, 0, False)
        assert any("backward" in reason for reason in found.graph_break_reasons)
        assert (found.batch_size, found.parameters, found.input_shapes) == (16, 1540, "float32[16, 8]")
        assert found.autocast_dtype == (None if precision == "float32" else "bfloat16")
        assert found.versions["torch"] == torch.__version__
        assert found.machine["cores"] >= 1
        assert (found.eager_peak_mib, found.eager_device_ms, found.launch_bound) == (None, None, None)

    def test_an_inference_task_passes(self):
        result = run("convnet", mode="inference")
        assert (result.status, result.measurement.accuracy, result.measurement.graph_breaks) == (Status.PASS, "pass", 0)

    def test_each_arm_can_be_measured_against_itself(self):
        result = run("mlp", aa=True)
        found = result.measurement
        assert (result.status, found.speedup, found.speedup_of_medians, found.pairs) == (Status.PASS, None, None, 14)
        assert found.aa_eager_low <= found.aa_eager <= found.aa_eager_high
        assert found.aa_compiled_low <= found.aa_compiled <= found.aa_compiled_high
        assert {"aa_eager", "aa_compiled"} <= set(result.samples.phase)
        assert "timed" not in result.samples.phase

    def test_an_arm_against_itself_steps_that_arm_alone(self, monkeypatch, uncompiled):
        seen = []
        original = execute.measure.measure
        monkeypatch.setattr(execute.measure, "measure", lambda sides, **more: seen.append((sides, more)) or original(sides, **more))
        run("mlp", aa=True)
        assert [more["phase"] for _, more in seen] == ["aa_eager", "aa_compiled"]
        assert all(sides[0] is sides[1] for sides, _ in seen)
        assert seen[0][0][0] is not seen[1][0][0]
        first_s, second_s = (more["deadline_s"] for _, more in seen)
        assert first_s == second_s == pytest.approx(DeadlineSpec().time_s / 2, abs=1.0)

    def test_every_process_has_an_order_and_a_number_of_its_own(self, monkeypatch, uncompiled):
        seen = []
        original = execute.measure.measure
        monkeypatch.setattr(execute.measure, "measure", lambda sides, **more: seen.append(more["seed"]) or original(sides, **more))
        results = [execute.execute(task("mlp"), Channel(None), process) for process in (0, 1)]
        assert [set(result.samples.process) for result in results] == [{0}, {1}]
        assert seen[1] == seen[0] + 1

    def test_the_result_survives_its_file(self, uncompiled):
        result = run("mlp")
        assert decode(WorkerResult, encode(result)) == result

    def test_the_device_is_owned_for_the_timing_and_for_nothing_else(self, uncompiled):
        channel = Listener()
        run("mlp", channel)
        off_device = ["device leave", "device return"]
        assert channel.heard == ["build", "eager", "compile", *off_device, "verify", "time", "lease time", "lease release"]

    def test_what_is_timed_is_what_is_verified(self, monkeypatch, uncompiled):
        seen = {}
        original_check, original_measure = execute.accuracy.check, execute.measure.measure

        def check(workload, compiled, *rest, **more):
            seen["verified"] = compiled
            return original_check(workload, compiled, *rest, **more)

        def measure(sides, *rest, **more):
            seen["timed"] = sides[1].step
            return original_measure(sides, *rest, **more)

        monkeypatch.setattr(execute.accuracy, "check", check)
        monkeypatch.setattr(execute.measure, "measure", measure)
        assert run("mlp").status is Status.PASS
        assert seen["verified"] is seen["timed"]

    def test_a_verdict_can_be_switched_off(self, uncompiled):
        result = run("mlp", accuracy=AccuracySpec(enabled=False))
        assert (result.status, result.measurement.accuracy) == (Status.PASS, "skipped")
        assert "manifest" in result.measurement.accuracy_reason

    def test_a_tolerance_of_the_manifest_counts_before_any_other(self, uncompiled):
        assert run("mlp", accuracy=AccuracySpec(tolerance=0.25)).measurement.accuracy_tolerance == 0.25

    @pytest.mark.slow
    @pytest.mark.parametrize("precision", ["float32", "amp"])
    def test_inductor_passes(self, precision):
        result = run("convnet", compile=CompileSpec(), precision=PrecisionSpec(precision), measure=MeasureSpec(max_time_s=5.0))
        assert (result.status, result.measurement.accuracy) == (Status.PASS, "pass")
        assert result.measurement.compile_s > 1
        assert result.measurement.compile_cpu_s > 0

    @pytest.mark.slow
    def test_a_model_that_draws_random_numbers_is_compiled_so_that_it_can_be_checked(self):
        result = run("noisy", compile=CompileSpec())
        assert (result.status, result.measurement.accuracy) == (Status.PASS, "pass")
        assert "fallback_random" in result.measurement.accuracy_reason

    def test_its_heap_is_kept_while_it_works_and_given_back_between_phases(self, monkeypatch, uncompiled):
        seen, enter = [], execute._Execution._enter
        monkeypatch.setattr(execute.heap, "keep", lambda environment: seen.append("keep") or execute.heap.Heap.KEPT)
        monkeypatch.setattr(execute.heap, "give_back", lambda: seen.append("give back"))
        monkeypatch.setattr(execute._Execution, "_enter", lambda execution, phase: seen.append(phase.value) or enter(execution, phase))
        result = run("mlp")
        assert result.measurement.machine["heap"] == "kept"
        assert seen == ["keep", "build", "eager", "give back", "compile", "give back", "verify", "give back", "time"]


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


def faulty(monkeypatch, fault):
    """Make every compiled step be the eager one followed by ``fault(result, module)``, which gives the result it is to return."""
    prepare, built = execute.step.prepare, {}

    def remember(benchmark, *rest):
        built["module"] = benchmark.module
        return prepare(benchmark, *rest)

    monkeypatch.setattr(execute.step, "prepare", remember)
    monkeypatch.setattr(compilation, "compile_step", lambda step, spec, **more: lambda: fault(step(), built["module"]))


class TestPlantedFaults:
    """Each through the whole of ``execute``: the compiled step is wrong in one way, and the row says what."""

    def caught(self, monkeypatch, fault, tensor, model="mlp", **changes):
        faulty(monkeypatch, fault)
        result = run(model, **changes)
        found = result.measurement
        assert (result.status, result.failure_class, found.accuracy) == (Status.FAIL_ACCURACY, FailureClass.ACCURACY, "fail"), found
        assert found.accuracy_tensor == tensor
        assert tensor in result.error
        assert found.accuracy_margin < 0
        assert found.speedup is not None
        return found

    @pytest.mark.parametrize("precision", ["float32", "amp"])
    @pytest.mark.parametrize("factor", [0.0, 0.9, -1.0, 2.0])
    def test_a_wrong_gradient_of_one_parameter(self, monkeypatch, factor, precision):
        def fault(loss, module):
            module[4].weight.grad.mul_(factor)
            return loss

        self.caught(monkeypatch, fault, "gradient.4.weight", precision=PrecisionSpec(precision))

    def test_a_missing_gradient(self, monkeypatch):
        def fault(loss, module):
            module[6].bias.grad = None
            return loss

        self.caught(monkeypatch, fault, "gradient.6.bias")

    def test_a_gradient_that_is_not_replaced(self, monkeypatch):
        def fault(loss, module):
            kept = getattr(module, "kept", None)
            module.kept = module[6].weight.grad.clone() if kept is None else kept
            module[6].weight.grad.copy_(module.kept).mul_(1.5)
            return loss

        self.caught(monkeypatch, fault, "gradient.6.weight")

    @pytest.mark.parametrize("precision", ["float32", "amp"])
    def test_a_loss_off_by_two_percent(self, monkeypatch, precision):
        self.caught(monkeypatch, lambda loss, module: loss * 1.02, "loss.0", precision=PrecisionSpec(precision))

    @pytest.mark.parametrize("precision", ["float32", "amp"])
    def test_an_output_off_by_two_percent(self, monkeypatch, precision):
        more = {"mode": "inference", "precision": PrecisionSpec(precision)}
        self.caught(monkeypatch, lambda outputs, module: outputs * 1.02, "output", model="convnet", **more)

    @pytest.mark.parametrize("precision", ["float32", "amp"])
    def test_a_stale_buffer(self, monkeypatch, precision):
        def fault(loss, module):
            module[1].running_mean.zero_()
            return loss

        self.caught(monkeypatch, fault, "buffer.1.running_mean", precision=PrecisionSpec(precision))

    def test_a_counter_that_does_not_count(self, monkeypatch):
        def fault(loss, module):
            module[1].num_batches_tracked.zero_()
            return loss

        self.caught(monkeypatch, fault, "buffer.1.num_batches_tracked")

    @pytest.mark.parametrize("share", [0.0, 0.9])
    @pytest.mark.parametrize("optimizer", ["sgd", "adam"])
    def test_an_optimizer_step_that_is_skipped_or_too_short(self, monkeypatch, optimizer, share):
        before = {}

        def fault(loss, module):
            with torch.no_grad():
                for name, parameter in module.named_parameters():
                    parameter.lerp_(before[name], 1.0 - share)
            return loss

        original = execute.State.restore

        def restore(state, seed_offset=0):
            original(state, seed_offset)
            before.update({name.removeprefix("parameter."): value for name, value in state.initial.items()})

        monkeypatch.setattr(execute.State, "restore", restore)
        faulty(monkeypatch, fault)
        found = run("mlp", optimizer=optimizer, accuracy=AccuracySpec(iterations=1)).measurement
        assert (found.accuracy, found.accuracy_tensor.partition(".")[0]) == ("fail", "parameter")

    def test_a_step_that_is_too_short_for_one_parameter(self, monkeypatch):
        """By far less than any tolerance on the parameter itself: seen only because changes are compared."""
        before = {}
        original = execute.State.restore

        def restore(state, seed_offset=0):
            original(state, seed_offset)
            before.update(state.initial)

        def fault(loss, module):
            with torch.no_grad():
                module[4].weight.lerp_(before["parameter.4.weight"], 0.1)
            return loss

        monkeypatch.setattr(execute.State, "restore", restore)
        self.caught(monkeypatch, fault, "parameter.4.weight", optimizer="sgd", accuracy=AccuracySpec(iterations=1))

    def test_a_gradient_that_is_not_written(self, monkeypatch):
        """What is left of another arm's would be right: seen only because it is spoilt before each arm."""
        prepare, built = execute.step.prepare, {}

        def remember(benchmark, *rest):
            built["module"] = benchmark.module
            return prepare(benchmark, *rest)

        def compile_step(step, spec, **more):
            def one_step():
                weight = built["module"][6].weight
                before, loss = weight.grad, step()
                weight.grad = weight.grad if before is None else before
                return loss

            return one_step

        monkeypatch.setattr(execute.step, "prepare", remember)
        monkeypatch.setattr(compilation, "compile_step", compile_step)
        found = run("mlp").measurement
        assert (found.accuracy, found.accuracy_tensor) == ("fail", "gradient.6.weight")

    def test_a_parameter_that_nothing_should_have_moved(self, monkeypatch):
        def fault(loss, module):
            with torch.no_grad():
                module[0].weight.mul_(1.001)
            return loss

        self.caught(monkeypatch, fault, "parameter.0.weight")

    def test_a_single_nan(self, monkeypatch):
        def fault(loss, module):
            module[4].weight.grad[3, 5] = math.nan
            return loss

        self.caught(monkeypatch, fault, "gradient.4.weight")

    def test_an_output_of_another_dtype(self, monkeypatch):
        found = self.caught(monkeypatch, lambda outputs, module: outputs.double(), "output", model="convnet", mode="inference")
        assert "float64" in found.accuracy_reason

    def test_an_output_of_another_shape(self, monkeypatch):
        self.caught(monkeypatch, lambda outputs, module: outputs[:-1], "output", model="convnet", mode="inference")

    @pytest.mark.parametrize(
        ("name", "change"),
        [
            ("output.hidden", lambda value: value * 1.02),
            ("output.best", lambda value: (value + 1) % 8),
            ("output.positive", lambda value: ~value),
            ("output.count", lambda value: value + 1),
            ("output.parts<kind>", lambda value: value[:1]),
        ],
    )
    def test_an_output_among_many(self, monkeypatch, name, change):
        key = name.removeprefix("output.").partition("<")[0]
        fault = lambda outputs, module: outputs | {key: change(outputs[key])}  # noqa: E731
        self.caught(monkeypatch, fault, name, model="outputs", mode="inference")

    def test_a_finite_result_where_eager_is_infinite(self, monkeypatch):
        self.caught(monkeypatch, lambda outputs, module: outputs.nan_to_num(), "output", model="overflowing", mode="inference")

    def test_a_single_nan_in_an_output(self, monkeypatch):
        def fault(outputs, module):
            outputs[2, 3] = math.nan
            return outputs

        self.caught(monkeypatch, fault, "output", model="convnet", mode="inference")

    @pytest.mark.parametrize("precision", ["float32", "amp"])
    @pytest.mark.parametrize(
        ("name", "change"),
        [
            ("boxes", lambda image: {key: value[:-1] for key, value in image.items()}),
            ("scores", lambda image: {key: torch.cat([value[:-1], value[:1]]) for key, value in image.items()}),
            ("scores", lambda image: image | {"scores": image["scores"] * 1.02}),
            ("labels", lambda image: image | {"labels": 1 - image["labels"]}),
        ],
        ids=["missing", "doubled", "score", "label"],
    )
    def test_a_detection_that_is_missing_or_wrong(self, monkeypatch, name, change, precision):
        fault = lambda found, module: [found[0], change(found[1])]  # noqa: E731
        more = {"mode": "inference", "precision": PrecisionSpec(precision)}
        self.caught(monkeypatch, fault, f"output[1].{name}", model="detector", **more)

    def test_an_image_without_detections(self, monkeypatch):
        self.caught(monkeypatch, lambda found, module: found[:1], "output<kind>", model="detector", mode="inference")


class TestOutOfMemory:
    """What does not fit beside the saved state is tried again without it on the device, and the row says so."""

    def crowded(self, monkeypatch, phase):
        """Once, in ``phase``, a step does not fit; the state that is saved meanwhile tells."""
        prepare, kept = execute.step.prepare, {"phase": None}

        def remember(*arguments):
            work = prepare(*arguments)

            def one_step():
                if kept["phase"] == phase and not kept["state"].on_host:
                    raise torch.OutOfMemoryError("no room")
                return work.step()

            return dataclasses.replace(work, step=one_step)

        original_init, original_enter = execute.State.__init__, execute._Execution._enter

        def init(state, workload, seed):
            original_init(state, workload, seed)
            kept["state"] = state

        def enter(execution, at):
            kept["phase"] = at.value
            original_enter(execution, at)

        monkeypatch.setattr(execute.step, "prepare", remember)
        monkeypatch.setattr(execute.State, "__init__", init)
        monkeypatch.setattr(execute._Execution, "_enter", enter)

    @pytest.mark.parametrize("phase", ["eager", "compile"])
    def test_the_saved_state_makes_room(self, monkeypatch, uncompiled, phase):
        self.crowded(monkeypatch, phase)
        result = run("mlp")
        found = result.measurement
        assert (result.status, found.accuracy, found.reference) == (Status.PASS, "pass", "float64, saved state on the host")
        assert f"moved to the host in phase {phase}" in found.accuracy_reason
        assert (found.compile_s is None) is (phase == "compile")

    @pytest.mark.parametrize("phase", ["build", "eager", "verify"])
    def test_what_a_neighbour_leaves_no_room_for_is_begun_again(self, monkeypatch, uncompiled, phase):
        waits, name = [], {"build": "_build", "eager": "_eager", "verify": "_checked"}[phase]
        original = getattr(execute._Execution, name)

        def crowded(execution, *arguments):
            if not waits:
                raise torch.OutOfMemoryError("no room")
            return original(execution, *arguments)

        monkeypatch.setattr(execute._Execution, name, crowded)
        monkeypatch.setattr(headroom.Room, "wait_for", lambda room, wanted_bytes: waits.append(True) or True)
        found = run("mlp").measurement
        assert (found.accuracy, found.reference, len(waits)) == ("pass", "float64", 1)
        assert found.accuracy_reason == f"phase {phase} lacked memory until neighbours had given some back"

    def test_the_steps_before_timing_wait_for_room_as_well(self, monkeypatch, uncompiled):
        waits, original = [], execute._Execution._peaks

        def crowded(execution, *arguments):
            if not waits:
                raise torch.OutOfMemoryError("no room")
            return original(execution, *arguments)

        monkeypatch.setattr(execute._Execution, "_peaks", crowded)
        monkeypatch.setattr(headroom.Room, "wait_for", lambda room, wanted_bytes: waits.append(True) or True)
        result = run("mlp")
        assert (result.status, len(waits)) == (Status.PASS, 1)

    def test_a_compiled_step_that_lacks_memory_again_waits_again(self, monkeypatch, uncompiled):
        """Wait, let the saved state go to the host, wait."""
        calls, waits = [], []

        def compile_step(step, spec, **more):
            def call():
                calls.append(spec)
                if len(calls) <= 3:
                    raise torch.OutOfMemoryError("no room")
                return step()

            return call

        monkeypatch.setattr(compilation, "compile_step", compile_step)
        monkeypatch.setattr(headroom.Room, "wait_for", lambda room, wanted_bytes: waits.append(True) or True)
        found = run("mlp").measurement
        assert (found.accuracy, len(waits), found.reference) == ("pass", 2, "float64, saved state on the host")

    @pytest.mark.parametrize("kind", [torch.OutOfMemoryError, RuntimeError])
    def test_a_compiled_step_that_lacks_memory_is_called_again_and_not_compiled_again(self, monkeypatch, uncompiled, kind):
        calls, original = [], compilation.compile_step

        def compile_step(step, spec, **more):
            compiled = original(step, spec, **more)

            def call():
                calls.append(spec)
                if len(calls) == 1:
                    raise kind("CUDA driver error: out of memory")
                return compiled()

            return call

        compiles = []
        monkeypatch.setattr(compilation, "compile_step", lambda *given, **more: compiles.append(1) or compile_step(*given, **more))
        monkeypatch.setattr(headroom.Room, "wait_for", lambda room, wanted_bytes: True)
        found = run("mlp").measurement
        assert (found.accuracy, len(compiles), found.compile_s) == ("pass", 1, None)
        assert found.accuracy_reason == "phase compile lacked memory until neighbours had given some back"

    def test_a_model_too_large_for_the_device_fails_where_it_failed(self, monkeypatch):
        def exhausted(execution, device):
            raise torch.OutOfMemoryError("no room")

        monkeypatch.setattr(execute._Execution, "_build", exhausted)
        result = run("mlp")
        assert (result.status, result.failure_class) == (Status.OOM, FailureClass.DEVICE_OOM)
        assert "exhausted" in result.error

    @pytest.mark.parametrize(
        "library",
        [
            "cusolver error: CUSOLVER_STATUS_INTERNAL_ERROR, when calling `cusolverDnCreate(handle)`",
            "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
        ],
    )
    def test_a_library_that_gets_no_memory_for_its_handle_lacks_memory(self, monkeypatch, library):
        """It says another thing, and would count as the model's failure, which is not tried again."""

        def without_memory(execution, device):
            raise RuntimeError(library)

        monkeypatch.setattr(execute._Execution, "_build", without_memory)
        result = run("mlp")
        assert (result.status, result.failure_class) == (Status.OOM, FailureClass.DEVICE_OOM)

    @pytest.mark.parametrize(("dtype", "factor"), [("float32", 2.0), ("amp", 3.0)])
    def test_a_reference_waits_for_what_float64_takes(self, monkeypatch, uncompiled, dtype, factor):
        """Twice the peak of a step in float32, which under autocast has not been seen."""
        wanted = []
        monkeypatch.setattr(headroom.Room, "turn", lambda room, size: wanted.append(size / 2**20) or contextlib.nullcontext())
        monkeypatch.setattr(headroom.PeakMemory, "so_far", lambda peak: 1000.0)
        monkeypatch.setattr(headroom.PeakMemory, "held_mib", lambda peak: 0.0)
        assert run("mlp", precision=PrecisionSpec(dtype)).status is Status.PASS
        assert factor * 1000.0 in wanted

    @pytest.mark.parametrize(("crowded", "status"), [(True, Status.OOM), (False, Status.FAIL_ACCURACY)])
    def test_a_failure_that_a_reference_might_have_excused_is_none_beside_neighbours(self, monkeypatch, uncompiled, crowded, status):
        faulty(monkeypatch, lambda loss, module: module[0].weight.grad.mul_(1.5) is None or loss)
        monkeypatch.setattr(execute.accuracy.step, "in_precision", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("no room")))
        monkeypatch.setattr(headroom.Room, "crowded", lambda room: crowded)
        result = run("mlp")
        assert (result.status, result.phase) == (status, Phase.VERIFY if crowded else Phase.TIME)
        assert "values differ" in result.error

    def test_a_step_that_does_not_fit_at_all_is_no_pass(self, monkeypatch, uncompiled):
        monkeypatch.setattr(execute.accuracy, "_has_own_memory", lambda device: True)

        def exhausted():
            raise torch.OutOfMemoryError("no room")

        monkeypatch.setattr(compilation, "compile_step", lambda step, spec, **more: exhausted)
        monkeypatch.setattr(compilation, "first_calls", lambda compiled, *rest: compilation.FirstCalls(0.0, None, 0.0))
        result = run("mlp")
        assert (result.status, result.phase, result.failure_class) == (Status.OOM, Phase.VERIFY, FailureClass.DEVICE_OOM)
        assert result.measurement.accuracy is None


class TestCorrectModels:
    def test_infinities_at_the_same_places_are_equal(self, uncompiled):
        result = run("overflowing", mode="inference")
        assert (result.status, result.measurement.accuracy) == (Status.PASS, "pass")

    def test_outputs_of_many_kinds_pass(self, uncompiled):
        assert run("outputs", mode="inference").measurement.accuracy == "pass"

    @pytest.mark.parametrize("seed", range(2))
    @pytest.mark.parametrize("model", ["mlp", "convnet"])
    def test_legitimate_rounding_passes(self, monkeypatch, seed, model):
        """Random weights, BatchNorm, AMP; the compiled step sums in another order, as if its kernels were others."""

        def compile_step(step, spec, **more):
            def one_step():
                with _OtherRounding():
                    return step()

            return one_step

        monkeypatch.setattr(compilation, "compile_step", compile_step)
        found = run(model, seed=seed, precision=PrecisionSpec("amp")).measurement
        assert found.accuracy == "pass", found.accuracy_reason
        assert found.compiled_rmse != found.eager_rmse

    def test_random_numbers_are_the_same_for_all_arms(self):
        result = run("noisy")
        assert (result.status, result.measurement.accuracy, result.measurement.random_numbers) == (Status.PASS, "pass", "decisive")
        assert "fallback_random" in result.measurement.accuracy_reason

    def test_random_numbers_that_move_gradients_alone_are_seen(self):
        found = run("wavering").measurement
        assert (found.accuracy, found.random_numbers) == ("pass", "decisive")
        assert "fallback_random" in found.accuracy_reason

    @pytest.mark.parametrize(("model", "mode"), [("noisy", "inference"), ("wavering", "training")])
    def test_a_fault_is_found_in_a_model_that_draws_random_numbers(self, monkeypatch, model, mode):
        def fault(result, module):
            if mode == "inference":
                return result * 1.1
            module.layer.weight.grad.mul_(1.5)
            return result

        faulty(monkeypatch, fault)
        assert run(model, mode=mode).measurement.accuracy == "fail"

    def test_random_numbers_that_move_next_to_nothing_are_left_to_each_arm(self, monkeypatch):
        monkeypatch.setattr(compilation, "compile_step", lambda step, spec, **more: lambda: (torch.rand(1), step())[1])
        result = run("shaken")
        assert (result.status, result.measurement.accuracy, result.measurement.deterministic) == (Status.PASS, "pass", None)
        assert "each arm drew its own" in result.measurement.accuracy_reason
        assert "fallback_random" not in result.measurement.accuracy_reason
        assert result.measurement.random_numbers == "negligible"

    def test_rounding_under_autocast_is_no_sign_of_random_numbers(self):
        result = run("jostled", precision=PrecisionSpec("amp"))
        assert (result.measurement.random_numbers, result.measurement.accuracy, result.measurement.reference) == (
            "negligible",
            "pass",
            "float64",
        )

    def test_where_float32_does_not_fit_they_are_looked_at_under_autocast(self, monkeypatch):
        def no_room(workload, device):
            raise torch.OutOfMemoryError("no room")

        monkeypatch.setattr(execute.step, "without_autocast", no_room)
        result = run("jostled", precision=PrecisionSpec("amp"))
        assert (result.measurement.random_numbers, result.measurement.accuracy) == ("negligible", "pass")
        assert "looked at under autocast" in result.measurement.accuracy_reason

    def test_a_fault_is_found_in_a_model_whose_random_numbers_move_next_to_nothing(self, monkeypatch):
        faulty(monkeypatch, lambda loss, module: module.layer.weight.grad.mul_(1.02) is None or loss)
        assert run("shaken").measurement.accuracy == "fail"


class _OtherRounding(torch.overrides.TorchFunctionMode):
    """Disturbs the inputs of linear layers and convolutions by half a unit in the last place of bfloat16."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in (torch.nn.functional.linear, torch.nn.functional.conv2d):
            noise = 1 + torch.linspace(-1, 1, args[0].numel(), device=args[0].device).reshape(args[0].shape) * 2**-9
            args = (args[0] * noise, *args[1:])
        return function(*args, **(kwargs or {}))


class TestTimeLeft:
    """A model that takes long is timed within the phase's deadline: what comes before the pairs counts, or is left out."""

    def peaks(self, monkeypatch, peak_s, eager_s=0.0):
        """What a measurement is given, and the peaks that it notes, when looking for one takes so long."""
        clock, given = {"now": 0.0}, {}

        def of_step(peak, step, context):
            clock["now"] += peak_s
            return 1.0

        monkeypatch.setattr(execute.Channel, "running_s", lambda channel: clock["now"])
        monkeypatch.setattr(headroom.PeakMemory, "of_step", of_step)
        monkeypatch.setattr(execute._Execution, "_seconds", lambda execution, *rest: eager_s)
        original = execute.measure.measure
        monkeypatch.setattr(execute.measure, "measure", lambda sides, **more: given.update(more) or original(sides, **more))
        found = run("mlp").measurement
        return given["deadline_s"], found.eager_peak_mib, found.compiled_peak_mib

    def test_looking_for_peaks_counts(self, monkeypatch, uncompiled):
        assert self.peaks(monkeypatch, peak_s=7.0) == (DeadlineSpec().time_s - 14.0, 1.0, 1.0)

    def test_there_are_none_of_a_step_that_takes_too_long(self, monkeypatch, uncompiled):
        assert self.peaks(monkeypatch, peak_s=60.0, eager_s=30.0) == (DeadlineSpec().time_s, None, None)


def test_little_time_to_verify_means_fewer_steps(uncompiled):
    result = run("mlp", deadlines=DeadlineSpec(verify_s=1e-6))
    assert "one step instead of several" in result.measurement.accuracy_reason


@pytest.mark.parametrize(("name", "drawn"), [("mlp", 0), ("noisy", 3)])
def test_what_random_numbers_move_is_looked_at_where_some_are_drawn(monkeypatch, uncompiled, name, drawn):
    """With the seed, with it again, and with another."""
    draws, draw = [], execute._Execution._draw
    monkeypatch.setattr(execute._Execution, "_draw", lambda *arguments: draws.append(arguments[-1]) or draw(*arguments))
    assert run(name).measurement.random_numbers == ("decisive" if drawn else "none")
    assert len(draws) == drawn


def test_a_slow_step_is_not_looked_at_for_random_numbers(uncompiled):
    result = run("mlp", deadlines=DeadlineSpec(eager_s=1e-6))
    assert "random numbers was not looked at" in result.measurement.accuracy_reason
    assert result.status is Status.PASS

"""A compiled step that is wrong in one way is caught; one that rounds otherwise, or draws random numbers, is not."""

from __future__ import annotations

import math

import pytest
import torch

from tasks import compilation, execute
from tasks.spec import (
    AccuracySpec,
    FailureClass,
    PrecisionSpec,
    Status,
)
from tests.tasks.execute.harness import faulty, run


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

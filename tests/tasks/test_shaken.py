"""Judged by what roundings do: an eager step with shaken parameters, where a compiled step would fail for its size."""

from __future__ import annotations

import dataclasses
import math
import re
import weakref

import pytest
import torch
from torch import nn

from tasks import accuracy, shaken, step
from tasks.accuracy import check
from tasks.comparison import Finding, Rule, rule_of
from tasks.judgement import Randomness
from tasks.spec import Accuracy, PrecisionSpec
from tests.tasks import models

CPU = torch.device("cpu")
EPSILON = 2.0**-10
RULE = Rule(tolerance=1e-3, multiplier=3.0, epsilon=EPSILON)
STEPS = 2


def workload(mode="training", optimizer="none", module=None, loss=models.apart, left=1.0):
    """A model that eager computes in true float32, whatever the rule's epsilon says of what it might."""
    torch.manual_seed(0)
    inputs = torch.randn(32, 64)
    made = models.benchmark(module or models.Fitted(inputs, left * EPSILON), (inputs,), loss, mode == "training")
    return step.prepare(made, mode, PrecisionSpec("float32"), optimizer, CPU)


def rounded(work, fault=lambda result: result):
    """A compiled step that multiplies with ten bits of each parameter, and ``fault``, which gives what it is to return."""

    def compiled():
        parameters = list(work.module.parameters())
        with torch.no_grad():
            lost = [parameter - parameter.half() for parameter in parameters]
            torch._foreach_sub_(parameters, lost)
        result = work.step()
        with torch.no_grad():
            torch._foreach_add_(parameters, lost)
        return fault(result)

    return compiled


def wrong_gradient(work, factor, part="steady"):
    def fault(result):
        getattr(work.module, part).weight.grad.mul_(factor)
        return result

    return fault


@dataclasses.dataclass
class Counted:
    """Calls of eager's step. From the one numbered ``failing`` on they raise ``error``."""

    step: object
    failing: float = math.inf
    error: BaseException | None = None
    calls: int = 0
    seeds: list = dataclasses.field(default_factory=list)

    def __call__(self):
        self.calls += 1
        self.seeds.append(torch.initial_seed())
        if self.calls > self.failing:
            raise self.error
        return self.step()


def checked(work, compiled, state=None, rule=RULE, random=Randomness.NONE, **counted):
    """The verdict, and how eager stepped for it."""
    counting = Counted(work.step, **counted)
    state = state or step.State(work, seed=0)
    work = dataclasses.replace(work, step=counting)
    return check(work, compiled, state, iterations=STEPS, rule=rule, device=CPU, random=random), counting


class TestCheck:
    @pytest.mark.parametrize(
        ("mode", "optimizer", "tensor", "eased"),
        [("training", "none", "gradient.near", 2), ("training", "sgd", "gradient.near", 4), ("inference", "none", "output[0]", 1)],
    )
    def test_what_roundings_of_the_weights_do_passes(self, mode, optimizer, tensor, eased):
        """With an optimizer, so do the changes of what has such gradients."""
        work = workload(mode, optimizer)
        verdict, eager = checked(work, rounded(work))
        assert (verdict.accuracy, verdict.reference, verdict.deterministic) == (Accuracy.PASS, "float64", True), verdict.reason
        assert verdict.reason.startswith(f"{eased} of ")
        assert f" values within what roundings of the weights do to {'it' if eased == 1 else 'them'} ({tensor}" in verdict.reason
        assert 0.5 < verdict.margin < 1.0
        assert eager.calls == 3 * STEPS

    def test_so_does_a_loss(self):
        work = workload(loss=lambda outputs: outputs[0].mean())
        verdict, _ = checked(work, rounded(work))
        assert verdict.accuracy is Accuracy.PASS
        assert verdict.reason == "2 of 11 values within what roundings of the weights do to them (loss.0)"

    @pytest.mark.parametrize("factor", [0.98, 1.02, 1.2])
    def test_a_fault_in_what_they_do_not_move_is_found(self, factor):
        work = workload()
        verdict, eager = checked(work, rounded(work, wrong_gradient(work, factor)))
        assert (verdict.accuracy, verdict.tensor) == (Accuracy.FAIL, "gradient.steady.weight")
        sizes = r"error \S+, eager's \S+, roundings' \S+, \S+ times its limit"
        assert re.match(rf"1 of 11 values differ, most of all gradient\.steady\.weight: {sizes}", verdict.reason)
        assert "; 2 of 11 values within what roundings of the weights do to them (gradient.near" in verdict.reason
        assert eager.calls == 3 * STEPS

    @pytest.mark.parametrize(("left", "factor"), [(1.0, -1.0), (1.0, 3.0), (8.0, 0.0), (8.0, 0.8)])
    def test_so_is_one_beyond_what_they_do(self, left, factor):
        work = workload(left=left)
        verdict, _ = checked(work, rounded(work, wrong_gradient(work, factor, "near")))
        assert (verdict.accuracy, verdict.tensor) == (Accuracy.FAIL, "gradient.near.weight")

    def test_the_shaking_is_no_change_of_a_parameter(self):
        """It moves one by more than a step does; a step that is skipped would be as good."""
        work = workload(optimizer="sgd")
        before = work.module.steady.weight.detach().clone()

        def skipped(result):
            with torch.no_grad():
                work.module.steady.weight.copy_(before)
            return result

        verdict, eager = checked(work, rounded(work, skipped))
        assert (verdict.accuracy, verdict.tensor) == (Accuracy.FAIL, "parameter.steady.weight")
        assert eager.calls == 3 * STEPS


class TestWhen:
    def test_not_where_everything_passes(self):
        work = workload()
        verdict, eager = checked(work, work.step)
        assert (verdict.accuracy, verdict.reason, eager.calls) == (Accuracy.PASS, None, 2 * STEPS)

    @pytest.mark.parametrize(
        "fault",
        [
            lambda near, steady: (near, steady * math.nan),
            lambda near, steady: (near, steady[1:]),
            lambda near, steady: (near, steady.double()),
            lambda near, steady: [near, steady],
            lambda near, steady: (near,),
        ],
        ids=["nan", "shape", "dtype", "kind", "missing"],
    )
    def test_not_where_something_else_is_wrong_as_well(self, fault):
        """Roundings would be no excuse for it."""
        work = workload("inference")
        verdict, eager = checked(work, rounded(work, lambda result: fault(*result)))
        assert (verdict.accuracy, eager.calls) == (Accuracy.FAIL, 2 * STEPS)

    def test_a_loss_alone_also_where_both_arms_round_alike(self):
        """A single number does not tell how well it can be computed."""
        work = workload(loss=lambda outputs: outputs[0].mean())
        verdict, eager = checked(work, rounded(work), rule=dataclasses.replace(RULE, alike=True))
        assert (verdict.accuracy, eager.calls) == (Accuracy.PASS, 3 * STEPS)
        verdict, eager = checked(work, rounded(work, wrong_gradient(work, 1.2, "near")), rule=dataclasses.replace(RULE, alike=True))
        assert (verdict.accuracy, eager.calls) == (Accuracy.FAIL, 2 * STEPS)

    def test_not_where_both_arms_round_alike(self):
        work = workload()
        verdict, eager = checked(work, rounded(work), rule=dataclasses.replace(RULE, alike=True))
        assert (verdict.accuracy, eager.calls) == (Accuracy.FAIL, 2 * STEPS)
        assert [rule_of(1e-2, autocast, tf32=True).alike for autocast in (None, torch.float16)] == [False, True]

    def test_not_for_integers(self):
        work = workload(module=nn.Sequential(nn.Linear(64, 4), nn.BatchNorm1d(4)), loss=models.squares)

        def uncounted():
            result = work.step()
            work.module[1].num_batches_tracked.zero_()
            return result

        verdict, eager = checked(work, uncounted)
        assert (verdict.accuracy, verdict.tensor, eager.calls) == (Accuracy.FAIL, "buffer.1.num_batches_tracked", 2 * STEPS)

    def test_not_without_a_reference(self, monkeypatch):
        none = accuracy.Reference(None)
        monkeypatch.setattr(accuracy.references, "candidates", lambda *arguments, **more: [none])
        work = workload()
        verdict, eager = checked(work, rounded(work))
        assert (verdict.accuracy, verdict.reference, eager.calls) == (Accuracy.FAIL, "none", 2 * STEPS)

    def test_with_the_random_numbers_of_eager(self):
        work = workload()
        verdict, eager = checked(work, rounded(work), random=Randomness.NEGLIGIBLE)
        assert verdict.accuracy is Accuracy.PASS
        assert [eager.seeds[index] for index in (0, STEPS, 2 * STEPS)] == [0, 1, 0]


class TestState:
    def saved(self, work):
        state = step.State(work, seed=0)
        return state, {name: value.clone() for name, value in step.named_state(work.module)}

    def assert_restored(self, work, before):
        assert all(torch.equal(value, before[name]) for name, value in step.named_state(work.module))

    @pytest.mark.parametrize("on_host", [False, True])
    def test_it_is_as_before_afterwards(self, on_host):
        work = workload(optimizer="adam")
        state, before = self.saved(work)
        if on_host:
            state.to_host()
        verdict, eager = checked(work, rounded(work), state)
        assert (verdict.accuracy, eager.calls) == (Accuracy.PASS, 3 * STEPS)
        self.assert_restored(work, before)

    @pytest.mark.parametrize(
        ("error", "why"),
        [
            (torch.OutOfMemoryError("no room"), "out of memory"),
            (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "out of memory"),
            (IndexError("beyond the end\nof it"), "IndexError: beyond the end"),
        ],
    )
    def test_a_shaken_step_that_fails_leaves_the_verdict(self, error, why):
        work = workload(optimizer="sgd")
        state, before = self.saved(work)
        verdict, eager = checked(work, rounded(work), state, failing=2 * STEPS, error=error)
        assert (verdict.accuracy, verdict.reference, verdict.blind) == (Accuracy.FAIL, "float64", False)
        assert verdict.reason.startswith("4 of 11 values differ, most of all gradient.near.weight: error ")
        assert verdict.reason.endswith(f"; what roundings of the weights do was not seen: {why}")
        assert eager.calls == 2 * STEPS + 1
        self.assert_restored(work, before)

    def test_results_on_the_host_are_enough(self, monkeypatch):
        held = accuracy.Reference(torch.float64, results_on_host=True, state_on_host=True)
        monkeypatch.setattr(accuracy.references, "candidates", lambda *arguments, **more: [held])
        monkeypatch.setattr(accuracy, "_has_own_memory", lambda device: True)
        work = workload(optimizer="sgd")
        verdict, _ = checked(work, rounded(work))
        assert (verdict.accuracy, verdict.reference) == (Accuracy.PASS, str(held))

    @pytest.mark.parametrize("arm", ["_run_arm", "_reference_results"])
    def test_it_takes_the_room_of_what_is_no_longer_needed(self, monkeypatch, arm):
        work, held, alive = workload("inference"), [], []
        original = getattr(accuracy._Check, arm)

        def remembering(attempt, *arguments, **more):
            found = original(attempt, *arguments, **more)
            held[:] = [weakref.ref(value) for value in found.values() if isinstance(value, torch.Tensor)]  # at last of compiled
            return found

        def looking(module, epsilon):
            alive.extend(reference() is not None for reference in held)

        monkeypatch.setattr(accuracy._Check, arm, remembering)
        monkeypatch.setattr(shaken, "shake", looking)
        _, eager = checked(work, rounded(work))
        assert eager.calls == 3 * STEPS
        assert len(alive) > 5
        assert not any(alive)


class TestShaking:
    def module(self):
        torch.manual_seed(0)
        module = nn.Linear(100, 20)
        module.count = nn.Parameter(torch.arange(5), requires_grad=False)
        module.register_buffer("mean", torch.ones(5))
        return module

    @pytest.mark.parametrize("epsilon", [2.0**-7, 2.0**-10, 2.0**-23])
    def test_parameters_move_by_up_to_a_rounding(self, epsilon):
        module, before = self.module(), self.module()
        shaken.shake(module, epsilon)
        moved = (module.weight / before.weight - 1).detach()
        assert epsilon / 2 < moved.abs().max() <= epsilon * 1.01 + 2.0**-23
        assert moved.mean().abs() < epsilon / 10
        assert torch.equal(module.count, before.count)
        assert torch.equal(module.mean, before.mean)

    def test_in_the_same_way_each_time_and_without_the_numbers_of_the_model(self):
        one, other = self.module(), self.module()
        shaken.shake(one, EPSILON)
        torch.manual_seed(7)
        shaken.shake(other, EPSILON)
        drawn = torch.rand(1)
        torch.manual_seed(7)
        assert torch.equal(one.weight, other.weight)
        assert torch.equal(drawn, torch.rand(1))

    def test_not_by_the_numbers_that_made_the_weights(self):
        """Which would be no rounding: every product with one of them would move in the same direction."""
        module, before = self.module(), self.module()
        shaken.shake(module, EPSILON)
        moved = (module.weight / before.weight - 1).detach()
        assert abs(torch.corrcoef(torch.stack([moved.flatten(), before.weight.detach().flatten()]))[0, 1]) < 0.1

    def test_infinities_stay(self):
        module = self.module()
        nn.init.constant_(module.bias, -math.inf)
        shaken.shake(module, EPSILON)
        assert torch.equal(module.bias, torch.full_like(module.bias, -math.inf))


class TestEasing:
    def eased(self, value):
        before = Finding("gradient.a", 5.0, None, 0.0, 0.5, multiplier=3.0, slack=0.1)
        [found] = shaken.eased([before], {"gradient.a": torch.zeros(4)}, {"gradient.a": value})
        return found.ratio

    def test_by_the_distance_of_the_shaken_step(self):
        assert self.eased(torch.full((4,), 0.3)) == pytest.approx(0.5)

    @pytest.mark.parametrize("value", [torch.full((4,), math.nan), torch.full((4,), -math.inf), torch.zeros(4), torch.ones(3), None, 3.0])
    def test_nothing_else_helps(self, value):
        assert self.eased(value) == 5.0

    def test_nor_does_it_make_worse_what_passes(self):
        findings = [Finding("gradient.a", 0.2, None, 0.0, 0.5, multiplier=3.0, slack=0.1), Finding("count", 0.0)]
        assert shaken.eased(findings, {"gradient.a": torch.zeros(4)}, {"gradient.a": torch.ones(4)})[1] is findings[1]
        assert shaken.eased(findings, {}, {})[0].ratio == 0.2
        assert shaken.remark(findings, findings) is None

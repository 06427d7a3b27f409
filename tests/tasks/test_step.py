from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn

from tasks import step
from tasks.spec import PrecisionSpec
from tests.tasks import models

CPU = torch.device("cpu")


def workload(module=None, mode="training", precision=None, optimizer="none", **more):
    torch.manual_seed(0)
    made = models.benchmark(module or nn.Linear(8, 4), (torch.randn(6, 8),), models.squares, mode == "training", **more)
    return step.prepare(made, mode, precision or PrecisionSpec("float32"), optimizer, CPU)


class Recording(nn.Linear):
    """Notes what it computes in, and whether gradients are wanted."""

    def forward(self, inputs):
        outputs = super().forward(inputs)
        self.seen = outputs.dtype, torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), self.weight.grad
        return outputs


class TestTrainingStep:
    def test_it_computes_the_gradients_of_the_loss(self):
        work = workload()
        loss = work.step()
        expected = torch.autograd.grad(models.squares(work.module(*work.args)), list(work.module.parameters()))
        assert torch.equal(loss, models.squares(work.module(*work.args)))
        assert all(torch.equal(parameter.grad, its) for parameter, its in zip(work.module.parameters(), expected, strict=True))

    def test_gradients_are_gone_when_the_forward_pass_begins_and_do_not_add_up(self):
        work = workload(Recording(8, 4))
        work.step()
        first = work.module.weight.grad.clone()
        work.step()
        assert work.module.seen[3] is None
        assert torch.equal(work.module.weight.grad, first)

    @pytest.mark.parametrize(
        ("precision", "dtype"),
        [
            (PrecisionSpec("float32"), torch.float32),
            (PrecisionSpec("amp"), torch.bfloat16),
            (PrecisionSpec("amp", autocast_dtype="float16"), torch.float16),
        ],
    )
    def test_the_forward_pass_runs_under_autocast(self, precision, dtype):
        work = workload(Recording(8, 4), precision=precision)
        work.step()
        assert work.module.seen[0] is dtype
        assert work.module.weight.grad.dtype is torch.float32
        assert work.autocast_dtype is (None if dtype is torch.float32 else dtype)

    def test_the_loss_is_under_autocast_and_the_backward_pass_is_not(self):
        seen = {}

        def loss(outputs):
            seen["loss"] = torch.is_autocast_enabled("cpu")
            outputs.register_hook(lambda gradient: seen.update(backward=torch.is_autocast_enabled("cpu")))
            return outputs.float().sum()

        made = models.benchmark(nn.Linear(8, 4), (torch.randn(6, 8),), loss)
        step.prepare(made, "training", PrecisionSpec("amp"), "none", CPU).step()
        assert seen == {"loss": True, "backward": False}

    def test_without_an_optimizer_parameters_stay(self):
        work = workload()
        before = work.module.weight.clone()
        work.step()
        assert torch.equal(work.module.weight, before)

    @pytest.mark.parametrize(("name", "kind"), [("sgd", torch.optim.SGD), ("adam", torch.optim.Adam)])
    def test_an_optimizer_moves_them(self, name, kind):
        work = workload(optimizer=name)
        before = work.module.weight.clone()
        work.step()
        moved = (work.module.weight - before).abs().max().item()
        assert type(work.optimizer) is kind
        assert moved == pytest.approx(0.01 * (work.module.weight.grad.abs().max().item() if name == "sgd" else 1.0), rel=1e-2)

    def test_capturable_only_where_there_is_something_to_capture(self):
        assert workload(optimizer="adam").optimizer.defaults["capturable"] is False
        cuda = step.make_optimizer("adam", nn.Linear(2, 2), torch.device("cuda"))
        assert (cuda.defaults["capturable"], cuda.defaults["lr"], cuda.defaults["foreach"]) == (True, 0.01, True)

    def test_frozen_parameters_stay_frozen(self):
        module = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
        module[0].requires_grad_(False)
        work = workload(module, optimizer="sgd")
        work.step()
        assert module[0].weight.grad is None
        assert module[1].weight.grad is not None

    def test_keyword_inputs_reach_the_model(self):
        class Named(nn.Linear):
            def forward(self, inputs, *, scale):
                return super().forward(inputs) * scale

        assert workload(Named(8, 4), scale=0.0).step() == 0


class TestInferenceStep:
    def test_it_returns_the_outputs_and_wants_no_gradients(self):
        work = workload(Recording(8, 4), mode="inference")
        outputs = work.step()
        assert outputs.shape == (6, 4)
        assert work.module.seen[1] is False
        assert not any(parameter.requires_grad for parameter in work.module.parameters())

    def test_it_has_no_optimizer(self):
        assert workload(mode="inference", optimizer="adam").optimizer is None


class TestNames:
    def test_unknown_ones_are_refused(self):
        with pytest.raises(ValueError, match="unknown optimizer 'lion'"):
            workload(optimizer="lion")
        with pytest.raises(ValueError, match="unknown precision 'float8'"):
            workload(precision=PrecisionSpec("float8"))
        with pytest.raises(ValueError, match="unknown autocast dtype 'int8'"):
            workload(precision=PrecisionSpec("amp", autocast_dtype="int8"))

    def test_autocast_defaults_to_what_the_device_is_good_at(self):
        assert step.autocast_dtype(PrecisionSpec("amp"), CPU) is torch.bfloat16
        assert step.autocast_dtype(PrecisionSpec("amp"), torch.device("cuda")) is torch.float16


@pytest.fixture
def tf32():
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize("allowed", [True, False])
def test_tf32_is_set_for_products_and_convolutions(allowed, tf32):
    step.set_tf32(not allowed, torch.device("cuda"))
    step.set_tf32(allowed, torch.device("cuda"))
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == (allowed, allowed)
    assert torch.get_float32_matmul_precision() == ("high" if allowed else "highest")  # what Inductor's autotuner asks for
    step.set_tf32(not allowed, CPU)
    assert torch.backends.cuda.matmul.allow_tf32 is allowed


class TestReference:
    def test_it_computes_in_its_precision_and_leaves_the_original_alone(self):
        work = workload(precision=PrecisionSpec("amp"), optimizer="adam")
        work.step()
        before = work.module.weight.clone()
        reference = step.in_precision(work, torch.float64, CPU)
        reference.step()
        assert {value.dtype for _, value in step.named_state(reference.module)} == {torch.float64}
        assert reference.args[0].dtype is torch.float64
        assert reference.module.weight.grad.dtype is torch.float64
        assert (type(reference.optimizer), len(work.optimizer.state)) == (torch.optim.Adam, 2)
        assert torch.equal(work.module.weight, before)

    def test_it_agrees_with_the_original(self):
        work = workload()
        assert step.in_precision(work, torch.float64, CPU).step().item() == pytest.approx(work.step().item())


class TestState:
    def moved(self, optimizer="adam"):
        module = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))
        module.register_buffer("cache", torch.zeros(3), persistent=False)
        return workload(module, optimizer=optimizer)

    def test_restoring_undoes_steps_in_place(self):
        work = self.moved()
        state = step.State(work, seed=3)
        places = {name: value.data_ptr() for name, value in step.named_state(work.module)}
        first = [work.step().item() for _ in range(3)]
        with torch.no_grad():
            work.args[0].add_(1.0)
            work.module.cache.add_(1.0)
        state.restore()
        assert [work.step().item() for _ in range(3)] == first
        assert work.module.cache.sum() == 0
        assert {name: value.data_ptr() for name, value in step.named_state(work.module)} == places

    def test_generators_start_from_the_seed(self):
        state = step.State(self.moved(), seed=3)
        draws = []
        for _ in range(2):
            state.restore()
            draws.append(torch.rand(3).tolist())
        assert draws[0] == draws[1]

    def test_old_gradients_are_poisoned_and_not_removed(self):
        work = self.moved("none")
        state = step.State(work, seed=3)
        work.step()
        state.restore()
        assert all(parameter.grad.isnan().all() for parameter in work.module.parameters())

    def test_initial_values_are_named(self):
        work = self.moved("sgd")
        state = step.State(work, seed=3)
        work.step()
        assert list(state.initial) == [name for name, _ in step.named_state(work.module)]
        assert state.initial["buffer.1.running_mean"].sum() == 0
        assert not torch.equal(state.initial["parameter.0.weight"], work.module[0].weight)


@pytest.mark.parametrize(
    "draw",
    [
        random.random,
        lambda: random.gauss(0, 1),
        lambda: torch.rand(1),
        lambda: nn.Dropout()(torch.ones(3)),
        np.random.rand,
        np.random.randn,
    ],
)
def test_whoever_draws_changes_a_generator(draw):
    step.seed_everything(0)
    seen = {step.generators(CPU)}
    for drawn in range(1, 4):  # a generator of normal numbers makes two at a time
        draw()
        seen.add(step.generators(CPU))
        assert len(seen) == drawn + 1
    step.seed_everything(0)
    assert step.generators(CPU) in seen


def test_a_step_that_draws_nothing_changes_none():
    work = workload(nn.Sequential(nn.Linear(8, 4), nn.Dropout(0.0)), optimizer="adam")
    before = step.generators(CPU)
    work.step()
    assert step.generators(CPU) == before


def test_shapes_are_written_down():
    assert step.shapes(((torch.ones(2, 3),), {"ids": torch.ones(4, dtype=torch.int64), "flag": True})) == "float32[2, 3], int64[4]"


class Table(nn.Module):
    """An embedding whose gradient holds the rows that were looked up, and no others."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(10, 4, sparse=True)

    def forward(self, inputs):
        return self.table(inputs.abs().long() % 10)


class TestSparseGradients:
    def test_an_old_one_is_not_a_number_until_it_is_replaced(self):
        work = workload(Table())
        state = step.State(work, seed=3)
        work.step()
        gradient = work.module.table.weight.grad
        assert gradient.is_sparse
        state.restore()
        assert gradient.coalesce().values().isnan().all()
        work.step()
        assert not work.module.table.weight.grad.coalesce().values().isnan().any()


class Outputs(nn.Linear):
    def forward(self, inputs):
        hidden = super().forward(inputs)
        return {"hidden": hidden, "loss": hidden.square().mean(), "nothing": None}


class TestChunks:
    def work(self, module, mode="training", optimizer="none", **changes):
        torch.manual_seed(0)
        made = models.benchmark(module, (torch.randn(6, 8),), models.squares, mode == "training", **changes)
        return step.prepare(made, mode, PrecisionSpec("float32"), optimizer, CPU)

    @pytest.mark.parametrize("count", [2, 6])
    def test_a_training_step_in_chunks_is_the_same_step(self, count):
        results = []
        for chunked in (False, True):
            torch.manual_seed(1)
            work = self.work(nn.Linear(8, 4), optimizer="sgd")
            loss = (step.in_chunks(work, count, CPU) if chunked else work).step().detach()
            results.append((loss, work.module.weight.grad, work.module.weight.detach()))
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other)

    def test_outputs_are_joined_and_scalars_averaged(self):
        work = self.work(Outputs(8, 4), mode="inference")
        whole, chunked = work.step(), step.in_chunks(work, 3, CPU).step()
        torch.testing.assert_close(chunked, whole)

    def test_outputs_that_cannot_be_joined_are_refused(self):
        with pytest.raises(ValueError, match="cannot be joined: int"):
            step._joined([{"count": 1}, {"count": 2}])

    def test_a_batch_is_what_all_inputs_share(self):
        assert step.batch_of(self.work(nn.Linear(8, 4))) == 6
        assert step.batch_of(self.work(nn.Linear(8, 4), other=torch.randn(5, 8))) is None
        assert step.batch_of(self.work(nn.Linear(8, 4), other=torch.tensor(5))) is None

    def test_samples_that_are_normalised_together_are_not_taken_apart(self):
        assert step.batch_of(self.work(nn.BatchNorm1d(8))) is None
        assert step.batch_of(self.work(nn.BatchNorm1d(8), mode="inference")) == 6


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.Linear(8, 8, bias=False)
        self.other = nn.Linear(8, 8, bias=False)
        self.other.weight = self.one.weight
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, inputs):
        return self.other(self.one(inputs))


def test_a_copy_in_another_precision_keeps_what_is_shared_and_what_is_whole():
    made = models.benchmark(Tied(), (torch.randn(6, 8),), models.squares)
    work = step.prepare(made, "training", PrecisionSpec("float32"), "none", CPU)
    copied = step.in_precision(work, torch.float64, CPU).module
    assert copied.one.weight is copied.other.weight
    assert copied.one.weight is not work.module.one.weight
    assert (copied.one.weight.dtype, copied.count.dtype) == (torch.float64, torch.int64)
    assert isinstance(copied.one.weight, nn.Parameter)


class TestStateOnTheHost:
    def test_it_restores_as_before(self):
        made = models.benchmark(nn.Linear(8, 4), (torch.randn(6, 8),), models.squares)
        work = step.prepare(made, "training", PrecisionSpec("float32"), "sgd", CPU)
        before = work.module.weight.detach().clone()
        state = step.State(work, seed=0)
        state.to_host()
        work.step()
        assert not torch.equal(work.module.weight, before)
        state.restore()
        assert torch.equal(work.module.weight, before)
        assert torch.equal(state.initial["parameter.weight"], before)

    def test_a_state_that_does_not_fit_is_on_the_host_at_once(self, monkeypatch):
        def clone(tensor):
            raise torch.OutOfMemoryError("no room")

        made = models.benchmark(nn.Linear(8, 4), (torch.randn(6, 8),), models.squares)
        work = step.prepare(made, "training", PrecisionSpec("float32"), "none", CPU)
        monkeypatch.setattr(torch.Tensor, "clone", clone)
        state = step.State(work, seed=0)
        monkeypatch.undo()
        assert state.on_host
        assert torch.equal(state.initial["parameter.weight"], work.module.weight)

from __future__ import annotations

import copy

import pytest
import torch
from torch.distributions import Normal, TanhTransform, TransformedDistribution
from torch.nn import functional

from tasks import comparison
from tasks.suites.benchmark import BuildRequest
from tasks.suites.torchbench.reinforcement import (
    DrqActor,
    PainterActor,
    PainterBlock,
    SacActor,
    SquashedNormal,
    build_drq,
    build_learningtopaint,
    build_soft_actor_critic,
    sum_of_mean,
)

CPU = torch.device("cpu")


@pytest.fixture
def policy():
    return SquashedNormal(torch.tensor([-1.0, 0.0, 0.4]), torch.tensor([0.2, 0.7, 1.1]))


def test_squashed_normals_density_is_that_of_torch(policy):
    reference = TransformedDistribution(Normal(policy.loc, policy.scale), [TanhTransform()])
    actions = torch.tensor([-0.9, 0.1, 0.98])
    torch.testing.assert_close(policy.log_prob(actions), reference.log_prob(actions))


def test_squashed_normals_density_integrates_to_one():
    policy = SquashedNormal(torch.tensor(0.1, dtype=torch.float64), torch.tensor(0.3, dtype=torch.float64))
    edges = torch.linspace(-0.985, 0.985, 20_001, dtype=torch.float64)
    assert torch.trapezoid(policy.log_prob(edges).exp(), edges).item() == pytest.approx(1, abs=1e-6)


def test_the_inverse_stays_finite_at_the_ends_of_the_range(policy):
    ends = torch.tensor([-1.0, 1.0, 1.0])
    assert policy.log_prob(ends).isfinite().all()
    clamped = Normal(policy.loc, policy.scale).log_prob(torch.atanh(0.99 * ends))
    jacobian = torch.log(torch.tensor(1 - 0.99**2))
    torch.testing.assert_close(policy.log_prob(ends), clamped - jacobian)


def test_the_mean_is_the_squashed_location(policy):
    torch.testing.assert_close(policy.mean, torch.tanh(policy.loc))
    torch.testing.assert_close(sum_of_mean(policy), torch.tanh(policy.loc).sum())


def test_both_parameters_of_a_policy_are_compared(policy):
    compared = {name: value for name, value in comparison.leaves(policy, "policy") if isinstance(value, torch.Tensor)}
    assert set(compared) == {"policy.loc", "policy.scale"}
    assert torch.equal(compared["policy.scale"], policy.scale)


def test_samples_have_a_gradient_through_the_reparametrisation():
    loc, scale = torch.zeros(3, requires_grad=True), torch.ones(3, requires_grad=True)
    SquashedNormal(loc, scale).rsample().sum().backward()
    assert (loc.grad > 0).all()
    assert (scale.grad != 0).all()


@pytest.mark.parametrize(("raw", "scale"), [(-100.0, -10.0), (0.0, -4.0), (100.0, 2.0)])
def test_the_policys_scale_is_bounded(raw, scale):
    actor = SacActor()
    actor.fc3.weight.data.zero_()
    actor.fc3.bias.data = torch.tensor([0.3, raw])
    policy = actor(torch.randn(2, 3))
    torch.testing.assert_close(policy.scale, torch.full((2, 1), scale).exp())
    torch.testing.assert_close(policy.loc, torch.full((2, 1), 0.3))


def test_sac_states_lie_on_the_unit_circle():
    states = build_soft_actor_critic(BuildRequest("soft_actor_critic", "training", CPU)).args[0]
    torch.testing.assert_close(states[:, 0] ** 2 + states[:, 1] ** 2, torch.ones(256))
    assert 7 < states[:, 2].abs().max() <= 8


def test_drqs_encoder_is_its_formula_and_records_what_it_computes():
    torch.manual_seed(0)
    benchmark = build_drq(BuildRequest("drq", "training", CPU, batch_size=2))
    actor, (frames,) = benchmark.module, benchmark.args
    assert isinstance(actor, DrqActor)
    assert frames.min() >= 11
    assert frames.max() <= 227
    torch.testing.assert_close(frames, frames.round())
    policy = actor(frames)
    hidden = frames / 255
    for number, conv in enumerate(actor.encoder.convs):
        hidden = functional.conv2d(hidden, conv.weight, conv.bias, stride=2 if number == 0 else 1).relu()
    assert hidden.shape == (2, 32, 35, 35)
    torch.testing.assert_close(actor.encoder.outputs["obs"], frames / 255)
    torch.testing.assert_close(actor.encoder.outputs["conv4"], hidden)
    linear, norm = actor.encoder.head
    features = hidden.reshape(2, -1) @ linear.weight.T + linear.bias
    features = (features - features.mean(1, keepdim=True)) / (features.var(1, keepdim=True, unbiased=False) + norm.eps).sqrt()
    torch.testing.assert_close(actor.encoder.outputs["out"], features.tanh(), rtol=1e-4, atol=1e-5)
    assert set(actor.encoder.outputs) == {"obs", "conv1", "conv2", "conv3", "conv4", "out"}
    assert actor.outputs["mu"] is policy.loc
    assert actor.outputs["std"] is policy.scale


def test_drqs_weights_are_orthogonal():
    torch.manual_seed(0)
    weight = DrqActor().trunk[2].weight
    torch.testing.assert_close(weight @ weight.T, torch.eye(1024), rtol=0, atol=1e-4)


def test_drq_can_be_copied_after_a_step():
    torch.manual_seed(0)
    actor = DrqActor()
    frames = torch.rand(1, 9, 84, 84)
    mean = actor(frames).mean
    twin = copy.deepcopy(actor)
    assert twin.outputs == {}
    assert actor.outputs != {}
    assert torch.equal(twin(frames).mean, mean)


def test_the_painters_block_is_its_formula():
    torch.manual_seed(0)
    block = PainterBlock(4, 8, stride=2).eval()
    features = torch.randn(2, 4, 6, 6)
    hidden = (functional.conv2d(features, block.conv1.weight, stride=2, padding=1) / (1 + 1e-5) ** 0.5).relu()
    hidden = functional.conv2d(hidden, block.conv2.weight, padding=1) / (1 + 1e-5) ** 0.5
    shortcut = functional.conv2d(features[:, :, ::2, ::2], block.shortcut[0].weight) / (1 + 1e-5) ** 0.5
    torch.testing.assert_close(block(features), (hidden + shortcut).relu())


def test_the_painter_halves_the_resolution_in_every_stage():
    torch.manual_seed(0)
    actor = PainterActor()
    shapes = []
    for block in actor.blocks:
        block.register_forward_hook(lambda module, args, output: shapes.append(tuple(output.shape[1:])))
    actor(torch.rand(1, 9, 128, 128))
    assert shapes == [(c, s, s) for c, s in ((64, 32), (128, 16), (256, 8), (512, 4)) for _ in range(2)]


def test_the_painters_state_has_its_coordinates():
    (state,) = build_learningtopaint(BuildRequest("LearningToPaint", "training", CPU, batch_size=2)).args
    assert state.shape == (2, 9, 128, 128)
    assert torch.equal(state[0, 7, :, 5], torch.linspace(0, 1, 128))
    assert torch.equal(state[1, 8, 5, :], torch.linspace(0, 1, 128))
    assert state.min() >= 0
    assert state.max() <= 1

from __future__ import annotations

import torch
from torch.nn import functional

from tasks.suites.benchmark import BuildRequest
from tasks.suites.torchbench.meta_learning import OmniglotLearner, build_functorch_maml_omniglot

CPU = torch.device("cpu")


def by_hand(module, images):
    """The learner's formula, normalising by the batch."""
    hidden = images
    for stage in range(3):
        conv, norm = module[4 * stage], module[4 * stage + 1]
        hidden = functional.conv2d(hidden, conv.weight, conv.bias)
        mean, variance = hidden.mean((0, 2, 3), keepdim=True), hidden.var((0, 2, 3), keepdim=True, unbiased=False)
        hidden = (hidden - mean) / (variance + norm.eps).sqrt() * norm.weight.view(1, -1, 1, 1) + norm.bias.view(1, -1, 1, 1)
        side = hidden.size(2) // 2
        hidden = hidden.relu()[:, :, : 2 * side, : 2 * side].unflatten(3, (side, 2)).unflatten(2, (side, 2)).amax((3, 5))
    return hidden.flatten(1) @ module[-1].weight.T + module[-1].bias


def test_the_learner_is_its_formula():
    torch.manual_seed(0)
    module, images = OmniglotLearner(track_running_stats=True, width=8), torch.rand(5, 1, 28, 28)
    torch.testing.assert_close(module(images), by_hand(module, images))


def test_momentum_one_keeps_the_last_batch():
    torch.manual_seed(0)
    module = OmniglotLearner(track_running_stats=True, width=8)
    for _ in range(2):
        images = torch.rand(5, 1, 28, 28)
        module(images)
    torch.testing.assert_close(module[1].running_mean, module[0](images).mean((0, 2, 3)))


def test_without_statistics_eval_mode_normalises_by_the_batch():
    torch.manual_seed(0)
    module, images = OmniglotLearner(track_running_stats=False, width=8).eval(), torch.rand(5, 1, 28, 28)
    assert not list(module.buffers())
    torch.testing.assert_close(module(images), by_hand(module, images))


def test_functorchs_batch_counts_tasks_of_five():
    benchmark = build_functorch_maml_omniglot(BuildRequest("functorch_maml_omniglot", "training", CPU, batch_size=3))
    assert benchmark.args[0].shape == (15, 1, 28, 28)
    assert benchmark.batch_size == 3
    assert "15 images" in benchmark.fidelity

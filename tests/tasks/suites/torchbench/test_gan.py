from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from tasks.suites.torchbench.gan import CycleGanBlock, CycleGanGenerator, DcganDiscriminator, StarGanBlock, StarGanGenerator


def normalised(features):
    """Instance norm by its definition: each image and channel by its own biased mean and variance."""
    mean = features.mean(dim=(2, 3), keepdim=True)
    variance = features.var(dim=(2, 3), keepdim=True, unbiased=False)
    return (features - mean) / torch.sqrt(variance + 1e-5)


def test_the_discriminator_starts_at_even_odds():
    torch.manual_seed(0)
    module = DcganDiscriminator()
    module[-2].weight.data.zero_()
    assert torch.equal(module(torch.randn(2, 3, 64, 64)), torch.full((2, 1, 1, 1), 0.5))


def test_the_discriminators_weights_are_drawn_as_the_paper_says():
    torch.manual_seed(0)
    module = DcganDiscriminator()
    convolutions = [layer for layer in module if isinstance(layer, torch.nn.Conv2d)]
    norms = [layer for layer in module if isinstance(layer, torch.nn.BatchNorm2d)]
    assert [layer.out_channels for layer in convolutions] == [64, 128, 256, 512, 1]
    assert [layer.num_features for layer in norms] == [128, 256, 512]
    assert all(layer.weight.std().item() == pytest.approx(0.02, rel=0.05) for layer in convolutions)
    assert torch.cat([layer.weight for layer in norms]).mean().item() == pytest.approx(1, abs=0.01)


def test_stargans_block_is_its_formula():
    torch.manual_seed(0)
    block = StarGanBlock(4)
    features = torch.randn(2, 4, 6, 6)
    first, second = block.body[0], block.body[3]
    scale, shift = torch.randn(2, 4), torch.randn(2, 4)
    for norm, row in ((block.body[1], 0), (block.body[4], 1)):
        norm.weight.data, norm.bias.data = scale[row].clone(), shift[row].clone()
    hidden = normalised(functional.conv2d(features, first.weight, padding=1)) * scale[0].view(1, 4, 1, 1) + shift[0].view(1, 4, 1, 1)
    hidden = normalised(functional.conv2d(hidden.relu(), second.weight, padding=1)) * scale[1].view(1, 4, 1, 1) + shift[1].view(1, 4, 1, 1)
    torch.testing.assert_close(block(features), features + hidden)


def test_stargan_tracks_statistics_and_uses_them_in_eval_mode():
    torch.manual_seed(0)
    module = StarGanGenerator(width=4, blocks=1)
    images, attributes = torch.rand(2, 3, 16, 16), torch.tensor([[1.0, 0, 0, 1, 0], [0, 0, 1, 0, 1]])
    norm = module.layers[1]
    module.train()(images, attributes)
    features = module.layers[0](torch.cat([images, attributes.view(2, 5, 1, 1).expand(2, 5, 16, 16)], dim=1))
    torch.testing.assert_close(norm.running_mean, 0.1 * features.mean(dim=(0, 2, 3)))
    module.eval()
    before = norm.running_mean.clone()
    module(images, attributes)
    assert torch.equal(norm.running_mean, before)
    torch.testing.assert_close(norm(features), (features - before.view(1, 4, 1, 1)) / torch.sqrt(norm.running_var.view(1, 4, 1, 1) + 1e-5))


def test_each_attribute_reaches_stargans_output():
    torch.manual_seed(0)
    module = StarGanGenerator(width=4, blocks=1)
    attributes = torch.zeros(1, 5, requires_grad=True)
    module(torch.rand(1, 3, 16, 16), attributes).square().sum().backward()
    assert (attributes.grad != 0).all()


def test_cyclegans_block_is_its_formula():
    torch.manual_seed(0)
    block = CycleGanBlock(4)
    features = torch.randn(2, 4, 6, 6)

    def step(hidden, layer):
        return normalised(functional.conv2d(functional.pad(hidden, [1, 1, 1, 1], mode="reflect"), layer.weight, layer.bias))

    expected = features + step(step(features, block.body[1]).relu(), block.body[5])
    torch.testing.assert_close(block(features), expected)


@pytest.mark.parametrize("amp", [False, True])
def test_cyclegans_generator_keeps_the_size_and_has_finite_gradients(amp):
    torch.manual_seed(0)
    module = CycleGanGenerator(width=8, blocks=2)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=amp):
        images = module(torch.rand(1, 3, 32, 40))
    assert images.shape == (1, 3, 32, 40)
    assert images.abs().max() <= 1
    images.float().square().mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in module.parameters())
    assert not list(module.buffers()), "instance norm keeps no running statistics"

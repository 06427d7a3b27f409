from __future__ import annotations

import torch
from torch.nn import functional

from tasks.suites.torchbench.matting import Encoder, MattingGenerator, ResidualBlock


def inputs(batch=2, size=16):
    return tuple(torch.rand(batch, channels, size, size) for channels in (3, 3, 1, 4))


def normalised(features):
    mean, variance = features.mean((0, 2, 3), keepdim=True), features.var((0, 2, 3), keepdim=True, unbiased=False)
    return (features - mean) / (variance + 1e-5).sqrt()


def test_a_residual_block_is_its_formula():
    torch.manual_seed(0)
    block, x = ResidualBlock(3), torch.randn(2, 3, 5, 5)
    hidden = x
    for position in (1, 5):
        convolution = block.body[position]
        padded = torch.cat([hidden[:, :, 1:2], hidden, hidden[:, :, -2:-1]], dim=2)
        padded = torch.cat([padded[..., 1:2], padded, padded[..., -2:-1]], dim=3)
        hidden = normalised(functional.conv2d(padded, convolution.weight, convolution.bias))
        hidden = hidden.relu() if position == 1 else hidden
    torch.testing.assert_close(block(x), x + hidden)


def test_an_encoder_halves_twice():
    half, quarter = Encoder(4, 6)(torch.rand(1, 4, 16, 24))
    assert (half.shape, quarter.shape) == ((1, 12, 8, 12), (1, 24, 4, 6))


def test_the_motion_features_are_computed_and_unused():
    torch.manual_seed(0)
    model = MattingGenerator(2, 1, 1)
    images = [image.requires_grad_() for image in inputs()]
    calls = []
    model.motion.register_forward_hook(lambda module, args, output: calls.append(output))
    alpha, foreground = model(*images)
    (alpha.square().sum() + foreground.square().sum()).backward()
    assert len(calls) == 1
    assert all(parameter.grad is None for parameter in model.motion.parameters())
    assert images[3].grad is None
    assert all(image.grad.abs().sum() > 0 for image in images[:3])


def test_the_third_combiner_sees_the_background_again():
    torch.manual_seed(0)
    model = MattingGenerator(2, 1, 1).eval()
    seen = {}
    for name in ("combine_background", "combine_segmentation", "combine_motion"):
        getattr(model, name).register_forward_hook(lambda module, args, output, name=name: seen.update({name: args[0]}))
    model(*inputs())
    assert torch.equal(seen["combine_motion"], seen["combine_background"])
    assert not torch.equal(seen["combine_segmentation"], seen["combine_background"])


def test_alpha_is_bounded_and_the_foreground_is_not():
    torch.manual_seed(0)
    model = MattingGenerator(2, 1, 1)
    model.foreground[-1].bias.data.fill_(50.0)
    alpha, foreground = model(*inputs())
    assert alpha.shape == (2, 1, 16, 16)
    assert alpha.abs().max() < 1
    assert foreground.mean() > 20


def test_only_the_one_by_one_convolutions_have_no_bias():
    convolutions = [module for module in MattingGenerator(2).modules() if isinstance(module, torch.nn.Conv2d)]
    assert len(convolutions) == 4 * 3 + 3 + 1 + 26 + 3 + 3
    assert all((layer.bias is None) == (layer.kernel_size == (1, 1)) for layer in convolutions)

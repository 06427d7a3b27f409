from __future__ import annotations

import torch
from torch.nn import functional

from tasks.suites.torchbench.cifar import CifarDenseNet, CifarResNet, DenseLayer, ResidualUnit


def batch_normalised(features):
    mean, variance = features.mean((0, 2, 3), keepdim=True), features.var((0, 2, 3), keepdim=True, unbiased=False)
    return (features - mean) / (variance + 1e-5).sqrt()


def test_a_residual_unit_that_changes_the_width_is_its_formula():
    torch.manual_seed(0)
    unit, features = ResidualUnit(4, 6), torch.randn(3, 4, 8, 8)
    hidden = batch_normalised(functional.conv2d(features, unit.body[0].weight, stride=2, padding=1)).relu()
    hidden = batch_normalised(functional.conv2d(hidden, unit.body[3].weight, padding=1))
    shortcut = functional.conv2d(features[:, :, ::2, ::2], unit.shortcut.weight, unit.shortcut.bias)
    torch.testing.assert_close(unit(features), (hidden + shortcut).relu())


def test_a_residual_unit_of_one_width_has_a_plain_shortcut():
    unit = ResidualUnit(4, 4)
    unit.body[4].weight.data.zero_()
    features = torch.randn(3, 4, 8, 8)
    assert torch.equal(unit(features), features.relu())


def test_a_dense_layer_puts_new_features_in_front():
    torch.manual_seed(0)
    layer, features = DenseLayer(5, growth=3, bottleneck=2), torch.randn(2, 5, 6, 6)
    hidden = functional.conv2d(batch_normalised(features).relu(), layer.body[2].weight)
    hidden = functional.conv2d(batch_normalised(hidden).relu(), layer.body[5].weight, padding=1)
    torch.testing.assert_close(layer(features), torch.cat([hidden, features], dim=1))


def shapes_into_the_pool(module, images):
    pool = next(layer for layer in module if isinstance(layer, torch.nn.AdaptiveAvgPool2d))
    seen = []
    pool.register_forward_hook(lambda layer, args, output: seen.append(tuple(args[0].shape)))
    module(images)
    return seen


def test_widths_and_resolutions_before_the_pool():
    images = torch.randn(2, 3, 32, 32)
    assert shapes_into_the_pool(CifarResNet(), images) == [(2, 64, 8, 8)]
    assert shapes_into_the_pool(CifarDenseNet(), images) == [(2, 184, 4, 4)]

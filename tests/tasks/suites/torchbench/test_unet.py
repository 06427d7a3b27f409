from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from tasks.suites.torchbench.unet import DoubleConv, UNet, Up


@pytest.mark.parametrize(("height", "width"), [(16, 16), (40, 59), (33, 47)])
def test_any_size_comes_back(height, width):
    torch.manual_seed(0)
    assert UNet(width=2).eval()(torch.rand(1, 3, height, width)).shape == (1, 2, height, width)


def test_the_odd_historical_width_is_padded_on_the_way_up():
    module = UNet(width=2)
    widths = []
    for up in module.ups:
        up.upsample.register_forward_hook(lambda layer, args, output: widths.append(output.size(3)))
    with torch.no_grad():
        assert module(torch.rand(1, 3, 16, 959)).shape == (1, 2, 16, 959)
    assert widths == [118, 238, 478, 958]


def test_padding_is_zero_and_behind_the_upsampled_features():
    torch.manual_seed(0)
    up = Up(4, 3)
    seen = []
    up.conv.register_forward_pre_hook(lambda layer, args: seen.append(args[0]))
    deep, skip = torch.rand(1, 2, 4, 4) + 1, torch.rand(1, 2, 9, 9)
    up(deep, skip)
    merged = seen[0]
    assert torch.equal(merged[:, :2], skip)
    torch.testing.assert_close(merged[:, 2:, :8, :8], functional.interpolate(deep, size=(8, 8), mode="bilinear", align_corners=True))
    assert not merged[:, 2:, 8, :].any()
    assert not merged[:, 2:, :, 8].any()
    corners = merged[0, 2:, [0, 0, 7, 7], [0, 7, 0, 7]]
    torch.testing.assert_close(corners, deep[0, :, [0, 0, 3, 3], [0, 3, 0, 3]], msg="align_corners keeps the corners")


def test_the_double_convolution_is_its_formula():
    torch.manual_seed(0)
    module, hidden = DoubleConv(3, 5, 4).train(), torch.randn(2, 3, 6, 7)
    result = module(hidden)
    for conv, norm in ((module[0], module[1]), (module[3], module[4])):
        hidden = functional.conv2d(hidden, conv.weight, conv.bias, padding=1)
        mean, variance = hidden.mean((0, 2, 3), keepdim=True), hidden.var((0, 2, 3), keepdim=True, unbiased=False)
        hidden = ((hidden - mean) / (variance + norm.eps).sqrt()).relu()
    torch.testing.assert_close(result, hidden)

from __future__ import annotations

import torch

from tasks.suites.torchbench.yolo import Head, PyramidPooling, Residual, YoloV3


def test_pyramid_pooling_takes_maxima_over_windows():
    torch.manual_seed(0)
    x = torch.randn(1, 2, 7, 8)
    pooled = PyramidPooling()(x)
    for place, size in enumerate((13, 9, 5, 1)):
        reach = size // 2
        for row in range(7):
            for column in range(8):
                window = x[0, :, max(0, row - reach) : row + reach + 1, max(0, column - reach) : column + reach + 1]
                assert torch.equal(pooled[0, 2 * place : 2 * place + 2, row, column], window.amax(dim=(1, 2)))


def test_raw_predictions_are_the_convolutions_channels_per_anchor():
    head = Head(4, classes=2)
    x = torch.randn(2, 4, 3, 5)
    channels, raw = head.convolution(x), head(x)
    assert raw.shape == (2, 3, 3, 5, 7)
    assert raw.is_contiguous()
    for anchor in range(3):
        for field in range(7):
            assert torch.equal(raw[:, anchor, :, :, field], channels[:, 7 * anchor + field])


def test_predictions_come_from_three_strides():
    torch.manual_seed(0)
    predictions = YoloV3(2, classes=3)(torch.rand(2, 3, 32, 64))
    assert [tuple(prediction.shape) for prediction in predictions] == [(2, 3, 1, 2, 8), (2, 3, 2, 4, 8), (2, 3, 4, 8, 8)]


def test_the_layer_counts_are_the_papers():
    with torch.device("meta"):
        model = YoloV3()
    convolutions = [module for module in model.modules() if isinstance(module, torch.nn.Conv2d)]
    assert len(convolutions) == 76
    assert sum(layer.bias is not None for layer in convolutions) == 3
    assert sum(isinstance(module, Residual) for module in model.modules()) == 23
    assert sum(isinstance(module, torch.nn.MaxPool2d) for module in model.modules()) == 3
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert len(norms) == 73
    assert {(norm.momentum, norm.eps) for norm in norms} == {(0.03, 1e-4)}

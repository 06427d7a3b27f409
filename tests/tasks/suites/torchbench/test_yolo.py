from __future__ import annotations

import math

import pytest
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
    head = Head(4, 8, classes=2)
    x = torch.randn(2, 4, 3, 5)
    channels, raw = head.convolution(x), head(x)
    assert raw.shape == (2, 3, 3, 5, 7)
    assert raw.is_contiguous()
    for anchor in range(3):
        for field in range(7):
            assert torch.equal(raw[:, anchor, :, :, field], channels[:, 7 * anchor + field])


@pytest.mark.parametrize(("stride", "anchors"), [(32, [(116, 90), (156, 198), (373, 326)]), (8, [(10, 13), (16, 30), (33, 23)])])
def test_boxes_are_decoded_as_in_the_paper(stride, anchors):
    head = Head(1, stride, classes=2).eval()
    raw = torch.zeros(1, 3, 2, 4, 7)
    raw[0, 1, 1, 3] = torch.tensor([0.5, -1.0, 0.3, -0.2, 2.0, 1.0, -3.0])
    boxes = head._decode(raw).view(1, 3, 2, 4, 7)

    def sigmoid(value):
        return 1 / (1 + math.exp(-value))

    wanted = [
        (3 + sigmoid(0.5)) * stride,
        (1 + sigmoid(-1.0)) * stride,
        anchors[1][0] * math.exp(0.3),
        anchors[1][1] * math.exp(-0.2),
        sigmoid(2.0),
        sigmoid(1.0),
        sigmoid(-3.0),
    ]
    assert boxes[0, 1, 1, 3].tolist() == pytest.approx(wanted, rel=1e-5)
    assert boxes[0, 2, 0, 1].tolist() == pytest.approx([1.5 * stride, 0.5 * stride, *anchors[2], 0.5, 0.5, 0.5], rel=1e-5)


def test_grids_are_cached_until_the_size_changes():
    head = Head(1, 8, classes=2).eval()
    head(torch.randn(1, 1, 2, 4))
    grid = head.grid
    head(torch.randn(3, 1, 2, 4))
    assert head.grid is grid
    head(torch.randn(1, 1, 4, 2))
    assert head.grid.shape == (1, 1, 4, 2, 2)


def test_eval_mode_adds_all_boxes_to_the_raw_predictions():
    torch.manual_seed(0)
    model = YoloV3(2, classes=3).eval()
    boxes, raw = model(torch.rand(2, 3, 32, 64))
    assert [tuple(prediction.shape) for prediction in raw] == [(2, 3, 1, 2, 8), (2, 3, 2, 4, 8), (2, 3, 4, 8, 8)]
    assert boxes.shape == (2, 3 * (2 + 8 + 32), 8)
    torch.testing.assert_close(boxes[:, :6], model.deep_head[1]._decode(raw[0]))


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

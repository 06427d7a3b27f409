"""``yolov3``: YOLOv3 of Redmon and Farhadi, arXiv 1804.02767, with spatial pyramid pooling (arXiv 1406.4729) before the first head.

Darknet-53, then three heads at strides 32, 16 and 8 for 80 classes, each with three of the paper's nine anchors. The sweep runs it in
train mode in both modes, where the three raw tensors come out;
boxes are not decoded.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from tasks.suites.benchmark import Benchmark, BuildRequest
from tasks.suites.torchbench.rebuilt import assemble, batch_size_of

_HEIGHT, _WIDTH = 384, 512
_CLASSES = 80
_STAGES = (1, 2, 8, 8, 4)  # residual blocks of Darknet-53
_POOLS = (5, 9, 13)
_ANCHORS_PER_HEAD = 3
_FIDELITY = "train mode in inference too, as in the historical harness"


class Convolution(nn.Sequential):
    """Convolution without bias, batch norm, leaky ReLU; the size changes only with ``stride``."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False),
            nn.BatchNorm2d(outputs, eps=1e-4, momentum=0.03),
            nn.LeakyReLU(0.1, inplace=True),
        )


class Residual(nn.Module):
    """1x1 to half the channels, 3x3 back, plus the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(Convolution(channels, channels // 2, 1), Convolution(channels // 2, channels, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = x + self.body(x)
        return result


class PyramidPooling(nn.Module):
    """The input and its maxima over windows of 13, 9 and 5, concatenated; [B, C, H, W] -> [B, 4 C, H, W]."""

    def __init__(self) -> None:
        super().__init__()
        self.pools = nn.ModuleList(nn.MaxPool2d(size, stride=1, padding=size // 2) for size in reversed(_POOLS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([*(pool(x) for pool in self.pools), x], dim=1)


class Head(nn.Module):
    """Features [B, inputs, ny, nx] -> raw predictions [B, 3, ny, nx, 5 + classes].

    A prediction is x, y, width, height, objectness and one score per class.
    """

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.fields = classes + 5
        self.convolution = nn.Conv2d(inputs, _ANCHORS_PER_HEAD * self.fields, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.convolution(x)
        batch, _, rows, columns = x.shape
        return x.view(batch, _ANCHORS_PER_HEAD, self.fields, rows, columns).permute(0, 1, 3, 4, 2).contiguous()


class YoloV3(nn.Module):
    """Images [B, 3, H, W], H and W multiples of 32 -> raw predictions at strides 32, 16, 8.

    ``width`` is the number of channels of the first layer.
    """

    def __init__(self, width: int = 32, stages: tuple[int, ...] = _STAGES, classes: int = _CLASSES) -> None:
        super().__init__()
        self.stem = Convolution(3, width, 3)
        self.stages = nn.ModuleList(_stage(width << level, blocks) for level, blocks in enumerate(stages))
        deep, middle, shallow = 32 * width, 16 * width, 8 * width
        self.deep_neck = nn.Sequential(
            Convolution(deep, middle, 1),
            Convolution(middle, deep, 3),
            Convolution(deep, middle, 1),
            PyramidPooling(),
            Convolution(4 * middle, middle, 1),
            Convolution(middle, deep, 3),
            Convolution(deep, middle, 1),
        )
        self.deep_head = nn.Sequential(Convolution(middle, deep, 3), Head(deep, classes))
        self.middle_route = Convolution(middle, shallow, 1)
        self.middle_neck = _neck(shallow + middle, shallow)
        self.middle_head = nn.Sequential(Convolution(shallow, middle, 3), Head(middle, classes))
        self.shallow_route = Convolution(shallow, shallow // 2, 1)
        self.shallow_neck = _neck(shallow // 2 + shallow, shallow // 2)
        self.shallow_head = nn.Sequential(Convolution(shallow // 2, shallow, 3), Head(shallow, classes))

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        x = self.stem(x)
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        deep = self.deep_neck(features[-1])
        middle = self.middle_neck(torch.cat([_doubled(self.middle_route(deep)), features[-2]], dim=1))
        shallow = self.shallow_neck(torch.cat([_doubled(self.shallow_route(middle)), features[-3]], dim=1))
        return [self.deep_head(deep), self.middle_head(middle), self.shallow_head(shallow)]


def build_yolov3(request: BuildRequest) -> Benchmark:
    """Images [B, 3, 384, 512]."""
    request.check_options(())
    batch_size = batch_size_of(request)
    args = (torch.rand(batch_size, 3, _HEIGHT, _WIDTH),)
    return assemble(
        request,
        YoloV3(),
        args,
        batch_size,
        fidelity=None if request.training else _FIDELITY,
        always_train=True,
        training_tolerance=8e-2,
        tolerance_reason="upstream's tolerance for training this model: 73 batch norms with random weights",
    )


def _stage(inputs: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(Convolution(inputs, 2 * inputs, 3, stride=2), *(Residual(2 * inputs) for _ in range(blocks)))


def _neck(inputs: int, channels: int) -> nn.Sequential:
    layers = [Convolution(inputs, channels, 1)]
    for _ in range(2):
        layers += [Convolution(channels, 2 * channels, 3), Convolution(2 * channels, channels, 1)]
    return nn.Sequential(*layers)


def _doubled(x: torch.Tensor) -> torch.Tensor:
    return functional.interpolate(x, scale_factor=2, mode="nearest")

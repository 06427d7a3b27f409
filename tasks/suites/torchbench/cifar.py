"""Small image classifiers for 32x32 images.

* ``phlippe_resnet``: the CIFAR network of He et al., arXiv 1512.03385, section 4.2, with three blocks of each width.
* ``phlippe_densenet``: DenseNet-BC of Huang et al., arXiv 1608.06993, with growth 16 and four blocks of six layers.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from tasks.suites.benchmark import Benchmark, BuildRequest
from tasks.suites.torchbench.rebuilt import assemble, batch_size_of

_CLASSES = 10


class ResidualUnit(nn.Module):
    """Two 3x3 convolutions around a shortcut; where the width changes, the resolution halves and a 1x1 convolution adapts the shortcut."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        changes = channels_in != channels_out
        stride = 2 if changes else 1
        self.body = nn.Sequential(
            nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(),
            nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels_out),
        )
        self.shortcut = nn.Conv2d(channels_in, channels_out, 1, stride=stride) if changes else None

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        hidden = self.body(features)
        if self.shortcut is not None:
            features = self.shortcut(features)
        return functional.relu(hidden + features)


class CifarResNet(nn.Sequential):
    """Images [B, 3, 32, 32] -> logits [B, 10]."""

    def __init__(self, widths: tuple[int, ...] = (16, 32, 64), units: int = 3) -> None:
        layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 3, padding=1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU()]
        channels = widths[0]
        for width in widths:
            for _ in range(units):
                layers.append(ResidualUnit(channels, width))
                channels = width
        super().__init__(*layers, *_classifier(channels))


class DenseLayer(nn.Module):
    """[B, C, H, W] -> [B, C + growth, H, W]: new features through a bottleneck, in front of the old ones."""

    def __init__(self, channels: int, growth: int, bottleneck: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, bottleneck * growth, 1, bias=False),
            nn.BatchNorm2d(bottleneck * growth),
            nn.ReLU(),
            nn.Conv2d(bottleneck * growth, growth, 3, padding=1, bias=False),
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.body(features), features], dim=1)


class CifarDenseNet(nn.Sequential):
    """Images [B, 3, 32, 32] -> logits [B, 10]; transitions between blocks halve width and resolution."""

    def __init__(self, blocks: int = 4, layers_per_block: int = 6, growth: int = 16, bottleneck: int = 2) -> None:
        channels = growth * bottleneck
        layers: list[nn.Module] = [nn.Conv2d(3, channels, 3, padding=1)]
        for block in range(blocks):
            for _ in range(layers_per_block):
                layers.append(DenseLayer(channels, growth, bottleneck))
                channels += growth
            if block < blocks - 1:
                layers += [nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, channels // 2, 1, bias=False), nn.AvgPool2d(2)]
                channels //= 2
        super().__init__(*layers, nn.BatchNorm2d(channels), nn.ReLU(), *_classifier(channels))


def build_phlippe_resnet(request: BuildRequest) -> Benchmark:
    """The residual network on noise images."""
    return _build(request, CifarResNet())


def build_phlippe_densenet(request: BuildRequest) -> Benchmark:
    """The densely connected network on noise images."""
    return _build(request, CifarDenseNet())


def _build(request: BuildRequest, module: nn.Module) -> Benchmark:
    request.check_options(())
    batch_size = batch_size_of(request)
    return assemble(request, module, (torch.randn(batch_size, 3, 32, 32),), batch_size)


def _classifier(channels: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, _CLASSES)]

"""Segmentation: U-Net after Ronneberger, Fischer and Brox, arXiv 1505.04597, with padding, batch norm and bilinear upsampling."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from tasks.suites.benchmark import Benchmark, BuildRequest
from tasks.suites.torchbench.rebuilt import assemble, batch_size_of

_HEIGHT, _WIDTH = 640, 959
_CLASSES = 2


class DoubleConv(nn.Sequential):
    """Twice a 3x3 convolution with bias, batch norm and ReLU; [B, C_in, H, W] -> [B, C_out, H, W]."""

    def __init__(self, channels_in: int, channels_out: int, channels_mid: int | None = None) -> None:
        middle = channels_mid or channels_out
        super().__init__(
            nn.Conv2d(channels_in, middle, 3, padding=1),
            nn.BatchNorm2d(middle),
            nn.ReLU(inplace=True),
            nn.Conv2d(middle, channels_out, 3, padding=1),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(inplace=True),
        )


class Up(nn.Module):
    """Doubles the resolution, pads to the skip connection's size and merges with it.

    ``deep`` [B, C/2, h, w] and ``skip`` [B, C/2, H, W] -> [B, C_out, H, W], where C is ``channels_in``.
    """

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.upsample = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
        self.conv = DoubleConv(channels_in, channels_out, channels_in // 2)

    def forward(self, deep: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        deep = self.upsample(deep)
        missing_rows = skip.size(2) - deep.size(2)
        missing_columns = skip.size(3) - deep.size(3)
        left, top = missing_columns // 2, missing_rows // 2
        deep = functional.pad(deep, [left, missing_columns - left, top, missing_rows - top])
        result: torch.Tensor = self.conv(torch.cat([skip, deep], dim=1))
        return result


class UNet(nn.Module):
    """Images [B, 3, H, W] -> class scores [B, 2, H, W], for any H and W from 16 on."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.inc = DoubleConv(3, width)
        downs = [(width, 2 * width), (2 * width, 4 * width), (4 * width, 8 * width), (8 * width, 8 * width)]
        self.downs = nn.ModuleList(nn.Sequential(nn.MaxPool2d(2), DoubleConv(*channels)) for channels in downs)
        ups = [(16 * width, 4 * width), (8 * width, 2 * width), (4 * width, width), (2 * width, width)]
        self.ups = nn.ModuleList(Up(*channels) for channels in ups)
        self.outc = nn.Conv2d(width, _CLASSES, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        skips = [self.inc(images)]
        for down in self.downs:
            skips.append(down(skips[-1]))
        hidden = skips.pop()
        for up in self.ups:
            hidden = up(hidden, skips.pop())
        scores: torch.Tensor = self.outc(hidden)
        return scores


def build_pytorch_unet(request: BuildRequest) -> Benchmark:
    """Random images; options ``height`` and ``width``. The odd default width exercises the padding."""
    request.check_options(("height", "width"))
    batch_size = batch_size_of(request)
    height, width = request.integer_option("height", _HEIGHT), request.integer_option("width", _WIDTH)
    return assemble(request, UNet(), (torch.rand(batch_size, 3, height, width),), batch_size)

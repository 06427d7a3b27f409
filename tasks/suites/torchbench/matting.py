"""``Background_Matting``: the matting generator of Sengupta et al., arXiv 2004.00626.

Four encoders see the photograph, the background without the subject, a soft segmentation and the neighbouring frames. The benchmark
computes the motion features of the last and never uses them: their place in the context switch is taken by the background's, once
more. A compiler drops that branch, an eager run pays for it.
"""

from __future__ import annotations

import torch
from torch import nn

from tasks.suites.benchmark import Benchmark, BuildRequest
from tasks.suites.torchbench.rebuilt import assemble

_BATCH = 3
_SIZE = 512
_IMAGE, _SEGMENTATION, _MOTION = 3, 1, 4  # channels
_FIDELITY = "random images in the historical batch of 3, which both modes use"


class Encoder(nn.Module):
    """[B, inputs, H, W] -> features at half resolution [B, 2 w, H / 2, W / 2] and at a quarter [B, 4 w, H / 4, W / 4]."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.to_half = nn.Sequential(
            nn.ReflectionPad2d(3),
            *_normed(nn.Conv2d(inputs, width, 7)),
            *_normed(nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)),
        )
        self.to_quarter = nn.Sequential(*_normed(nn.Conv2d(2 * width, 4 * width, 3, stride=2, padding=1)))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        half = self.to_half(x)
        return half, self.to_quarter(half)


class ResidualBlock(nn.Module):
    """Two reflected 3x3 convolutions with batch norm around a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.ReflectionPad2d(1),
            *_normed(nn.Conv2d(channels, channels, 3)),
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = x + self.body(x)
        return result


class MattingGenerator(nn.Module):
    """Image and background [B, 3, H, W], segmentation [B, 1, H, W], frames [B, 4, H, W] -> alpha [B, 1, H, W], foreground [B, 3, H, W]."""

    def __init__(self, width: int = 64, shared_blocks: int = 7, head_blocks: int = 3) -> None:
        super().__init__()
        deep = 4 * width
        self.image = Encoder(_IMAGE, width)
        self.background = Encoder(_IMAGE, width)
        self.segmentation = Encoder(_SEGMENTATION, width)
        self.motion = Encoder(_MOTION, width)
        self.combine_background = _combiner(2 * deep, width)
        self.combine_segmentation = _combiner(2 * deep, width)
        self.combine_motion = _combiner(2 * deep, width)
        self.shared = nn.Sequential(*_combiner(deep + 3 * width, deep), *(ResidualBlock(deep) for _ in range(shared_blocks)))
        self.alpha_blocks = nn.Sequential(*(ResidualBlock(deep) for _ in range(head_blocks)))
        self.foreground_blocks = nn.Sequential(*(ResidualBlock(deep) for _ in range(head_blocks)))
        self.alpha = nn.Sequential(*_enlarged(deep, 2 * width), *_enlarged(2 * width, width), *_image_layer(width, 1), nn.Tanh())
        self.foreground_half = nn.Sequential(*_enlarged(deep, 2 * width))
        self.foreground = nn.Sequential(*_enlarged(deep, width), *_image_layer(width, 3))
        self.apply(_draw_weights)

    def forward(
        self, image: torch.Tensor, background: torch.Tensor, segmentation: torch.Tensor, frames: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        image_half, image_features = self.image(image)
        _, background_features = self.background(background)
        _, segmentation_features = self.segmentation(segmentation)
        _, _motion_features = self.motion(frames)  # unused, see above
        context = torch.cat(
            [
                self.combine_background(torch.cat([image_features, background_features], dim=1)),
                self.combine_segmentation(torch.cat([image_features, segmentation_features], dim=1)),
                self.combine_motion(torch.cat([image_features, background_features], dim=1)),
            ],
            dim=1,
        )
        shared = self.shared(torch.cat([image_features, context], dim=1))
        alpha = self.alpha(self.alpha_blocks(shared))
        half = self.foreground_half(self.foreground_blocks(shared))
        return alpha, self.foreground(torch.cat([half, image_half], dim=1))


def build_background_matting(request: BuildRequest) -> Benchmark:
    """The historical batch of three images of 512x512; ``ValueError`` for any other batch size."""
    request.check_options(())
    if request.batch_size not in (None, _BATCH):
        raise ValueError(f"{request.name}: the batch is fixed at {_BATCH} images, not {request.batch_size}")
    channels = (_IMAGE, _IMAGE, _SEGMENTATION, _MOTION)
    args = tuple(2 * torch.rand(_BATCH, count, _SIZE, _SIZE) - 1 for count in channels)
    return assemble(request, MattingGenerator(), args, _BATCH, fidelity=_FIDELITY)


def _normed(convolution: nn.Conv2d) -> tuple[nn.Module, ...]:
    return convolution, nn.BatchNorm2d(convolution.out_channels), nn.ReLU(inplace=True)


def _combiner(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(*_normed(nn.Conv2d(inputs, outputs, 1, bias=False)))


def _enlarged(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    return nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True), *_normed(nn.Conv2d(inputs, outputs, 3, padding=1))


def _image_layer(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    return nn.ReflectionPad2d(3), nn.Conv2d(inputs, outputs, 7)


def _draw_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.xavier_uniform_(module.weight, gain=2**0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    if isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.2)

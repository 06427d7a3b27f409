"""Generative adversarial networks, each reduced to the one network that the sweep steps.

* ``dcgan``: the discriminator of Radford, Metz and Chintala, arXiv 1511.06434.
* ``pytorch_stargan``: the generator of Choi et al., arXiv 1711.09020, appendix table 4.
* ``pytorch_CycleGAN_and_pix2pix``: the nine-block generator of Zhu et al., arXiv 1703.10593, appendix 7.2.
"""

from __future__ import annotations

import torch
from torch import nn

from tasks.suites.benchmark import Benchmark, BuildRequest
from tasks.suites.torchbench.rebuilt import assemble, batch_size_of

_INIT_STD = 0.02
_STARGAN_LABELS = 5


class DcganDiscriminator(nn.Sequential):
    """Images [B, 3, 64, 64] -> probability of being real [B, 1, 1, 1]."""

    def __init__(self, width: int = 64) -> None:
        layers: list[nn.Module] = [nn.Conv2d(3, width, 4, stride=2, padding=1, bias=False), nn.LeakyReLU(0.2, inplace=True)]
        for channels in (width, 2 * width, 4 * width):
            layers += [
                nn.Conv2d(channels, 2 * channels, 4, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(2 * channels),
                nn.LeakyReLU(0.2, inplace=True),
            ]
        super().__init__(*layers, nn.Conv2d(8 * width, 1, 4, bias=False), nn.Sigmoid())
        self.apply(_draw_gaussian_weights)


class StarGanBlock(nn.Module):
    """Two 3x3 convolutions with instance norm around a shortcut; [B, C, H, W] -> the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            _tracked_norm(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            _tracked_norm(channels),
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = features + self.body(features)
        return result


class StarGanGenerator(nn.Module):
    """Images [B, 3, H, W] and target attributes [B, labels] -> images of the same shape in (-1, 1).

    The attributes become constant extra channels. Instance norm has an affine part and running statistics throughout.
    """

    def __init__(self, width: int = 64, labels: int = _STARGAN_LABELS, blocks: int = 6) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3 + labels, width, 7, padding=3, bias=False), _tracked_norm(width), nn.ReLU(inplace=True)]
        for channels in (width, 2 * width):
            layers += [
                nn.Conv2d(channels, 2 * channels, 4, stride=2, padding=1, bias=False),
                _tracked_norm(2 * channels),
                nn.ReLU(inplace=True),
            ]
        layers += [StarGanBlock(4 * width) for _ in range(blocks)]
        for channels in (4 * width, 2 * width):
            layers += [
                nn.ConvTranspose2d(channels, channels // 2, 4, stride=2, padding=1, bias=False),
                _tracked_norm(channels // 2),
                nn.ReLU(inplace=True),
            ]
        layers += [nn.Conv2d(width, 3, 7, padding=3, bias=False), nn.Tanh()]
        self.layers = nn.Sequential(*layers)

    def forward(self, images: torch.Tensor, attributes: torch.Tensor) -> torch.Tensor:
        planes = attributes.view(attributes.size(0), attributes.size(1), 1, 1).repeat(1, 1, images.size(2), images.size(3))
        result: torch.Tensor = self.layers(torch.cat([images, planes], dim=1))
        return result


class CycleGanBlock(nn.Module):
    """Two reflection-padded 3x3 convolutions with plain instance norm around a shortcut; the shape is kept."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3),
            nn.InstanceNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3),
            nn.InstanceNorm2d(channels),
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = features + self.body(features)
        return result


class CycleGanGenerator(nn.Sequential):
    """Images [B, 3, H, W] -> images of the same shape in (-1, 1); H and W are multiples of 4.

    Instance norm has neither an affine part nor running statistics, hence every convolution has a bias.
    """

    def __init__(self, width: int = 64, blocks: int = 9) -> None:
        layers: list[nn.Module] = [nn.ReflectionPad2d(3), nn.Conv2d(3, width, 7), nn.InstanceNorm2d(width), nn.ReLU(inplace=True)]
        for channels in (width, 2 * width):
            layers += [
                nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1),
                nn.InstanceNorm2d(2 * channels),
                nn.ReLU(inplace=True),
            ]
        layers += [CycleGanBlock(4 * width) for _ in range(blocks)]
        for channels in (4 * width, 2 * width):
            layers += [
                nn.ConvTranspose2d(channels, channels // 2, 3, stride=2, padding=1, output_padding=1),
                nn.InstanceNorm2d(channels // 2),
                nn.ReLU(inplace=True),
            ]
        super().__init__(*layers, nn.ReflectionPad2d(3), nn.Conv2d(width, 3, 7), nn.Tanh())
        self.apply(_draw_gaussian_weights)


def build_dcgan(request: BuildRequest) -> Benchmark:
    """The discriminator on noise images."""
    request.check_options(())
    batch_size = batch_size_of(request)
    return assemble(request, DcganDiscriminator(), (torch.randn(batch_size, 3, 64, 64),), batch_size)


def build_pytorch_stargan(request: BuildRequest) -> Benchmark:
    """The generator on random 128x128 images and random binary attributes."""
    request.check_options(())
    batch_size = batch_size_of(request)
    images = _random_images(batch_size, 128)
    attributes = torch.randint(0, 2, (batch_size, _STARGAN_LABELS)).float()
    return assemble(request, StarGanGenerator(), (images, attributes), batch_size, fidelity="random images in place of CelebA's")


def build_pytorch_cyclegan_and_pix2pix(request: BuildRequest) -> Benchmark:
    """The generator on random 256x256 images."""
    request.check_options(())
    batch_size = batch_size_of(request)
    images = _random_images(batch_size, 256)
    return assemble(request, CycleGanGenerator(), (images,), batch_size, fidelity="random images in place of horse2zebra's")


def _tracked_norm(channels: int) -> nn.InstanceNorm2d:
    return nn.InstanceNorm2d(channels, affine=True, track_running_stats=True)


def _random_images(batch_size: int, side: int) -> torch.Tensor:
    return torch.rand(batch_size, 3, side, side) * 2 - 1


def _draw_gaussian_weights(module: nn.Module) -> None:
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.normal_(module.weight, 0.0, _INIT_STD)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, _INIT_STD)
        nn.init.zeros_(module.bias)

"""``Super_SloMo``: frame interpolation after Jiang et al., arXiv 1712.00080, with its training loss inside the forward pass.

A first U-Net estimates the flow between two frames, a second refines it for the time in between. The perceptual term compares VGG-16
features of layer conv4_3; its network is frozen, and has random weights here.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from tasks.suites.benchmark import Benchmark, BuildRequest
from tasks.suites.torchbench.rebuilt import assemble, batch_size_of

_SIZE = 352
_TIMES = 7  # frames between the two given ones
_SLOPE = 0.1
_RECONSTRUCTION, _WARP, _PERCEPTUAL = 204, 102, 0.005  # weights of the loss terms; smoothness has 1
_VGG_BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3))  # channels and convolutions up to conv4_3
_FIDELITY = "random frames, and random weights in the frozen VGG-16 of the perceptual loss"


class Down(nn.Module):
    """Average pooling by two, then two convolutions; [B, inner, H, W] -> [B, outer, H / 2, W / 2]."""

    def __init__(self, inner: int, outer: int, kernel: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inner, outer, kernel, padding=kernel // 2)
        self.second = nn.Conv2d(outer, outer, kernel, padding=kernel // 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.avg_pool2d(x, 2)
        x = functional.leaky_relu(self.first(x), _SLOPE)
        return functional.leaky_relu(self.second(x), _SLOPE)


class Up(nn.Module):
    """Bilinear upsampling by two, a convolution, and one over the result and the skip; -> [B, outer, 2 H, 2 W]."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inner, outer, 3, padding=1)
        self.second = nn.Conv2d(2 * outer, outer, 3, padding=1)

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        x = functional.interpolate(x, scale_factor=2, mode="bilinear")
        x = functional.leaky_relu(self.first(x), _SLOPE)
        return functional.leaky_relu(self.second(torch.cat((x, skip), 1)), _SLOPE)


class UNet(nn.Module):
    """[B, inputs, H, W] -> [B, outputs, H, W]; H and W are multiples of 32. The output passes the leaky ReLU too."""

    def __init__(self, inputs: int, outputs: int, width: int = 32) -> None:
        super().__init__()
        channels = [width, 2 * width, 4 * width, 8 * width, 16 * width, 16 * width]
        kernels = [5, 3, 3, 3, 3]
        self.first = nn.Conv2d(inputs, width, 7, padding=3)
        self.second = nn.Conv2d(width, width, 7, padding=3)
        self.down = nn.ModuleList(map(Down, channels[:-1], channels[1:], kernels))
        self.up = nn.ModuleList(map(Up, channels[:0:-1], channels[-2::-1]))
        self.last = nn.Conv2d(width, outputs, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.leaky_relu(self.first(x), _SLOPE)
        x = functional.leaky_relu(self.second(x), _SLOPE)
        skips = []
        for level in self.down:
            skips.append(x)
            x = level(x)
        for level in self.up:
            x = level(x, skips.pop())
        return functional.leaky_relu(self.last(x), _SLOPE)


class BackWarp(nn.Module):
    """Samples an image [B, C, H, W] where the flow [B, 2, H, W] (x and y, in pixels) points, bilinearly and zero outside."""

    columns: torch.Tensor
    rows: torch.Tensor

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        self.register_buffer("rows", rows.contiguous(), persistent=False)
        self.register_buffer("columns", columns.contiguous(), persistent=False)

    def forward(self, image: torch.Tensor, flow: torch.Tensor) -> torch.Tensor:
        height, width = self.rows.shape
        x = self.columns.unsqueeze(0).expand_as(flow[:, 0]).float() + flow[:, 0]
        y = self.rows.unsqueeze(0).expand_as(flow[:, 1]).float() + flow[:, 1]
        # Pixel centres lie half a pixel inside the unit interval that grid_sample maps to [-1, 1].
        x = 2 * (x / width - (0.5 - 0.5 / width))
        y = 2 * (y / height - (0.5 - 0.5 / height))
        return functional.grid_sample(image, torch.stack((x, y), dim=3), align_corners=False)


class SuperSloMo(nn.Module):
    """Time indices int64 [B] in 0..6, two frames and the true one between them [B, 3, H, W] -> the frame in between, and the loss."""

    times: torch.Tensor

    def __init__(self, height: int = _SIZE, width: int = _SIZE, channels: int = 32, vgg_scale: int = 1) -> None:
        super().__init__()
        self.flow = UNet(6, 4, channels)
        self.interpolation = UNet(20, 5, channels)
        self.warp = BackWarp(height, width)
        self.features = vgg_features(vgg_scale)
        self.register_buffer("times", torch.linspace(0.125, 0.875, _TIMES), persistent=False)

    def forward(
        self, index: torch.Tensor, first: torch.Tensor, second: torch.Tensor, truth: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        flows = self.flow(torch.cat((first, second), dim=1))
        forward_flow, backward_flow = flows[:, :2], flows[:, 2:]
        to_first, to_second = self._flows_between(index, forward_flow, backward_flow)
        warped = (self.warp(first, to_first), self.warp(second, to_second))
        refinement = self.interpolation(
            torch.cat((first, second, forward_flow, backward_flow, to_second, to_first, warped[1], warped[0]), dim=1)
        )
        frame = self._blend(index, first, second, to_first + refinement[:, :2], to_second + refinement[:, 2:4], refinement[:, 4:5])
        warp_loss = (
            functional.l1_loss(warped[0], truth)
            + functional.l1_loss(warped[1], truth)
            + functional.l1_loss(self.warp(first, backward_flow), second)
            + functional.l1_loss(self.warp(second, forward_flow), first)
        )
        loss = (
            _RECONSTRUCTION * functional.l1_loss(frame, truth)
            + _WARP * warp_loss
            + _PERCEPTUAL * functional.mse_loss(self.features(frame), self.features(truth))
            + roughness(backward_flow)
            + roughness(forward_flow)
        )
        return frame, loss

    def _flows_between(
        self, index: torch.Tensor, forward_flow: torch.Tensor, backward_flow: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Equation 4 of the paper: flows from time t to the first and to the second frame."""
        times = self.times
        crossed = _planes(-(1 - times[index]) * times[index])
        late = _planes(times[index] * times[index])
        early = _planes((1 - times[index]) * (1 - times[index]))
        return crossed * forward_flow + late * backward_flow, early * forward_flow + crossed * backward_flow

    def _blend(
        self,
        index: torch.Tensor,
        first: torch.Tensor,
        second: torch.Tensor,
        to_first: torch.Tensor,
        to_second: torch.Tensor,
        visibility: torch.Tensor,
    ) -> torch.Tensor:
        """Equation 5 of the paper: both frames warped to time t, weighted by closeness and visibility."""
        from_first = torch.sigmoid(visibility)
        from_second = 1 - from_first
        warped_first: torch.Tensor = self.warp(first, to_first)
        warped_second: torch.Tensor = self.warp(second, to_second)
        near_first, near_second = _planes(1 - self.times[index]), _planes(self.times[index])
        total = near_first * from_first + near_second * from_second
        return (near_first * from_first * warped_first + near_second * from_second * warped_second) / total


def roughness(flow: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference of neighbours along both axes of [B, 2, H, W], summed."""
    horizontal = torch.mean(torch.abs(flow[:, :, :, :-1] - flow[:, :, :, 1:]))
    vertical = torch.mean(torch.abs(flow[:, :, :-1, :] - flow[:, :, 1:, :]))
    return horizontal + vertical


def vgg_features(scale: int = 1) -> nn.Sequential:
    """VGG-16 (arXiv 1409.1556) up to conv4_3 before its ReLU, frozen; ``scale`` divides the channels."""
    layers: list[nn.Module] = []
    inputs = 3
    for channels, convolutions in _VGG_BLOCKS:
        for _ in range(convolutions):
            layers += [nn.Conv2d(inputs, channels // scale, 3, padding=1), nn.ReLU(inplace=True)]
            inputs = channels // scale
        layers.append(nn.MaxPool2d(2, stride=2))
    features = nn.Sequential(*layers[:-2])
    for module in features:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return features.requires_grad_(requires_grad=False)


def build_super_slomo(request: BuildRequest) -> Benchmark:
    """Time indices [B] and three frames [B, 3, 352, 352]."""
    request.check_options(())
    batch_size = batch_size_of(request)
    index = torch.randint(_TIMES, (batch_size,))
    frames = tuple(torch.randn(batch_size, 3, _SIZE, _SIZE) for _ in range(3))
    return assemble(request, SuperSloMo(), (index, *frames), batch_size, fidelity=_FIDELITY)


def _planes(coefficients: torch.Tensor) -> torch.Tensor:
    return coefficients[:, None, None, None]

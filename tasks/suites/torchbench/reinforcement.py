"""Reinforcement learning: the policy networks of three agents, each on random states.

* ``LearningToPaint``: the actor of Huang, Heng and Zhou, arXiv 1903.04411.
* ``drq``: the actor of Kostrikov, Yarats and Fergus, arXiv 2004.13649: a pixel encoder and a Gaussian policy.
* ``soft_actor_critic``: the actor of Haarnoja et al., arXiv 1801.01290.

The last two return a ``SquashedNormal`` distribution; their loss is the sum of its mean.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.distributions import Normal, TanhTransform, TransformedDistribution, constraints
from torch.distributions.constraints import Constraint
from torch.nn import functional

from tasks.suites.benchmark import Benchmark, BuildRequest
from tasks.suites.torchbench.rebuilt import assemble, batch_size_of

_LOG_STD_LOW, _LOG_STD_HIGH = -10.0, 2.0
_HIDDEN_WIDTH = 1024
_PAINT_SIDE = 128
_PAINT_ACTIONS = 65  # five strokes of thirteen numbers


class ClampedTanhTransform(TanhTransform):
    """tanh, whose inverse first limits its argument to ``[-limit, limit]`` so that it stays finite at the ends of the range."""

    def __init__(self, limit: float) -> None:
        super().__init__(cache_size=1)
        self.limit = limit

    def _inverse(self, y: torch.Tensor) -> torch.Tensor:
        return torch.atanh(y.clamp(-self.limit, self.limit))


class SquashedNormal(TransformedDistribution):
    """The distribution of ``tanh(loc + scale * N(0, 1))``, elementwise; ``mean`` is the squashed ``loc``, not the expectation.

    Arguments are not validated: validation copies a flag from the device on every call, and whether torch does it by default depends
    on whether torch.compile has been used before in the process. That would make the eager time a matter of order.
    """

    arg_constraints: dict[str, Constraint] = {"loc": constraints.real, "scale": constraints.positive}  # noqa: RUF012 - as torch declares it

    def __init__(self, loc: torch.Tensor, scale: torch.Tensor, limit: float = 0.99) -> None:
        self.loc = loc
        self.scale = scale
        super().__init__(Normal(loc, scale, validate_args=False), [ClampedTanhTransform(limit)], validate_args=False)

    @property
    def mean(self) -> torch.Tensor:
        squashed = self.loc
        for transform in self.transforms:
            squashed = transform(squashed)
        return squashed


class SacActor(nn.Module):
    """States [B, S] -> ``SquashedNormal`` over actions [B, A]."""

    def __init__(self, state_size: int = 3, action_size: int = 1) -> None:
        super().__init__()
        self.fc1 = nn.Linear(state_size, _HIDDEN_WIDTH)
        self.fc2 = nn.Linear(_HIDDEN_WIDTH, _HIDDEN_WIDTH)
        self.fc3 = nn.Linear(_HIDDEN_WIDTH, 2 * action_size)

    def forward(self, states: torch.Tensor) -> SquashedNormal:
        hidden = functional.relu(self.fc1(states))
        hidden = functional.relu(self.fc2(hidden))
        loc, log_std = self.fc3(hidden).chunk(2, dim=1)
        return SquashedNormal(loc, _bounded_log_std(log_std).exp())


class RecordingModule(nn.Module):
    """Keeps what it computed last in the dict ``outputs``, as the agent's logging wants it: a side effect that a compiler must honour."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs: dict[str, torch.Tensor] = {}

    def __getstate__(self) -> dict[str, Any]:
        # Copies start with no record: torch refuses to copy tensors that carry a graph.
        return {**self.__dict__, "outputs": {}}


class PixelEncoder(RecordingModule):
    """Stacked frames [B, 9, 84, 84] in 0..255 -> features [B, 50] in (-1, 1)."""

    def __init__(self, frames: int = 9, channels: int = 32, feature_size: int = 50) -> None:
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(frames, channels, 3, stride=2)])
        self.convs.extend(nn.Conv2d(channels, channels, 3) for _ in range(3))
        self.head = nn.Sequential(nn.Linear(channels * 35 * 35, feature_size), nn.LayerNorm(feature_size))

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        hidden = frames / 255.0
        self.outputs["obs"] = hidden
        for index, conv in enumerate(self.convs, start=1):
            hidden = torch.relu(conv(hidden))
            self.outputs[f"conv{index}"] = hidden
        features = torch.tanh(self.head(hidden.flatten(1)))
        self.outputs["out"] = features
        return features


class DrqActor(RecordingModule):
    """Stacked frames [B, 9, 84, 84] -> ``SquashedNormal`` over actions [B, A]."""

    def __init__(self, action_size: int = 1, feature_size: int = 50) -> None:
        super().__init__()
        self.encoder = PixelEncoder(feature_size=feature_size)
        self.trunk = nn.Sequential(
            nn.Linear(feature_size, _HIDDEN_WIDTH),
            nn.ReLU(inplace=True),
            nn.Linear(_HIDDEN_WIDTH, _HIDDEN_WIDTH),
            nn.ReLU(inplace=True),
            nn.Linear(_HIDDEN_WIDTH, 2 * action_size),
        )
        self.apply(_draw_orthogonal_weights)

    def forward(self, frames: torch.Tensor) -> SquashedNormal:
        loc, log_std = self.trunk(self.encoder(frames)).chunk(2, dim=-1)
        std = _bounded_log_std(log_std).exp()
        self.outputs["mu"] = loc
        self.outputs["std"] = std
        return SquashedNormal(loc, std)


class PainterBlock(nn.Module):
    """ResNet's basic block; [B, C_in, H, W] -> [B, C_out, H / stride, W / stride]."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels_in != channels_out:
            self.shortcut = nn.Sequential(nn.Conv2d(channels_in, channels_out, 1, stride=stride, bias=False), nn.BatchNorm2d(channels_out))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        hidden = functional.relu(self.bn1(self.conv1(features)))
        hidden = self.bn2(self.conv2(hidden))
        hidden += self.shortcut(features)
        return functional.relu(hidden)


class PainterActor(nn.Module):
    """Target, canvas, step and coordinates [B, 9, 128, 128] -> stroke parameters [B, 65] in (0, 1).

    ResNet-18 without the stem's pooling: all four stages halve the resolution instead, down to 4x4.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(9, 64, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        blocks: list[nn.Module] = []
        channels_in = 64
        for channels in (64, 128, 256, 512):
            blocks += [PainterBlock(channels_in, channels, stride=2), PainterBlock(channels, channels, stride=1)]
            channels_in = channels
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(512, _PAINT_ACTIONS)

    def forward(self, state: torch.Tensor) -> torch.Tensor:
        hidden = self.blocks(functional.relu(self.bn1(self.conv1(state))))
        hidden = functional.avg_pool2d(hidden, 4).flatten(1)
        return torch.sigmoid(self.fc(hidden))


def sum_of_mean(policy: SquashedNormal) -> torch.Tensor:
    """The sweep's loss for a policy that returns a distribution."""
    return policy.mean.float().sum()


def build_learningtopaint(request: BuildRequest) -> Benchmark:
    """Random target and canvas, one step number for the whole batch, and the pixels' coordinates in [0, 1]."""
    request.check_options(())
    batch_size = batch_size_of(request)
    pictures = torch.rand(batch_size, 6, _PAINT_SIDE, _PAINT_SIDE)
    step = torch.full((batch_size, 1, _PAINT_SIDE, _PAINT_SIDE), 0.5)
    axis = torch.linspace(0, 1, _PAINT_SIDE)
    coordinates = torch.stack(torch.meshgrid(axis, axis, indexing="ij")).expand(batch_size, 2, _PAINT_SIDE, _PAINT_SIDE)
    state = torch.cat([pictures, step, coordinates], dim=1)
    return assemble(request, PainterActor(), (state,), batch_size, fidelity="random pictures in place of CelebA's and the painter's canvas")


def build_drq(request: BuildRequest) -> Benchmark:
    """Random frames with the value range of the rendered environment's."""
    request.check_options(())
    batch_size = batch_size_of(request)
    frames = torch.randint(11, 228, (batch_size, 9, 84, 84)).float()
    return assemble(
        request, DrqActor(), (frames,), batch_size, loss=sum_of_mean, fidelity="random frames in place of a rendered environment's"
    )


def build_soft_actor_critic(request: BuildRequest) -> Benchmark:
    """Random pendulum states: cosine and sine of a random angle, and an angular velocity in [-8, 8]."""
    request.check_options(())
    batch_size = batch_size_of(request)
    angles = torch.rand(batch_size) * 2 * math.pi
    velocities = torch.rand(batch_size) * 16 - 8
    states = torch.stack([angles.cos(), angles.sin(), velocities], dim=1)
    return assemble(
        request,
        SacActor(),
        (states,),
        batch_size,
        loss=sum_of_mean,
        fidelity="random states in place of copies of one transition of a simulated pendulum",
        training_tolerance=8e-2,
        tolerance_reason="upstream's tolerance for training this model: a sum over the batch of a squashed mean, with cancellation",
    )


def _bounded_log_std(raw: torch.Tensor) -> torch.Tensor:
    return _LOG_STD_LOW + 0.5 * (_LOG_STD_HIGH - _LOG_STD_LOW) * (torch.tanh(raw) + 1)


def _draw_orthogonal_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.orthogonal_(module.weight)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        nn.init.orthogonal_(module.weight, nn.init.calculate_gain("relu"))
        if module.bias is not None:
            nn.init.zeros_(module.bias)

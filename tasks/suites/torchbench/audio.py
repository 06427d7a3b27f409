"""``demucs``: music source separation in the time domain, after Défossez et al., arXiv 1911.13254.

What is stepped is a training wrapper: it augments the separate sources at random (shift, sign, channel swap, remix across the batch),
sums them to a mixture and separates that again. It runs in train mode only, in both modes of the sweep. The random numbers are drawn
inside the module, so two runs agree only from the same generator state.
"""

from __future__ import annotations

import torch
from torch import nn

from tasks.suites.benchmark import Benchmark, BuildRequest
from tasks.suites.torchbench.rebuilt import assemble, batch_size_of

_KERNEL, _STRIDE, _CONTEXT = 8, 4, 3
_REFERENCE_STD = 0.1
_SHIFT = 44100  # samples: one second
_SAMPLES = 426888
_REMIX_GROUP = 4
_STREAMS, _CHANNELS = 5, 2  # the mixture, then four sources
_FIDELITY = "random noise instead of music; train mode in inference too, as its authors' benchmark has no other"


class Lstm(nn.Module):
    """Two bidirectional layers over time and a linear layer back to the width; [B, width, T] -> the same shape."""

    def __init__(self, width: int, layers: int = 2) -> None:
        super().__init__()
        self.lstm = nn.LSTM(width, width, num_layers=layers, bidirectional=True)
        self.linear = nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden, _ = self.lstm(x.permute(2, 0, 1))
        result: torch.Tensor = self.linear(hidden).permute(1, 2, 0)
        return result


class Demucs(nn.Module):
    """Mixture [B, channels, T] -> sources [B, sources, channels, T'], where T' is ``output_length(T, depth)``.

    A U-Net of strided convolutions with gated linear units around an LSTM. No convolution is padded, so skips are trimmed at both ends.
    """

    def __init__(self, width: int = 64, depth: int = 6, sources: int = _STREAMS - 1, channels: int = _CHANNELS) -> None:
        super().__init__()
        self.sources = sources
        self.channels = channels
        self.encoder = nn.ModuleList()
        self.decoder = nn.ModuleList()
        inner, outer, produced = channels, width, sources * channels
        for level in range(depth):
            self.encoder.append(_encoder_level(inner, outer))
            self.decoder.insert(0, _decoder_level(outer, produced, last=level == 0))
            inner, produced, outer = outer, outer, 2 * outer
        self.lstm = Lstm(inner)
        _rescale_convolutions(self)

    def forward(self, mixture: torch.Tensor) -> torch.Tensor:
        x = mixture
        skips = []
        for level in self.encoder:
            x = level(x)
            skips.append(x)
        x = self.lstm(x)
        for level in self.decoder:
            x = level(x + center_trim(skips.pop(-1), x))
        separated: torch.Tensor = x
        return separated.view(x.size(0), self.sources, self.channels, x.size(-1))


class Shift(nn.Module):
    """Starts each source [B, S, C, T] at a random sample; ``samples`` shorter. In eval mode all start at the first."""

    def __init__(self, samples: int) -> None:
        super().__init__()
        self.samples = samples

    def forward(self, sources: torch.Tensor) -> torch.Tensor:
        batch, streams, channels, time = sources.shape
        length = time - self.samples
        if not self.training:
            return sources[..., :length]
        offsets = torch.randint(self.samples, (batch, streams, 1, 1), device=sources.device).expand(-1, -1, channels, -1)
        return sources.gather(3, torch.arange(length, device=sources.device) + offsets)


class FlipSign(nn.Module):
    """Negates each source [B, S, C, T] with probability one half."""

    def forward(self, sources: torch.Tensor) -> torch.Tensor:
        batch, streams = sources.shape[:2]
        if not self.training:
            return sources
        signs = torch.randint(2, (batch, streams, 1, 1), device=sources.device, dtype=torch.float32)
        return sources * (2 * signs - 1)


class FlipChannels(nn.Module):
    """Swaps the two channels of each source [B, S, 2, T] with probability one half."""

    def forward(self, sources: torch.Tensor) -> torch.Tensor:
        batch, streams, channels, time = sources.shape
        if not self.training or channels != 2:
            return sources
        left = torch.randint(2, (batch, streams, 1, 1), device=sources.device).expand(-1, -1, -1, time)
        return torch.cat([sources.gather(2, left), sources.gather(2, 1 - left)], dim=2)


class Remix(nn.Module):
    """Permutes each source [B, S, C, T] across groups of ``group`` examples; B has to be a multiple of it."""

    def __init__(self, group: int) -> None:
        super().__init__()
        self.group = group

    def forward(self, sources: torch.Tensor) -> torch.Tensor:
        batch, streams, channels, time = sources.shape
        if not self.training:
            return sources
        groups = batch // self.group
        order = torch.argsort(torch.rand(groups, self.group, streams, 1, 1, device=sources.device), dim=1)
        grouped = sources.view(groups, self.group, streams, channels, time)
        return grouped.gather(1, order.expand(-1, -1, -1, channels, time)).view(batch, streams, channels, time)


class Separation(nn.Module):
    """Streams [B, 1 + S, C, T], mixture first -> the augmented sources [B, S, C, T - shift] and their estimates [B, S, C, T']."""

    def __init__(self, model: Demucs, shift: int, remix_group: int) -> None:
        super().__init__()
        self.model = model
        self.augment = nn.Sequential(Shift(shift), FlipSign(), FlipChannels(), Remix(remix_group))

    def forward(self, streams: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        sources = self.augment(streams[:, 1:])
        return sources, self.model(sources.sum(dim=1))


def center_trim(x: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """The middle of ``x`` along the last axis, as long as ``reference``; an odd surplus loses one more at the end."""
    surplus = x.size(-1) - reference.size(-1)
    if surplus < 0:
        raise ValueError(f"cannot trim {x.size(-1)} samples to {reference.size(-1)}")
    return x[..., surplus // 2 : x.size(-1) - (surplus - surplus // 2)]


def output_length(samples: int, depth: int) -> int:
    """How many samples ``depth`` levels give for ``samples``: unpadded convolutions down, context and transposed convolutions up."""
    for _ in range(depth):
        samples = (samples - _KERNEL) // _STRIDE + 1
    for _ in range(depth):
        samples = (samples - _CONTEXT) * _STRIDE + _KERNEL
    return samples


def build_demucs(request: BuildRequest) -> Benchmark:
    """Batch [B, 5, 2, 426888]; ``ValueError`` unless B is below four or a multiple of four, which remixing needs."""
    request.check_options(())
    batch_size = batch_size_of(request)
    group = min(_REMIX_GROUP, batch_size)
    if batch_size % group:
        raise ValueError(f"{request.name}: batch_size must be below {_REMIX_GROUP} or a multiple of it, not {batch_size}")
    module = Separation(Demucs(), _SHIFT, group)
    args = (torch.rand(batch_size, _STREAMS, _CHANNELS, _SAMPLES),)
    return assemble(request, module, args, batch_size, fidelity=_FIDELITY, always_train=True)


def _encoder_level(inner: int, outer: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv1d(inner, outer, _KERNEL, _STRIDE), nn.ReLU(), nn.Conv1d(outer, 2 * outer, 1), nn.GLU(dim=1))


def _decoder_level(outer: int, produced: int, *, last: bool) -> nn.Sequential:
    layers = [nn.Conv1d(outer, 2 * outer, _CONTEXT), nn.GLU(dim=1), nn.ConvTranspose1d(outer, produced, _KERNEL, _STRIDE)]
    return nn.Sequential(*layers) if last else nn.Sequential(*layers, nn.ReLU())


def _rescale_convolutions(model: nn.Module) -> None:
    """Section 4.3 of the paper: divide weights and bias by the root of the initial standard deviation over the reference."""
    for module in model.modules():
        if isinstance(module, (nn.Conv1d, nn.ConvTranspose1d)):
            scale = (module.weight.detach().std() / _REFERENCE_STD).sqrt()
            with torch.no_grad():
                for parameter in module.parameters():
                    parameter.div_(scale)

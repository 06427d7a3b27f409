"""``tacotron2``: the spectrogram predictor of Shen et al., arXiv 1712.05884, trained with teacher forcing.

The decoder is a Python loop over mel frames, about 830 of them for a batch of LJSpeech sentences; a compiler that unrolls it takes
longer than any deadline. The option ``mel_frames`` sets the length: 64 by default, ``mel_frames: 832`` for the historical one.
Dropout in the pre-net never rests. The model runs in train mode in both modes of the sweep.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from tasks.suites.benchmark import Benchmark, BuildRequest
from tasks.suites.torchbench.rebuilt import assemble, batch_size_of

_SYMBOLS = 148
_MELS = 80
_TEXT_LENGTH = 160  # symbols in the longest sentence
_MEL_FRAMES = 64
_GATE_AFTER_END = 1e3
_KERNEL = 5


class Encoder(nn.Module):
    """Embedded text [B, width, T] and lengths [B], longest first -> [B, T, width]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(_normed_convolution(width, width, "relu") for _ in range(3))
        self.lstm = nn.LSTM(width, width // 2, batch_first=True, bidirectional=True)

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        for convolution in self.convolutions:
            x = functional.dropout(functional.relu(convolution(x)), 0.5, self.training)
        packed = pack_padded_sequence(x.transpose(1, 2), lengths.cpu(), batch_first=True)
        self.lstm.flatten_parameters()
        hidden, _ = self.lstm(packed)
        result, _ = pad_packed_sequence(hidden, batch_first=True)
        return result


class PreNet(nn.Module):
    """Two bottleneck layers with dropout, in eval mode too: without it the decoder would lean on the frame it is given."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList((_linear(inputs, width, bias=False), _linear(width, width, bias=False)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = functional.dropout(functional.relu(layer(x)), p=0.5, training=True)
        return x


class LocationAttention(nn.Module):
    """Attention that also sees where it has looked before (arXiv 1506.07503): weights [B, T] sum to one over unmasked positions."""

    def __init__(self, query_width: int, memory_width: int, width: int, filters: int, kernel: int) -> None:
        super().__init__()
        self.query = _linear(query_width, width, bias=False, gain="tanh")
        self.memory = _linear(memory_width, width, bias=False, gain="tanh")
        self.location_convolution = nn.Conv1d(2, filters, kernel, padding=(kernel - 1) // 2, bias=False)
        nn.init.xavier_uniform_(self.location_convolution.weight)
        self.location = _linear(filters, width, bias=False, gain="tanh")
        self.energy = _linear(width, 1, bias=False)

    def forward(
        self, query: torch.Tensor, memory: torch.Tensor, keys: torch.Tensor, history: torch.Tensor, hidden: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Context [B, width] and weights [B, T] for ``query`` [B, Q].

        ``keys`` are the projected memory, ``history`` [B, 2, T] the last and the summed weights, ``hidden`` is true beyond a row's end.
        """
        location = self.location(self.location_convolution(history).transpose(1, 2))
        energies = self.energy(torch.tanh(self.query(query.unsqueeze(1)) + location + keys)).squeeze(-1)
        energies.data.masked_fill_(hidden, -float("inf"))
        weights = functional.softmax(energies, dim=1)
        context = torch.bmm(weights.unsqueeze(1), memory).squeeze(1)
        return context, weights


class State(NamedTuple):
    """What the decoder carries from frame to frame: two LSTM states, attention weights, their sum, and the context."""

    attention: tuple[torch.Tensor, torch.Tensor]
    decoder: tuple[torch.Tensor, torch.Tensor]
    weights: torch.Tensor
    summed_weights: torch.Tensor
    context: torch.Tensor


class Decoder(nn.Module):
    """Memory [B, T, memory_width], target mels [B, mels, F] -> mels [B, mels, F], gates [B, F], alignments [B, F, T]."""

    def __init__(self, mels: int, memory_width: int, width: int, prenet_width: int, attention_width: int) -> None:
        super().__init__()
        self.mels = mels
        self.width = width
        self.prenet = PreNet(mels, prenet_width)
        self.attention_rnn = nn.LSTMCell(prenet_width + memory_width, width)
        self.attention = LocationAttention(width, memory_width, attention_width, filters=32, kernel=31)
        self.decoder_rnn = nn.LSTMCell(width + memory_width, width)
        self.projection = _linear(width + memory_width, mels)
        self.gate = _linear(width + memory_width, 1, gain="sigmoid")

    def forward(
        self, memory: torch.Tensor, targets: torch.Tensor, lengths: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        first = memory.new_zeros(1, memory.size(0), self.mels)
        inputs = self.prenet(torch.cat((first, targets.permute(2, 0, 1)), dim=0))
        keys = self.attention.memory(memory)
        hidden = ~within(lengths)
        state = self._start(memory)
        mels: list[torch.Tensor] = []
        gates: list[torch.Tensor] = []
        alignments: list[torch.Tensor] = []
        while len(mels) < inputs.size(0) - 1:
            mel, gate, state = self._step(inputs[len(mels)], state, memory, keys, hidden)
            mels.append(mel)
            gates.append(gate)
            alignments.append(state.weights)
        return torch.stack(mels, dim=2), torch.cat(gates, dim=1), torch.stack(alignments, dim=1)

    def _start(self, memory: torch.Tensor) -> State:
        batch, time, memory_width = memory.shape
        zeros = memory.new_zeros
        return State(
            attention=(zeros(batch, self.width), zeros(batch, self.width)),
            decoder=(zeros(batch, self.width), zeros(batch, self.width)),
            weights=zeros(batch, time),
            summed_weights=zeros(batch, time),
            context=zeros(batch, memory_width),
        )

    def _step(
        self, frame: torch.Tensor, state: State, memory: torch.Tensor, keys: torch.Tensor, hidden: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, State]:
        query, query_cell = self.attention_rnn(torch.cat((frame, state.context), dim=-1), state.attention)
        query = functional.dropout(query, 0.1, self.training)
        history = torch.stack((state.weights, state.summed_weights), dim=1)
        context, weights = self.attention(query, memory, keys, history, hidden)
        decoded, decoded_cell = self.decoder_rnn(torch.cat((query, context), dim=-1), state.decoder)
        decoded = functional.dropout(decoded, 0.1, self.training)
        output = torch.cat((decoded, context), dim=1)
        after = State((query, query_cell), (decoded, decoded_cell), weights, state.summed_weights + weights, context)
        return self.projection(output), self.gate(output), after


class PostNet(nn.Module):
    """Five convolutions that predict a residual to the mels; [B, mels, F] -> the same shape."""

    def __init__(self, mels: int, width: int) -> None:
        super().__init__()
        inner = [_normed_convolution(width, width, "tanh") for _ in range(3)]
        self.convolutions = nn.ModuleList([_normed_convolution(mels, width, "tanh"), *inner, _normed_convolution(width, mels, "linear")])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for index, convolution in enumerate(self.convolutions):
            x = convolution(x)
            if index < len(self.convolutions) - 1:
                x = torch.tanh(x)
            x = functional.dropout(x, 0.5, self.training)
        return x


class Tacotron2(nn.Module):
    """Text int64 [B, T], its lengths, mels [B, 80, F], their lengths -> mels, refined mels, gates [B, F], alignments [B, F, T].

    ``longest`` is the length of the longest text; the batch carries it, the model measures it anew. Frames beyond a row's length are
    overwritten outside autograd.
    """

    def __init__(self, width: int = 512, rnn_width: int = 1024, prenet_width: int = 256, attention_width: int = 128) -> None:
        super().__init__()
        self.embedding = nn.Embedding(_SYMBOLS, width)
        bound = (6.0 / (_SYMBOLS + width)) ** 0.5
        nn.init.uniform_(self.embedding.weight, -bound, bound)
        self.encoder = Encoder(width)
        self.decoder = Decoder(_MELS, width, rnn_width, prenet_width, attention_width)
        self.postnet = PostNet(_MELS, width)

    def forward(
        self,
        text: torch.Tensor,
        text_lengths: torch.Tensor,
        mels: torch.Tensor,
        longest: int,  # noqa: ARG002 - part of the historical inputs
        mel_lengths: torch.Tensor,
    ) -> list[torch.Tensor]:
        memory = self.encoder(self.embedding(text).transpose(1, 2), text_lengths)
        predicted, gates, alignments = self.decoder(memory, mels, text_lengths)
        refined = predicted + self.postnet(predicted)
        beyond = ~within(mel_lengths)
        planes = beyond.expand(_MELS, -1, -1).permute(1, 0, 2)
        predicted.data.masked_fill_(planes, 0.0)
        refined.data.masked_fill_(planes, 0.0)
        gates.data.masked_fill_(beyond, _GATE_AFTER_END)
        return [predicted, refined, gates, alignments]


def within(lengths: torch.Tensor) -> torch.Tensor:
    """Bool [B, longest], true before a row's end; the longest length becomes a Python number."""
    longest = int(torch.max(lengths).item())
    return torch.arange(longest, device=lengths.device) < lengths.unsqueeze(1)


def build_tacotron2(request: BuildRequest) -> Benchmark:
    """Batch of B sentences of at most 160 symbols and ``mel_frames`` frames, longest first."""
    request.check_options(("mel_frames",))
    batch_size = batch_size_of(request)
    frames = request.integer_option("mel_frames", _MEL_FRAMES)
    fidelity = f"synthetic speech of {frames} mel frames instead of LJSpeech, whose batches have about 832 (option mel_frames: 832)"
    return assemble(
        request,
        Tacotron2(),
        speech(batch_size, frames),
        batch_size,
        fidelity=fidelity,
        always_train=True,
        training_tolerance=8e-2,
        tolerance_reason="upstream's tolerance for training this model",
    )


def speech(batch_size: int, frames: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int, torch.Tensor]:
    """Text, its lengths, mels, the longest text, mel lengths; lengths fall evenly to half along the batch."""
    text_lengths = _falling_lengths(_TEXT_LENGTH, batch_size)
    mel_lengths = _falling_lengths(frames, batch_size)
    text = torch.randint(1, _SYMBOLS, (batch_size, _TEXT_LENGTH)) * (torch.arange(_TEXT_LENGTH) < text_lengths[:, None])
    mels = torch.randn(batch_size, _MELS, frames) * (torch.arange(frames) < mel_lengths[:, None]).unsqueeze(1)
    return text, text_lengths, mels, _TEXT_LENGTH, mel_lengths


def _falling_lengths(longest: int, batch_size: int) -> torch.Tensor:
    return torch.tensor([max(1, longest - row * longest // (2 * batch_size)) for row in range(batch_size)])


def _linear(inputs: int, outputs: int, *, bias: bool = True, gain: str = "linear") -> nn.Linear:
    layer = nn.Linear(inputs, outputs, bias=bias)
    nn.init.xavier_uniform_(layer.weight, gain=_gain(gain))
    return layer


def _normed_convolution(inputs: int, outputs: int, gain: str) -> nn.Sequential:
    convolution = nn.Conv1d(inputs, outputs, _KERNEL, padding=_KERNEL // 2)
    nn.init.xavier_uniform_(convolution.weight, gain=_gain(gain))
    return nn.Sequential(convolution, nn.BatchNorm1d(outputs))


def _gain(nonlinearity: str) -> float:
    return {"linear": 1.0, "sigmoid": 1.0, "tanh": 5 / 3, "relu": math.sqrt(2)}[nonlinearity]

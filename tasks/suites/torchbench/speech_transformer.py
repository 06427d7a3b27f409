"""``speech_transformer``: the Speech-Transformer of Dong, Xu and Xu (ICASSP 2018) on filter-bank features.

Post-norm Transformer layers; attention folds the heads into the batch; the output layer is tied to the target embedding. Masks are
built row by row from length tensors, and the decoder strips, frames and pads its targets in Python, so the shapes depend on the
data: this is where compilers break the graph.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from tasks.suites.benchmark import Benchmark, BuildRequest
from tasks.suites.torchbench.bert import sinusoids
from tasks.suites.torchbench.rebuilt import assemble

_START, _END, _IGNORED = 1, 2, -1
_FIRST_TOKEN = 3
_FEATURES = 320  # four stacked frames of 80 filter banks
# One batch of utterances: frames of speech and characters of its transcript.
_FRAMES = (204, 200, 196, 180, 147, 137, 129, 113, 105, 86)
_CHARACTERS = (17, 15, 21, 18, 9, 9, 9, 12, 11, 10)
_FIDELITY = "random features and transcripts of the lengths of the historical batch of 10, which both modes use"


class Attention(nn.Module):
    """Multi-head attention with residual and norm; ``mask`` is bool [B, queries, keys], true where a key is hidden."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (width // heads) ** 0.5
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.weights_dropout = nn.Dropout(dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, query: torch.Tensor, memory: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        batch, length, _ = query.shape
        queries, keys, values = (self._fold(x) for x in (self.query(query), self.key(memory), self.value(memory)))
        scores = torch.bmm(queries, keys.transpose(1, 2)) / self.scale
        weights = scores.masked_fill(mask.repeat(self.heads, 1, 1), float("-inf")).softmax(dim=2)
        context = torch.bmm(self.weights_dropout(weights), values)
        context = context.view(self.heads, batch, length, -1).permute(1, 2, 0, 3).contiguous().view(batch, length, -1)
        result: torch.Tensor = self.norm(self.dropout(self.output(context)) + query)
        return result

    def _fold(self, x: torch.Tensor) -> torch.Tensor:
        """[B, T, width] -> [heads * B, T, width / heads]."""
        batch, length, width = x.shape
        x = x.view(batch, length, self.heads, width // self.heads)
        return x.permute(2, 0, 1, 3).contiguous().view(-1, length, width // self.heads)


class FeedForward(nn.Module):
    """Two linear layers with ReLU, residual and norm."""

    def __init__(self, width: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.expand = nn.Linear(width, inner)
        self.contract = nn.Linear(inner, width)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.norm(self.dropout(self.contract(functional.relu(self.expand(x)))) + x)
        return result


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward; positions beyond a row's length are zeroed in place after each."""

    def __init__(self, width: int, heads: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(width, heads, dropout)
        self.feed_forward = FeedForward(width, inner, dropout)

    def forward(self, x: torch.Tensor, present: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = self.attention(x, x, mask)
        x *= present
        x = self.feed_forward(x)
        x *= present
        return x


class DecoderLayer(nn.Module):
    """Self-attention, attention to the encoder's output, feed-forward; padding is zeroed in place after each."""

    def __init__(self, width: int, heads: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(width, heads, dropout)
        self.cross_attention = Attention(width, heads, dropout)
        self.feed_forward = FeedForward(width, inner, dropout)

    def forward(
        self, x: torch.Tensor, memory: torch.Tensor, present: torch.Tensor, mask: torch.Tensor, memory_mask: torch.Tensor
    ) -> torch.Tensor:
        x = self.attention(x, x, mask)
        x *= present
        x = self.cross_attention(x, memory, memory_mask)
        x *= present
        x = self.feed_forward(x)
        x *= present
        return x


class Encoder(nn.Module):
    """Features [B, T, 320] and lengths [B] -> [B, T, width]."""

    positions: torch.Tensor

    def __init__(self, features: int, width: int, layers: int, heads: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.input = nn.Linear(features, width)
        self.norm = nn.LayerNorm(width)
        self.register_buffer("positions", sinusoids(5000, width)[None], persistent=False)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(EncoderLayer(width, heads, inner, dropout) for _ in range(layers))

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        present = presence(features, lengths).unsqueeze(-1)
        mask = hidden_keys(features, lengths, features.size(1))
        x = self.dropout(self.norm(self.input(features)) + self.positions[:, : features.size(1)])
        for layer in self.layers:
            x = layer(x, present, mask)
        result: torch.Tensor = x
        return result


class Decoder(nn.Module):
    """Targets [B, L] padded with -1, memory [B, T, width], its lengths -> scores [B, L + 1, vocabulary] and the ids to predict."""

    positions: torch.Tensor

    def __init__(self, vocabulary: int, width: int, layers: int, heads: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.embedding_scale = width**0.5
        self.register_buffer("positions", sinusoids(5000, width)[None], persistent=False)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(DecoderLayer(width, heads, inner, dropout) for _ in range(layers))
        self.output = nn.Linear(width, vocabulary, bias=False)
        nn.init.xavier_normal_(self.output.weight)
        self.output.weight = self.embedding.weight

    def forward(self, targets: torch.Tensor, memory: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        inputs, expected = framed(targets)
        present = inputs.ne(_END).float().unsqueeze(-1)
        mask = (inputs.eq(_END).unsqueeze(1).expand(-1, inputs.size(1), -1) + later_keys(inputs)).gt(0)
        memory_mask = hidden_keys(memory, lengths, inputs.size(1))
        x = self.dropout(self.embedding(inputs) * self.embedding_scale + self.positions[:, : inputs.size(1)])
        for layer in self.layers:
            x = layer(x, memory, present, mask, memory_mask)
        return self.output(x), expected


class SpeechTransformer(nn.Module):
    """Features [B, T, 320], lengths [B], targets [B, L] -> scores [B, L + 1, vocabulary] and the ids to predict [B, L + 1]."""

    def __init__(
        self,
        vocabulary: int = 1014,
        features: int = _FEATURES,
        width: int = 512,
        layers: int = 6,
        heads: int = 8,
        inner: int = 2048,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.encoder = Encoder(features, width, layers, heads, inner, dropout)
        self.decoder = Decoder(vocabulary, width, layers, heads, inner, dropout)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(self, features: torch.Tensor, lengths: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        memory = self.encoder(features, lengths)
        scores, expected = self.decoder(targets, memory, lengths)
        return scores, expected


def presence(x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Float [B, T] in the dtype of ``x``: 1 within a row's length, 0 beyond; one assignment per row."""
    present = x.new_ones(x.size()[:-1])
    for row in range(x.size(0)):
        present[row, lengths[row] :] = 0
    return present


def hidden_keys(x: torch.Tensor, lengths: torch.Tensor, queries: int) -> torch.Tensor:
    """Bool [B, queries, T], true where the key lies beyond the row's length."""
    return presence(x, lengths).lt(1).unsqueeze(1).expand(-1, queries, -1)


def later_keys(tokens: torch.Tensor) -> torch.Tensor:
    """Uint8 [B, L, L], 1 where the key lies after the query."""
    batch, length = tokens.shape
    triangle = torch.triu(torch.ones((length, length), device=tokens.device, dtype=torch.uint8), diagonal=1)
    return triangle.unsqueeze(0).expand(batch, -1, -1)


def framed(targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Targets [B, L] padded with -1 -> start + target padded with the end id, and target + end padded with -1; both [B, L + 1]."""
    rows = [row[row != _IGNORED] for row in targets]
    start, end = rows[0].new([_START]), rows[0].new([_END])
    inputs = [torch.cat([start, row], dim=0) for row in rows]
    expected = [torch.cat([row, end], dim=0) for row in rows]
    return padded(inputs, _END), padded(expected, _IGNORED)


def padded(rows: list[torch.Tensor], value: int) -> torch.Tensor:
    """One-dimensional rows as a matrix of the longest row's length, the rest filled with ``value``."""
    matrix = rows[0].new_full((len(rows), max(row.size(0) for row in rows)), value)
    for index, row in enumerate(rows):
        matrix[index, : row.size(0)] = row
    return matrix


def build_speech_transformer(request: BuildRequest) -> Benchmark:
    """The historical batch of ten utterances; ``ValueError`` for any other batch size."""
    request.check_options(())
    batch_size = len(_FRAMES)
    if request.batch_size not in (None, batch_size):
        raise ValueError(f"{request.name}: the batch is fixed at {batch_size} utterances, not {request.batch_size}")
    module = SpeechTransformer()
    return assemble(request, module, utterances(module.decoder.embedding.num_embeddings), batch_size, fidelity=_FIDELITY)


def utterances(vocabulary: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features float [10, 204, 320] with zeros beyond each length, lengths int64 [10], targets int64 [10, 21] padded with -1."""
    lengths = torch.tensor(_FRAMES)
    characters = torch.tensor(_CHARACTERS)
    features = torch.randn(len(_FRAMES), max(_FRAMES), _FEATURES)
    features = features * (torch.arange(max(_FRAMES)) < lengths[:, None]).unsqueeze(-1)
    targets = torch.randint(_FIRST_TOKEN, vocabulary, (len(_CHARACTERS), max(_CHARACTERS)))
    return features, lengths, torch.where(torch.arange(max(_CHARACTERS)) < characters[:, None], targets, _IGNORED)

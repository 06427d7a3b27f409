"""``attention_is_all_you_need_pytorch``: the base Transformer of Vaswani et al., arXiv 1706.03762, for translation.

Post-norm layers, attention projections without bias, vocabularies and output layer not shared; residuals are added in place, and the
position table is cloned in every call. Multi30k sentences are replaced by random ones of the same padded shapes.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from tasks.suites.benchmark import Benchmark, BuildRequest
from tasks.suites.torchbench.bert import sinusoids
from tasks.suites.torchbench.rebuilt import assemble, batch_size_of

_PAD = 1
_FIRST_WORD = 4  # ids below are unknown, padding, start and end
_SOURCE_TOKENS, _TARGET_TOKENS = 33, 31
_SHORTEST_SENTENCE = 6
_FIDELITY = "synthetic sentences in the padded shapes of Multi30k"


class Attention(nn.Module):
    """Multi-head attention with residual and norm; ``mask`` is broadcast to [B, heads, queries, keys], false where a key is hidden."""

    def __init__(self, width: int, heads: int, head_width: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.scale = head_width**0.5
        self.query = nn.Linear(width, heads * head_width, bias=False)
        self.key = nn.Linear(width, heads * head_width, bias=False)
        self.value = nn.Linear(width, heads * head_width, bias=False)
        self.output = nn.Linear(heads * head_width, width, bias=False)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.weights_dropout = nn.Dropout(dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, query: torch.Tensor, memory: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        residual = query
        queries, keys, values = (self._split(x) for x in (self.query(query), self.key(memory), self.value(memory)))
        scores = torch.matmul(queries / self.scale, keys.transpose(2, 3))
        hidden = torch.finfo(torch.float16).min if scores.dtype == torch.float16 else -1e9
        weights = self.weights_dropout(functional.softmax(scores.masked_fill(mask.unsqueeze(1) == 0, hidden), dim=-1))
        merged = torch.matmul(weights, values).transpose(1, 2).contiguous().flatten(2)
        x = self.dropout(self.output(merged))
        x += residual
        result: torch.Tensor = self.norm(x)
        return result

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(x.size(0), x.size(1), self.heads, -1).transpose(1, 2)


class FeedForward(nn.Module):
    """Two linear layers with ReLU, residual and norm."""

    def __init__(self, width: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.expand = nn.Linear(width, inner)
        self.contract = nn.Linear(inner, width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        residual = x
        x = self.dropout(self.contract(functional.relu(self.expand(x))))
        x += residual
        result: torch.Tensor = self.norm(x)
        return result


class Embedding(nn.Module):
    """Tokens [B, T] -> word vectors plus sinusoids, dropped out and normalised [B, T, width]."""

    positions: torch.Tensor

    def __init__(self, vocabulary: int, width: int, dropout: float, positions: int = 200) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, width, padding_idx=_PAD)
        self.register_buffer("positions", sinusoids(positions, width)[None], persistent=False)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.words(tokens)
        x = x + self.positions[:, : x.size(1)].clone().detach()
        result: torch.Tensor = self.norm(self.dropout(x))
        return result


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward."""

    def __init__(self, width: int, heads: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(width, heads, width // heads, dropout)
        self.feed_forward = FeedForward(width, inner, dropout)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.feed_forward(self.attention(x, x, mask))
        return result


class DecoderLayer(nn.Module):
    """Self-attention, attention to the encoder's output, feed-forward."""

    def __init__(self, width: int, heads: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(width, heads, width // heads, dropout)
        self.cross_attention = Attention(width, heads, width // heads, dropout)
        self.feed_forward = FeedForward(width, inner, dropout)

    def forward(self, x: torch.Tensor, memory: torch.Tensor, mask: torch.Tensor, memory_mask: torch.Tensor) -> torch.Tensor:
        x = self.attention(x, x, mask)
        result: torch.Tensor = self.feed_forward(self.cross_attention(x, memory, memory_mask))
        return result


class Transformer(nn.Module):
    """Source [B, S] and target [B, T] tokens, int64 with 1 for padding -> scores of the next target word [B * T, vocabulary]."""

    def __init__(
        self, vocabulary: int = 9521, width: int = 512, layers: int = 6, heads: int = 8, inner: int = 2048, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.source = Embedding(vocabulary, width, dropout)
        self.target = Embedding(vocabulary, width, dropout)
        self.encoder = nn.ModuleList(EncoderLayer(width, heads, inner, dropout) for _ in range(layers))
        self.decoder = nn.ModuleList(DecoderLayer(width, heads, inner, dropout) for _ in range(layers))
        self.output = nn.Linear(width, vocabulary, bias=False)
        self.output_scale = 1.0  # other than 1 only where embedding and output share weights
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        source_mask = padding_mask(source)
        target_mask = padding_mask(target) & causal_mask(target)
        memory = self.source(source)
        for layer in self.encoder:
            memory = layer(memory, source_mask)
        x = self.target(target)
        for layer in self.decoder:
            x = layer(x, memory, target_mask, source_mask)
        scores: torch.Tensor = self.output(x) * self.output_scale
        return scores.view(-1, scores.size(2))


def padding_mask(tokens: torch.Tensor) -> torch.Tensor:
    """Bool [B, 1, T], false at padding."""
    return (tokens != _PAD).unsqueeze(-2)


def causal_mask(tokens: torch.Tensor) -> torch.Tensor:
    """Bool [1, T, T], false where a key lies after the query."""
    length = tokens.size(1)
    return (1 - torch.triu(torch.ones((1, length, length), device=tokens.device), diagonal=1)).bool()


def build_attention_is_all_you_need_pytorch(request: BuildRequest) -> Benchmark:
    """Source [B, 33] and target [B, 31], both transposed views as a sequence-first loader leaves them."""
    request.check_options(())
    batch_size = batch_size_of(request)
    module = Transformer()
    vocabulary = module.source.words.num_embeddings
    args = (sentences(_SOURCE_TOKENS, batch_size, vocabulary), sentences(_TARGET_TOKENS, batch_size, vocabulary))
    return assemble(request, module, args, batch_size, fidelity=_FIDELITY)


def sentences(tokens: int, batch_size: int, vocabulary: int) -> torch.Tensor:
    """Words int64 [batch_size, tokens], strides (1, batch_size), of random lengths and padded."""
    words = torch.randint(_FIRST_WORD, vocabulary, (tokens, batch_size))
    lengths = torch.randint(_SHORTEST_SENTENCE, tokens + 1, (batch_size,))
    return torch.where(torch.arange(tokens)[:, None] < lengths, words, _PAD).t()

"""``BERT_pytorch``: the encoder of Devlin et al., arXiv 1810.04805, assembled from elementary operations.

It differs from the paper where the benchmark does: sub-layers are normalised on the way in, the norm divides by the unbiased standard
deviation plus epsilon, positions are the sinusoids of arXiv 1706.03762, and a block ends with one dropout more. The attention mask
reaches the attention through an attribute that the forward pass sets. The sweep steps the encoder; the two heads of pre-training
belong to the model and stay idle.
"""

from __future__ import annotations

import math
import random

import torch
from torch import nn
from torch.nn import functional

from tasks.suites.benchmark import Benchmark, BuildRequest
from tasks.suites.torchbench.rebuilt import assemble, batch_size_of

_PAD, _END, _START = 0, 2, 3
_FIRST_WORD = 5  # ids below are padding, unknown, end, start and mask
_TOKENS = 128
_WORDS_PER_SENTENCE = (1, 3)
_FIDELITY = "pre-training heads hold parameters but do not run, as in the historical harness; synthetic sentences of 1 to 3 words"


def sinusoids(positions: int, width: int) -> torch.Tensor:
    """The position table [positions, width] of arXiv 1706.03762, section 3.5: sines in even columns, cosines in odd ones."""
    angles = torch.arange(positions).float()[:, None] / 10000.0 ** (torch.arange(0, width, 2).float() / width)
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)[:, :width]


class StdNorm(nn.Module):
    """Normalises the last axis: ``gain * (x - mean) / (std + eps) + shift`` with the unbiased standard deviation."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))
        self.shift = nn.Parameter(torch.zeros(width))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.mean(-1, keepdim=True)
        std = x.std(-1, keepdim=True)
        return self.gain * (x - mean) / (std + self.eps) + self.shift


class Attention(nn.Module):
    """Multi-head attention by parts: queries, keys, values [B, T, width] and a mask that is 0 where a key is hidden."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.projections = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        self.output = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        batch, _, width = query.shape
        query, key, value = (
            projection(x).view(batch, -1, self.heads, width // self.heads).transpose(1, 2)
            for projection, x in zip(self.projections, (query, key, value), strict=True)
        )
        scores = query @ key.transpose(-2, -1) / math.sqrt(width // self.heads)
        hidden = torch.finfo(torch.float16).min if scores.dtype == torch.float16 else -1e9
        weights = self.dropout(scores.masked_fill(mask == 0, hidden).softmax(dim=-1))
        merged = (weights @ value).transpose(1, 2).contiguous().view(batch, -1, width)
        result: torch.Tensor = self.output(merged)
        return result


class SelfAttention(nn.Module):
    """Lets ``Residual`` call the attention with one argument: the mask is what ``set_mask`` was last given."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.attention = attention
        self.mask: torch.Tensor | None = None

    def set_mask(self, mask: torch.Tensor) -> None:
        self.mask = mask

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.attention(x, x, x, self.mask)
        return result


class FeedForward(nn.Module):
    """Two linear layers with the exact GELU between them."""

    def __init__(self, width: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.expand = nn.Linear(width, inner)
        self.contract = nn.Linear(inner, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.contract(self.dropout(functional.gelu(self.expand(x))))
        return result


class Residual(nn.Module):
    """``x + dropout(sublayer(norm(x)))``."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm = StdNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor, sublayer: nn.Module) -> torch.Tensor:
        result: torch.Tensor = x + self.dropout(sublayer(self.norm(x)))
        return result


class Block(nn.Module):
    """Self-attention and feed-forward, each in a pre-norm residual, and a dropout over the sum."""

    def __init__(self, width: int, heads: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.attention = SelfAttention(Attention(width, heads, dropout))
        self.feed_forward = FeedForward(width, inner, dropout)
        self.attention_residual = Residual(width, dropout)
        self.feed_forward_residual = Residual(width, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        self.attention.set_mask(mask)
        x = self.attention_residual(x, self.attention)
        x = self.feed_forward_residual(x, self.feed_forward)
        result: torch.Tensor = self.dropout(x)
        return result


class Bert(nn.Module):
    """Tokens and segment labels, int64 [B, T] with 0 for padding -> hidden states [B, T, width]."""

    positions: torch.Tensor

    def __init__(
        self, vocabulary: int = 20005, width: int = 768, layers: int = 12, heads: int = 12, inner: int = 3072, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width, padding_idx=_PAD)
        self.segments = nn.Embedding(3, width, padding_idx=_PAD)
        self.register_buffer("positions", sinusoids(512, width)[None], persistent=False)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(width, heads, inner, dropout) for _ in range(layers))
        self.next_sentence = nn.Linear(width, 2)
        self.masked_words = nn.Linear(width, vocabulary)

    def forward(self, tokens: torch.Tensor, segments: torch.Tensor) -> torch.Tensor:
        mask = (tokens > 0).unsqueeze(1).repeat(1, tokens.size(1), 1).unsqueeze(1)
        x = self.dropout(self.tokens(tokens) + self.positions[:, : tokens.size(1)] + self.segments(segments))
        for block in self.blocks:
            x = block(x, mask)
        result: torch.Tensor = x
        return result


def build_bert_pytorch(request: BuildRequest) -> Benchmark:
    """Batch [B, 128] of sentence pairs, most of it padding."""
    request.check_options(())
    batch_size = batch_size_of(request)
    module = Bert()
    return assemble(request, module, sentence_pairs(batch_size, module.tokens.num_embeddings, request.seed), batch_size, fidelity=_FIDELITY)


def sentence_pairs(batch_size: int, vocabulary: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and segment labels, int64 [batch_size, 128]: start, sentence, end, sentence, end, padding."""
    lengths = random.Random(seed)
    tokens = torch.full((batch_size, _TOKENS), _PAD)
    segments = torch.zeros(batch_size, _TOKENS, dtype=torch.int64)
    for row in range(batch_size):
        first, second = (lengths.randint(*_WORDS_PER_SENTENCE) for _ in range(2))
        middle, end = first + 2, first + second + 3
        tokens[row, :end] = torch.randint(_FIRST_WORD, vocabulary, (end,))
        tokens[row, 0] = _START
        tokens[row, middle - 1] = _END
        tokens[row, end - 1] = _END
        segments[row, :middle] = 1
        segments[row, middle:end] = 2
    return tokens, segments

"""``fastNLP_Bert``: reading comprehension with BERT-base-Chinese (arXiv 1810.04805) under a word-level embedding layer.

The input are words, the encoder wants word pieces. The layer therefore turns one into the other inside the forward pass, in Python:
the words go to the host, each row is looked up and spliced together in a loop, and row lengths become Python numbers. Compilers have
to break the graph there, and that is what the benchmark is known for. Afterwards every word is represented by its first piece.
"""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import dataclass

import torch
from torch import nn

from tasks.suites.benchmark import Benchmark, BuildRequest
from tasks.suites.torchbench.rebuilt import assemble, batch_size_of

_PAD_WORD, _UNKNOWN_WORD, _SEPARATOR_WORD, _FIRST_WORD = 0, 1, 2, 3
_PAD_PIECE, _UNKNOWN_PIECE, _CLASS_PIECE, _SEPARATOR_PIECE = 0, 100, 101, 102  # of the published Chinese vocabulary
_FIRST_PIECE = 670  # from here on the vocabulary holds Chinese characters
_WORDS = 474
_QUESTION_WORDS = (8, 24)
_FIDELITY = "synthetic text of the logged shapes and a synthetic table of words, one piece each as in Chinese"


@dataclass(frozen=True, slots=True)
class BertShape:
    """The sizes of a BERT encoder; the defaults are BERT-base-Chinese."""

    pieces: int = 21128
    width: int = 768
    layers: int = 12
    heads: int = 12
    inner: int = 3072
    positions: int = 512
    dropout: float = 0.1


def gelu(x: torch.Tensor) -> torch.Tensor:
    """The exact GELU written out."""
    return x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0)))


class BertLayer(nn.Module):
    """Post-norm self-attention and feed-forward; ``bias`` is added to the scores and broadcasts to [B, heads, T, T]."""

    def __init__(self, shape: BertShape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.query = nn.Linear(shape.width, shape.width)
        self.key = nn.Linear(shape.width, shape.width)
        self.value = nn.Linear(shape.width, shape.width)
        self.attention_output = nn.Linear(shape.width, shape.width)
        self.attention_norm = nn.LayerNorm(shape.width, eps=1e-12)
        self.intermediate = nn.Linear(shape.width, shape.inner)
        self.output = nn.Linear(shape.inner, shape.width)
        self.output_norm = nn.LayerNorm(shape.width, eps=1e-12)
        self.dropout = nn.Dropout(shape.dropout)

    def forward(self, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        query, key, value = (self._split(projection(x)) for projection in (self.query, self.key, self.value))
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.size(-1)) + bias
        context = self.dropout(scores.softmax(dim=-1)) @ value
        context = context.permute(0, 2, 1, 3).contiguous().view(x.shape)
        x = self.attention_norm(self.dropout(self.attention_output(context)) + x)
        result: torch.Tensor = self.output_norm(self.dropout(self.output(gelu(self.intermediate(x)))) + x)
        return result

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(x.size(0), x.size(1), self.heads, -1).permute(0, 2, 1, 3)


class BertEncoder(nn.Module):
    """Pieces, token types and attention mask, int64 [B, T] -> hidden states [B, T, width] and pooled [B, width]."""

    def __init__(self, shape: BertShape) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(shape.pieces, shape.width, padding_idx=_PAD_PIECE)
        self.position_embeddings = nn.Embedding(shape.positions, shape.width)
        self.token_type_embeddings = nn.Embedding(2, shape.width)
        self.norm = nn.LayerNorm(shape.width, eps=1e-12)
        self.dropout = nn.Dropout(shape.dropout)
        self.layers = nn.ModuleList(BertLayer(shape) for _ in range(shape.layers))
        self.pooler = nn.Linear(shape.width, shape.width)
        self.apply(_draw_bert_weights)

    def forward(self, pieces: torch.Tensor, types: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        positions = torch.arange(pieces.size(1), device=pieces.device).unsqueeze(0).expand_as(pieces)
        x = self.word_embeddings(pieces) + self.position_embeddings(positions) + self.token_type_embeddings(types)
        x = self.dropout(self.norm(x))
        bias = (1.0 - mask[:, None, None, :].to(self.pooler.weight.dtype)) * -10000.0
        for layer in self.layers:
            x = layer(x, bias)
        return x, torch.tanh(self.pooler(x[:, 0]))


class WordEmbedding(nn.Module):
    """Words, int64 [B, W] with 0 for padding -> the hidden state of each word's first piece [B, W, width], zero for padding.

    ``table[word]`` lists the pieces of a word. ``ValueError`` if a row has more pieces than the encoder has positions.
    """

    piece_counts: torch.Tensor

    def __init__(self, shape: BertShape, table: list[list[int]], word_dropout: float = 0.01, dropout: float = 0.5) -> None:
        super().__init__()
        self.table = table
        self.word_dropout = word_dropout
        self.positions = shape.positions
        self.register_buffer("piece_counts", torch.tensor([len(pieces) for pieces in table]), persistent=False)
        self.encoder = BertEncoder(shape)
        self.dropout = nn.Dropout(dropout)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        if self.training:
            words = self._drop_words(words)
        with torch.no_grad():
            present = words.ne(_PAD_WORD)
            word_counts = present.sum(dim=-1)
            counts = self.piece_counts[words].masked_fill(present.eq(False), 0)
            pieces, mask = self._pieces(words, word_counts, counts.sum(dim=-1))
            types = token_types(pieces)
            starts = counts.new_zeros(words.size(0), words.size(1) + 1)
            starts[:, 1:] = counts.cumsum(dim=-1)
        hidden, _ = self.encoder(pieces, types, mask)
        result: torch.Tensor = self.dropout(self._first_pieces(hidden, starts[:, : int(word_counts.max().item())], present))
        return result

    def _drop_words(self, words: torch.Tensor) -> torch.Tensor:
        chosen = torch.bernoulli(torch.full_like(words, self.word_dropout, dtype=torch.float32)).eq(1)
        return words.masked_fill(chosen & words.ne(_PAD_WORD) & words.ne(_SEPARATOR_WORD), _UNKNOWN_WORD)

    def _pieces(self, words: torch.Tensor, word_counts: torch.Tensor, piece_counts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Pieces with their frame [CLS] ... [SEP] and the attention mask, both int64 [B, longest + 2]."""
        length = int(piece_counts.max().item()) + 2
        if length > self.positions:
            raise ValueError(f"{length} word pieces in a row, but the encoder has {self.positions} positions")
        pieces = words.new_full((words.size(0), length), _PAD_PIECE)
        mask = torch.zeros_like(pieces)
        rows = words.cpu().numpy()
        for row, row_words in enumerate(rows):
            row_pieces = itertools.chain.from_iterable(self.table[word] for word in row_words[: word_counts[row]])
            pieces[row, 1 : piece_counts[row] + 1] = torch.tensor(list(row_pieces))
            mask[row, : piece_counts[row] + 2].fill_(1)
        pieces[:, 0].fill_(_CLASS_PIECE)
        pieces[torch.arange(words.size(0)).to(words.device), piece_counts + 1] = _SEPARATOR_PIECE
        return pieces, mask

    def _first_pieces(self, hidden: torch.Tensor, starts: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """``starts`` [B, longest row] say where words begin; the result has a place for every word of ``present`` [B, W]."""
        inside = hidden[:, 1:-1]
        longest = starts.size(1)
        starts = starts.masked_fill(starts.ge(inside.size(1)), 0)  # where padding words would begin
        rows = torch.arange(starts.size(0), device=starts.device)[:, None].expand_as(starts)
        firsts = inside[rows, starts].masked_fill(present[:, :longest, None].eq(False), 0)
        # The embedding layer can gather several of the encoder's layers; the benchmark asks for the last.
        layers = hidden.new_zeros(1, *present.shape, hidden.size(2))
        layers[0, :, :longest] = firsts
        return torch.cat(tuple(layers), dim=-1)


class QuestionAnswering(nn.Module):
    """Words [B, W] -> scores of each word as the answer's start and end, two tensors [B, W]."""

    def __init__(self, embedding: WordEmbedding, width: int) -> None:
        super().__init__()
        self.embedding = embedding
        self.output = nn.Linear(width, 2)

    def forward(self, words: torch.Tensor) -> dict[str, torch.Tensor]:
        scores = self.output(self.embedding(words))
        return {"pred_start": scores[:, :, 0], "pred_end": scores[:, :, 1]}


def token_types(pieces: torch.Tensor) -> torch.Tensor:
    """Segment of each piece, 0 or 1 and 0 at the row's beginning: the parity of the separators from the piece to the row's end."""
    separators = pieces.eq(_SEPARATOR_PIECE).long()
    parity = separators.flip(dims=[-1]).cumsum(dim=-1).flip(dims=[-1]).fmod(2)
    return torch.bitwise_xor(parity[:, :1], parity)


def build_fastnlp_bert(request: BuildRequest) -> Benchmark:
    """Batch [B, 474] of a question, a separator and a passage."""
    request.check_options(())
    batch_size = batch_size_of(request)
    shape = BertShape()
    table = one_piece_words(2869, shape.pieces, request.seed)
    module = QuestionAnswering(WordEmbedding(shape, table), shape.width)
    return assemble(request, module, (questions(batch_size, len(table), request.seed),), batch_size, fidelity=_FIDELITY)


def one_piece_words(words: int, pieces: int, seed: int) -> list[list[int]]:
    """A table that gives each word one piece of its own; the first words are padding, unknown and separator."""
    special = [[_PAD_PIECE], [_UNKNOWN_PIECE], [_SEPARATOR_PIECE]]
    drawn = random.Random(seed).sample(range(_FIRST_PIECE, pieces), words - len(special))
    return special + [[piece] for piece in drawn]


def questions(batch_size: int, words: int, seed: int) -> torch.Tensor:
    """Words, int64 [batch_size, 474], without padding: question, separator, passage."""
    lengths = random.Random(seed)
    text = torch.randint(_FIRST_WORD, words, (batch_size, _WORDS))
    for row in range(batch_size):
        text[row, lengths.randint(*_QUESTION_WORDS)] = _SEPARATOR_WORD
    return text


def _draw_bert_weights(module: nn.Module) -> None:
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from tasks.suites.torchbench.bert import Attention, Bert, Block, StdNorm, sentence_pairs, sinusoids


def test_the_norm_divides_by_the_unbiased_deviation_plus_epsilon():
    torch.manual_seed(0)
    norm, x = StdNorm(6, eps=0.5), torch.randn(3, 6)
    norm.gain.data, norm.shift.data = torch.randn(6), torch.randn(6)
    for row, result in zip(x.tolist(), norm(x).tolist(), strict=True):
        mean = sum(row) / 6
        std = math.sqrt(sum((value - mean) ** 2 for value in row) / 5)
        wanted = [
            gain * (value - mean) / (std + 0.5) + shift
            for value, gain, shift in zip(row, norm.gain.tolist(), norm.shift.tolist(), strict=True)
        ]
        assert result == pytest.approx(wanted, abs=1e-5)


def test_positions_are_the_papers_sinusoids():
    table = sinusoids(20, 8)
    for position in (0, 1, 7, 19):
        for pair in range(4):
            angle = position / 10000 ** (2 * pair / 8)
            assert table[position, 2 * pair].item() == pytest.approx(math.sin(angle), abs=1e-6)
            assert table[position, 2 * pair + 1].item() == pytest.approx(math.cos(angle), abs=1e-6)


def test_attention_is_torchs_own():
    torch.manual_seed(0)
    attention, x = Attention(12, 3, dropout=0.1).eval(), torch.randn(2, 5, 12)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])[:, None, None, :]
    query, key, value = (layer(x).view(2, 5, 3, 4).transpose(1, 2) for layer in attention.projections)
    wanted = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask.bool())
    torch.testing.assert_close(attention(x, x, x, mask), attention.output(wanted.transpose(1, 2).reshape(2, 5, 12)))


def test_a_block_normalises_on_the_way_in():
    torch.manual_seed(0)
    block, x, mask = Block(8, 2, 16, dropout=0.1).eval(), torch.randn(2, 4, 8), torch.ones(2, 1, 4, 4)
    normed = block.attention_residual.norm(x)
    hidden = x + block.attention.attention(normed, normed, normed, mask)
    inner = block.feed_forward_residual.norm(hidden) @ block.feed_forward.expand.weight.T + block.feed_forward.expand.bias
    inner = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
    torch.testing.assert_close(block(x, mask), hidden + block.feed_forward.contract(inner))
    assert block.attention.mask is mask


def test_padding_does_not_reach_the_words():
    torch.manual_seed(0)
    model = Bert(50, 16, 2, 2, 32).eval()
    tokens, segments = sentence_pairs(1, 50, seed=3)
    words = int((tokens > 0).sum())
    assert words < 10
    torch.testing.assert_close(model(tokens, segments)[:, :words], model(tokens[:, :words], segments[:, :words]))


def test_the_heads_of_pretraining_are_there_and_idle():
    model = Bert(50, 16, 1, 2, 32)
    assert (model.next_sentence.weight.shape, model.masked_words.weight.shape) == ((2, 16), (50, 16))
    model(*sentence_pairs(2, 50, seed=0)).sum().backward()
    idle = {name.partition(".")[0] for name, parameter in model.named_parameters() if parameter.grad is None}
    assert idle == {"next_sentence", "masked_words"}


def test_sentence_pairs_are_framed_labelled_and_mostly_padding():
    tokens, segments = sentence_pairs(16, 20005, seed=1)
    for row, labels in zip(tokens.tolist(), segments.tolist(), strict=True):
        ends = [index for index, token in enumerate(row) if token == 2]
        assert row[0] == 3
        assert len(ends) == 2
        assert all(1 <= words <= 3 for words in (ends[0] - 1, ends[1] - ends[0] - 1))
        assert labels == [1] * (ends[0] + 1) + [2] * (ends[1] - ends[0]) + [0] * (127 - ends[1])
        assert row[ends[1] + 1 :] == [0] * (127 - ends[1])
    assert {(tokens[row] > 0).sum().item() for row in range(16)} >= {6, 7, 8}

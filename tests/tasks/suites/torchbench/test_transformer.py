from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from tasks.suites.torchbench.transformer import Attention, DecoderLayer, EncoderLayer, Transformer, causal_mask, padding_mask, sentences


def copy_attention(reference: nn.MultiheadAttention, ours: Attention) -> None:
    with torch.no_grad():
        reference.in_proj_weight.copy_(torch.cat([ours.query.weight, ours.key.weight, ours.value.weight]))
        reference.out_proj.weight.copy_(ours.output.weight)
        reference.in_proj_bias.zero_()
        reference.out_proj.bias.zero_()


def copy_feed_forward(reference: nn.Module, ours: nn.Module) -> None:
    reference.linear1.load_state_dict(ours.expand.state_dict())
    reference.linear2.load_state_dict(ours.contract.state_dict())


def test_attention_is_torchs_own():
    torch.manual_seed(0)
    attention = Attention(12, 3, 4, dropout=0.1).eval()
    query, memory = torch.randn(2, 5, 12), torch.randn(2, 7, 12)
    mask = torch.rand(2, 1, 7) > 0.3
    heads = [
        layer(x).view(2, -1, 3, 4).transpose(1, 2)
        for layer, x in zip((attention.query, attention.key, attention.value), (query, memory, memory), strict=True)
    ]
    context = functional.scaled_dot_product_attention(*heads, attn_mask=mask[:, None]).transpose(1, 2).flatten(2)
    wanted = functional.layer_norm(attention.output(context) + query, (12,), eps=1e-6)
    torch.testing.assert_close(attention(query, memory, mask), wanted)


def test_an_encoder_layer_is_torchs_own():
    torch.manual_seed(0)
    ours, x = EncoderLayer(16, 4, 32, dropout=0.1).eval(), torch.randn(3, 6, 16)
    reference = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, layer_norm_eps=1e-6).eval()
    copy_attention(reference.self_attn, ours.attention)
    copy_feed_forward(reference, ours.feed_forward)
    padding = torch.arange(6) >= torch.tensor([6, 4, 2])[:, None]
    wanted = reference(x, src_key_padding_mask=padding)
    torch.testing.assert_close(ours(x, ~padding[:, None])[~padding], wanted[~padding], atol=1e-5, rtol=1e-4)


def test_a_decoder_layer_is_torchs_own():
    torch.manual_seed(0)
    ours, x, memory = DecoderLayer(16, 4, 32, dropout=0.1).eval(), torch.randn(3, 5, 16), torch.randn(3, 7, 16)
    reference = nn.TransformerDecoderLayer(16, 4, 32, batch_first=True, layer_norm_eps=1e-6).eval()
    copy_attention(reference.self_attn, ours.attention)
    copy_attention(reference.multihead_attn, ours.cross_attention)
    copy_feed_forward(reference, ours.feed_forward)
    causal = nn.Transformer.generate_square_subsequent_mask(5)
    wanted = reference(x, memory, tgt_mask=causal)
    result = ours(x, memory, causal_mask(x), torch.ones(3, 1, 7, dtype=torch.bool))
    torch.testing.assert_close(result, wanted, atol=1e-5, rtol=1e-4)


def test_masks_hide_padding_and_the_future():
    assert padding_mask(torch.tensor([[5, 1, 7]])).tolist() == [[[True, False, True]]]
    assert causal_mask(torch.zeros(2, 3)).tolist() == [[[True, False, False], [True, True, False], [True, True, True]]]


def test_a_word_depends_on_earlier_words_and_the_sources_words_only():
    torch.manual_seed(0)
    model = Transformer(50, 16, 2, 2, 32).eval()
    source, target = torch.randint(4, 50, (1, 6)), torch.randint(4, 50, (1, 5))
    before = model(source, target)
    later = target.clone()
    later[0, 3] = 4 + (later[0, 3] - 3) % 46
    after = model(source, later)
    torch.testing.assert_close(after[:3], before[:3])
    assert not torch.allclose(after[3:], before[3:])
    padded = torch.cat([source, torch.ones(1, 4, dtype=torch.int64)], dim=1)
    torch.testing.assert_close(model(padded, target), before)


def test_sentences_are_padded_transposed_views():
    torch.manual_seed(0)
    words = sentences(33, 256, 9521)
    assert words.stride() == (1, 256)
    assert words.min() == 1
    lengths = (words != 1).sum(dim=1)
    assert lengths.min() >= 6
    assert all((row[:length] >= 4).all() for row, length in zip(words, lengths.tolist(), strict=True))

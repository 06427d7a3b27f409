from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from tasks.suites.torchbench.speech_transformer import (
    Attention,
    DecoderLayer,
    EncoderLayer,
    SpeechTransformer,
    framed,
    hidden_keys,
    later_keys,
    presence,
    utterances,
)


def copy_attention(reference: nn.MultiheadAttention, ours: Attention) -> None:
    with torch.no_grad():
        layers = (ours.query, ours.key, ours.value)
        reference.in_proj_weight.copy_(torch.cat([layer.weight for layer in layers]))
        reference.in_proj_bias.copy_(torch.cat([layer.bias for layer in layers]))
    reference.out_proj.load_state_dict(ours.output.state_dict())


def copy_feed_forward(reference: nn.Module, ours: nn.Module) -> None:
    reference.linear1.load_state_dict(ours.expand.state_dict())
    reference.linear2.load_state_dict(ours.contract.state_dict())


def test_folded_attention_is_torchs_own():
    torch.manual_seed(0)
    attention = Attention(12, 3, dropout=0.1).eval()
    query, memory = torch.randn(2, 5, 12), torch.randn(2, 7, 12)
    hidden = torch.rand(2, 5, 7) > 0.7
    hidden[..., 0] = False
    layers = (attention.query, attention.key, attention.value)
    heads = [layer(x).view(2, -1, 3, 4).transpose(1, 2) for layer, x in zip(layers, (query, memory, memory), strict=True)]
    context = functional.scaled_dot_product_attention(*heads, attn_mask=~hidden[:, None]).transpose(1, 2).flatten(2)
    wanted = functional.layer_norm(attention.output(context) + query, (12,))
    torch.testing.assert_close(attention(query, memory, hidden), wanted)


def test_an_encoder_layer_is_torchs_own_with_zeros_beyond_the_end():
    torch.manual_seed(0)
    ours, x, lengths = EncoderLayer(16, 4, 32, dropout=0.1).eval(), torch.randn(3, 6, 16), torch.tensor([6, 4, 2])
    reference = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True).eval()
    copy_attention(reference.self_attn, ours.attention)
    copy_feed_forward(reference, ours.feed_forward)
    beyond = torch.arange(6) >= lengths[:, None]
    wanted = reference(x, src_key_padding_mask=beyond)
    result = ours(x, presence(x, lengths).unsqueeze(-1), hidden_keys(x, lengths, 6))
    torch.testing.assert_close(result[~beyond], wanted[~beyond], atol=1e-5, rtol=1e-4)
    assert (result[beyond] == 0).all()


def test_a_decoder_layer_is_torchs_own():
    torch.manual_seed(0)
    ours, x, memory = DecoderLayer(16, 4, 32, dropout=0.1).eval(), torch.randn(3, 5, 16), torch.randn(3, 7, 16)
    reference = nn.TransformerDecoderLayer(16, 4, 32, batch_first=True).eval()
    copy_attention(reference.self_attn, ours.attention)
    copy_attention(reference.multihead_attn, ours.cross_attention)
    copy_feed_forward(reference, ours.feed_forward)
    wanted = reference(x, memory, tgt_mask=nn.Transformer.generate_square_subsequent_mask(5))
    mask, memory_mask = later_keys(x[..., 0]).gt(0), torch.zeros(3, 5, 7, dtype=torch.bool)
    torch.testing.assert_close(ours(x, memory, torch.ones(3, 5, 1), mask, memory_mask), wanted, atol=1e-5, rtol=1e-4)


def test_targets_are_stripped_framed_and_padded():
    inputs, expected = framed(torch.tensor([[7, 8, -1], [9, -1, -1], [4, 5, 6]]))
    assert inputs.tolist() == [[1, 7, 8, 2], [1, 9, 2, 2], [1, 4, 5, 6]]
    assert expected.tolist() == [[7, 8, 2, -1], [9, 2, -1, -1], [4, 5, 6, 2]]


def test_masks_follow_lengths_and_order():
    lengths = torch.tensor([3, 1])
    assert presence(torch.zeros(2, 3, 4), lengths).tolist() == [[1, 1, 1], [1, 0, 0]]
    assert hidden_keys(torch.zeros(2, 3, 4), lengths, 2)[1].tolist() == [[False, True, True]] * 2
    assert later_keys(torch.zeros(1, 3)).tolist() == [[[0, 1, 1], [0, 0, 1], [0, 0, 0]]]


def test_features_beyond_the_end_and_later_characters_do_not_matter():
    torch.manual_seed(0)
    model = SpeechTransformer(20, features=8, width=16, layers=2, heads=2, inner=32).eval()
    features, lengths = torch.randn(2, 6, 8), torch.tensor([6, 4])
    targets = torch.tensor([[5, 6, 7], [8, 9, -1]])
    scores, expected = model(features, lengths, targets)
    assert expected.tolist() == [[5, 6, 7, 2], [8, 9, 2, -1]]
    noisy = features.clone()
    noisy[1, 4:] = 100
    torch.testing.assert_close(model(noisy, lengths, targets)[0], scores)
    later = targets.clone()
    later[0, 2] = 11
    changed = model(features, lengths, later)[0]
    torch.testing.assert_close(changed[0, :3], scores[0, :3])
    assert not torch.allclose(changed[0, 3], scores[0, 3])


def test_the_output_layer_shares_the_embedding():
    model = SpeechTransformer(20, features=8, width=16, layers=1, heads=2, inner=32)
    assert model.decoder.output.weight is model.decoder.embedding.weight


def test_utterances_have_the_historical_lengths():
    features, lengths, targets = utterances(1014)
    assert lengths.tolist() == [204, 200, 196, 180, 147, 137, 129, 113, 105, 86]
    assert [int((row != -1).sum()) for row in targets] == [17, 15, 21, 18, 9, 9, 9, 12, 11, 10]
    assert all((row[length:] == 0).all() and (row[length - 1] != 0).any() for row, length in zip(features, lengths.tolist(), strict=True))

from __future__ import annotations

import torch

from tasks.suites.torchbench.tacotron import Decoder, Encoder, LocationAttention, PostNet, PreNet, Tacotron2, speech, within


def attention_parts(query_width=6, memory_width=5):
    torch.manual_seed(0)
    attention = LocationAttention(query_width, memory_width, width=4, filters=3, kernel=5)
    memory = torch.randn(2, 7, memory_width)
    hidden = torch.arange(7) >= torch.tensor([7, 4])[:, None]
    return attention, torch.randn(2, query_width), memory, torch.rand(2, 2, 7), hidden


def test_attention_is_its_formula():
    attention, query, memory, history, hidden = attention_parts()
    context, weights = attention(query, memory, attention.memory(memory), history, hidden)
    kernel = attention.location_convolution.weight
    for row in range(2):
        energies = []
        for position in range(7):
            located = torch.zeros(3)
            for offset in range(-2, 3):
                if 0 <= position + offset < 7:
                    located += kernel[:, :, offset + 2] @ history[row, :, position + offset]
            total = attention.query(query[row]) + attention.memory(memory[row, position]) + attention.location(located)
            energies.append(attention.energy(torch.tanh(total)).squeeze())
        length = 7 if row == 0 else 4
        wanted = torch.stack(energies)[:length].softmax(0)
        torch.testing.assert_close(weights[row, :length], wanted)
        torch.testing.assert_close(context[row], wanted @ memory[row, :length])
    assert (weights[1, 4:] == 0).all()
    torch.testing.assert_close(weights.sum(1), torch.ones(2))


def test_lengths_become_a_mask_as_wide_as_the_longest():
    assert within(torch.tensor([3, 1])).tolist() == [[True, True, True], [True, False, False]]


def test_the_packed_lstm_reads_each_sentence_alone():
    torch.manual_seed(0)
    encoder = Encoder(8).eval()
    encoder.convolutions = torch.nn.ModuleList()
    x = torch.randn(3, 8, 6)
    memory = encoder(x, torch.tensor([6, 4, 1]))
    assert memory.shape == (3, 6, 8)
    for row, length in enumerate((6, 4, 1)):
        torch.testing.assert_close(memory[row, :length], encoder.lstm(x[row, :, :length].T)[0])
        assert (memory[row, length:] == 0).all()


def test_the_prenet_drops_out_in_eval_mode_too():
    torch.manual_seed(0)
    prenet = PreNet(4, 64).eval()
    x = torch.randn(1, 4)
    assert not torch.equal(prenet(x), prenet(x))


def decoded(targets, seed=0):
    torch.manual_seed(0)
    decoder = Decoder(3, memory_width=6, width=8, prenet_width=5, attention_width=4).eval()
    memory = torch.randn(2, 7, 6)
    torch.manual_seed(seed)
    return decoder(memory, targets, torch.tensor([7, 4]))


def test_the_decoder_gives_one_aligned_frame_per_target_frame():
    mels, gates, alignments = decoded(torch.randn(2, 3, 5))
    assert (mels.shape, gates.shape, alignments.shape) == ((2, 3, 5), (2, 5), (2, 5, 7))
    torch.testing.assert_close(alignments.sum(2), torch.ones(2, 5))
    assert (alignments[1, :, 4:] == 0).all()


def test_a_frame_is_predicted_from_earlier_target_frames():
    targets = torch.randn(2, 3, 5)
    changed = targets.clone()
    changed[:, :, 2] += 1
    (before, *_), (after, *_) = decoded(targets, seed=4), decoded(changed, seed=4)
    assert torch.equal(before[:, :, :3], after[:, :, :3])
    assert not torch.allclose(before[:, :, 3:], after[:, :, 3:])


def test_the_attention_sees_what_it_has_summed_up():
    torch.manual_seed(0)
    decoder = Decoder(3, memory_width=6, width=8, prenet_width=5, attention_width=4).eval()
    memory, hidden = torch.randn(1, 7, 6), torch.zeros(1, 7, dtype=torch.bool)
    state = decoder._start(memory)
    keys = decoder.attention.memory(memory)
    histories, seen = [], [state.weights]
    decoder.attention.register_forward_pre_hook(lambda module, args: histories.append(args[3]))
    for _ in range(3):
        _, _, state = decoder._step(torch.randn(1, 5), state, memory, keys, hidden)
        seen.append(state.weights)
    for step, history in enumerate(histories):
        torch.testing.assert_close(history, torch.stack([seen[step], torch.stack(seen[: step + 1]).sum(0)], dim=1))


def test_the_postnet_has_five_convolutions_and_a_linear_end():
    postnet = PostNet(4, 6).eval()
    assert [layer[0].out_channels for layer in postnet.convolutions] == [6, 6, 6, 6, 4]
    postnet.convolutions[-1][1].bias.data.fill_(5.0)
    postnet.convolutions[-1][1].weight.data.zero_()
    torch.testing.assert_close(postnet(torch.randn(2, 4, 9)), torch.full((2, 4, 9), 5.0))


def test_frames_beyond_the_end_are_overwritten_without_touching_the_graph():
    torch.manual_seed(0)
    model = Tacotron2(16, 16, 8, 8).eval()
    args = speech(2, 6)
    assert args[4].tolist() == [6, 5]
    mels, refined, gates, _ = model(*args)
    assert (mels[1, :, 5:] == 0).all()
    assert (refined[1, :, 5:] == 0).all()
    assert (gates[1, 5:] == 1000).all()
    assert (mels[0] != 0).any(dim=0).all()
    mels[1, :, 5:].sum().backward()
    assert model.decoder.projection.weight.grad.abs().sum() > 0


def test_speech_falls_in_length_and_is_empty_beyond():
    text, text_lengths, mels, longest, mel_lengths = speech(64, 832)
    assert longest == text_lengths[0] == 160
    assert mel_lengths[0] == 832
    for lengths in (text_lengths, mel_lengths):
        assert (lengths.diff() <= 0).all()
        assert lengths.min() > lengths.max() // 2
    assert all((row[length:] == 0).all() and (row[:length] > 0).all() for row, length in zip(text, text_lengths.tolist(), strict=True))
    assert (mels[63, :, mel_lengths[63] :] == 0).all()

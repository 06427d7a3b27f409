from __future__ import annotations

import torch

from tasks.suites.torchbench.speaker import ProjectedLstm, SpeakerEncoder


def lstm_by_hand(layer, sequence):
    """Projected hidden states [B, T, out] by the LSTM's equations, one frame at a time."""
    lstm = layer.lstm
    hidden = cell = torch.zeros(sequence.size(0), lstm.hidden_size)
    outputs = []
    for frame in sequence.unbind(1):
        gates = frame @ lstm.weight_ih_l0.T + lstm.bias_ih_l0 + hidden @ lstm.weight_hh_l0.T + lstm.bias_hh_l0
        i, f, g, o = gates.chunk(4, dim=1)
        cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
        hidden = o.sigmoid() * cell.tanh()
        outputs.append(hidden @ layer.projection.weight.T)
    return torch.stack(outputs, dim=1)


def test_a_layer_is_the_lstms_equations():
    torch.manual_seed(0)
    layer, sequence = ProjectedLstm(5, 7, 3), torch.randn(2, 4, 5)
    torch.testing.assert_close(layer(sequence), lstm_by_hand(layer, sequence))


def test_the_encoder_stacks_layers_and_normalises_the_last_frame():
    torch.manual_seed(0)
    module, sequence = SpeakerEncoder(5, 7, 3), torch.rand(2, 4, 5)
    hidden = sequence
    for layer in module.layers:
        hidden = lstm_by_hand(layer, hidden)
    last = hidden[:, -1]
    torch.testing.assert_close(module(sequence), last / last.square().sum(1, keepdim=True).sqrt())


def test_embeddings_have_unit_length_and_earlier_frames_count():
    torch.manual_seed(0)
    module = SpeakerEncoder()
    sequence = torch.rand(3, 6, 40, requires_grad=True)
    embeddings = module(sequence)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(3))
    embeddings.sum().backward()
    assert (sequence.grad.abs().amax((0, 2)) > 0).all()


def test_biases_start_at_zero():
    module = SpeakerEncoder(5, 7, 3)
    assert all(not parameter.any() for parameter in module.parameters() if parameter.dim() == 1)

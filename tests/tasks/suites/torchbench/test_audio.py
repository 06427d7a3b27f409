from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from tasks.suites.torchbench.audio import Demucs, FlipChannels, FlipSign, Lstm, Remix, Separation, Shift, center_trim, output_length


@pytest.mark.parametrize("samples", [333, 334, 400, 1001])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_the_length_formula_is_the_models(samples, depth):
    model = Demucs(width=2, depth=depth)
    assert model(torch.rand(1, 2, samples)).shape == (1, 4, 2, output_length(samples, depth))


def test_one_level_is_its_formula():
    torch.manual_seed(0)
    model, mixture = Demucs(width=3, depth=1), torch.rand(2, 2, 60)
    down, widen = model.encoder[0][0], model.encoder[0][2]
    x = functional.conv1d(functional.conv1d(mixture, down.weight, down.bias, stride=4).relu(), widen.weight, widen.bias)
    skip = x[:, :3] * torch.sigmoid(x[:, 3:])
    x = skip + model.lstm(skip)
    context, up = model.decoder[0][0], model.decoder[0][2]
    x = functional.conv1d(x, context.weight, context.bias)
    x = functional.conv_transpose1d(x[:, :3] * torch.sigmoid(x[:, 3:]), up.weight, up.bias, stride=4)
    torch.testing.assert_close(model(mixture), x.view(2, 4, 2, -1))


def test_the_lstm_runs_over_time_in_both_directions():
    torch.manual_seed(0)
    module, x = Lstm(3), torch.randn(2, 3, 5)
    reference = nn.LSTM(3, 3, num_layers=2, bidirectional=True, batch_first=True)
    reference.load_state_dict(module.lstm.state_dict())
    wanted = module.linear(reference(x.transpose(1, 2))[0]).transpose(1, 2)
    torch.testing.assert_close(module(x), wanted)


def test_trimming_keeps_the_middle():
    x = torch.arange(7.0)
    assert center_trim(x, torch.zeros(4)).tolist() == [1, 2, 3, 4]
    assert center_trim(x, torch.zeros(7)).tolist() == x.tolist()
    with pytest.raises(ValueError, match="cannot trim 7 samples to 8"):
        center_trim(x, torch.zeros(8))


def test_weights_are_rescaled_towards_the_reference_deviation():
    torch.manual_seed(0)
    plain = nn.Conv1d(2, 4, 8, 4)
    torch.manual_seed(0)
    rescaled = Demucs(width=4, depth=1).encoder[0][0]
    scale = (plain.weight.std() / 0.1).sqrt()
    torch.testing.assert_close(rescaled.weight * scale, plain.weight)
    torch.testing.assert_close(rescaled.bias * scale, plain.bias)


def test_shifting_cuts_a_window_of_each_source():
    torch.manual_seed(0)
    sources = torch.arange(2 * 3 * 2 * 50.0).view(2, 3, 2, 50)
    shift = Shift(20)
    shifted = shift(sources)
    starts = (shifted[..., 0] - sources[..., 0]).long()
    assert torch.equal(shifted - shifted[..., :1], torch.arange(30.0).expand(2, 3, 2, 30))
    assert torch.equal(starts[..., 0], starts[..., 1])
    assert starts.min() >= 0
    assert starts.max() < 20
    assert len(starts[..., 0].unique()) > 1
    assert torch.equal(shift.eval()(sources), sources[..., :30])


def test_signs_and_channels_flip_per_source():
    torch.manual_seed(0)
    sources = torch.randn(16, 4, 2, 3)
    ratios = (FlipSign()(sources) / sources).flatten(2)
    assert set(ratios.unique().tolist()) == {-1.0, 1.0}
    assert (ratios == ratios[..., :1]).all()
    swapped = FlipChannels()(sources)
    kept = (swapped == sources).all(-1).all(-1)
    turned = (swapped == sources.flip(2)).all(-1).all(-1)
    assert (kept ^ turned).all()
    assert 0 < kept.sum() < kept.numel()


def test_remixing_permutes_each_source_within_its_group():
    torch.manual_seed(0)
    sources = torch.arange(8.0).view(8, 1, 1, 1).expand(8, 3, 2, 5).contiguous()
    remixed = Remix(4)(sources)
    owners = remixed[:, :, 0, 0]
    assert (remixed == owners[:, :, None, None]).all()
    for group in (slice(0, 4), slice(4, 8)):
        assert all(sorted(owners[group, stream].tolist()) == list(range(group.start, group.stop)) for stream in range(3))
    assert len({tuple(owners[:, stream].tolist()) for stream in range(3)}) > 1


def test_the_mixture_that_is_separated_is_the_sum_of_the_augmented_sources():
    torch.manual_seed(0)
    module = Separation(Demucs(width=2, depth=1), shift=10, remix_group=2)
    sources, estimates = module(torch.rand(2, 5, 2, 70))
    torch.testing.assert_close(estimates, module.model(sources.sum(dim=1)))


def test_augmentation_repeats_from_the_same_generator_state():
    module, streams = Separation(Demucs(width=2, depth=1), shift=10, remix_group=2), torch.rand(2, 5, 2, 70)
    torch.manual_seed(1)
    first = module(streams)
    torch.manual_seed(1)
    assert all(torch.equal(one, two) for one, two in zip(first, module(streams), strict=True))
    assert not torch.equal(first[0], module(streams)[0])

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from tasks.suites import torchvision_compat
from tasks.suites.torchbench.slomo import BackWarp, Down, SuperSloMo, Up, roughness, vgg_features


def test_warping_with_no_flow_changes_nothing():
    image = torch.randn(2, 3, 6, 9)
    torch.testing.assert_close(BackWarp(6, 9)(image, torch.zeros(2, 2, 6, 9)), image)


def test_a_flow_of_whole_pixels_shifts_the_image():
    image = torch.randn(1, 3, 6, 9)
    flow = torch.zeros(1, 2, 6, 9)
    flow[:, 0], flow[:, 1] = 2, -1
    warped = BackWarp(6, 9)(image, flow)
    torch.testing.assert_close(warped[:, :, 1:, :-2], image[:, :, :-1, 2:])
    assert warped[:, :, 0].abs().max() < 1e-5
    assert warped[:, :, :, -2:].abs().max() < 1e-5


def test_a_flow_of_half_a_pixel_averages_neighbours():
    image = torch.randn(1, 1, 4, 6)
    flow = torch.zeros(1, 2, 4, 6)
    flow[:, 0] = 0.5
    wanted = (image[..., :-1] + image[..., 1:]) / 2
    torch.testing.assert_close(BackWarp(4, 6)(image, flow)[..., :-1], wanted)


@pytest.mark.parametrize("index", range(7))
def test_flows_in_between_and_the_blend_are_the_papers(index):
    torch.manual_seed(0)
    model = SuperSloMo(8, 8, 2, vgg_scale=16)
    time = (index + 1) / 8
    there, back = torch.randn(2, 2, 8, 8), torch.randn(2, 2, 8, 8)
    indices = torch.full((2,), index)
    to_first, to_second = model._flows_between(indices, there, back)
    torch.testing.assert_close(to_first, -(1 - time) * time * there + time**2 * back)
    torch.testing.assert_close(to_second, (1 - time) ** 2 * there - time * (1 - time) * back)
    first, second, nothing = torch.full((2, 3, 8, 8), 1.0), torch.full((2, 3, 8, 8), 5.0), torch.zeros(2, 2, 8, 8)
    blend = model._blend(indices, first, second, nothing, nothing, torch.full((2, 1, 8, 8), 2.0))
    seen = 1 / (1 + torch.exp(torch.tensor(-2.0)))
    wanted = ((1 - time) * seen * 1 + time * (1 - seen) * 5) / ((1 - time) * seen + time * (1 - seen))
    torch.testing.assert_close(blend, wanted.expand(2, 3, 8, 8))


def test_roughness_is_the_mean_step_along_both_axes():
    flow = 3.0 * torch.arange(5)[:, None] + 2.0 * torch.arange(4)
    assert roughness(flow.expand(2, 2, 5, 4)).item() == pytest.approx(5.0)


def test_a_still_scene_has_no_loss_but_what_refinement_adds():
    torch.manual_seed(0)
    model = SuperSloMo(32, 32, 2, vgg_scale=16)
    for network in (model.flow, model.interpolation):
        network.last.weight.data.zero_()
        network.last.bias.data.zero_()
    image = torch.randn(2, 3, 32, 32)
    frame, loss = model(torch.tensor([1, 5]), image, image, image)
    torch.testing.assert_close(frame, image)
    assert loss.item() == pytest.approx(0, abs=1e-2)


def test_the_loss_is_the_weighted_sum_of_its_terms():
    torch.manual_seed(0)
    model = SuperSloMo(32, 32, 2, vgg_scale=16)
    model.flow.last.weight.data.zero_()
    model.flow.last.bias.data.zero_()
    first, second, truth = (torch.randn(1, 3, 32, 32) for _ in range(3))
    frame, loss = model(torch.tensor([3]), first, second, truth)
    warp = sum((one - two).abs().mean() for one, two in ((first, truth), (second, truth), (first, second), (second, first)))
    features = (model.features(frame) - model.features(truth)).square().mean()
    torch.testing.assert_close(loss, 204 * (frame - truth).abs().mean() + 102 * warp + 0.005 * features, rtol=1e-4, atol=1e-3)


def test_the_frozen_features_are_vgg16s():
    torchvision_compat.prepare()
    from torchvision.models import vgg16

    with torch.device("meta"):
        ours, theirs = vgg_features(), vgg16(weights=None).features[:22]
    assert [type(layer) for layer in ours] == [type(layer) for layer in theirs]
    assert {name: value.shape for name, value in ours.state_dict().items()} == {
        name: value.shape for name, value in theirs.state_dict().items()
    }
    assert sum(parameter.numel() for parameter in ours.parameters()) == 7_635_264
    assert not any(parameter.requires_grad for parameter in ours.parameters())


def test_levels_are_their_formulas():
    torch.manual_seed(0)
    down, up, x = Down(2, 3, 5), Up(2, 3), torch.randn(1, 2, 8, 8)
    pooled = x.view(1, 2, 4, 2, 4, 2).mean(dim=(3, 5))
    wanted = functional.conv2d(pooled, down.first.weight, down.first.bias, padding=2)
    wanted = functional.conv2d(torch.where(wanted > 0, wanted, 0.1 * wanted), down.second.weight, down.second.bias, padding=2)
    torch.testing.assert_close(down(x), torch.where(wanted > 0, wanted, 0.1 * wanted))
    up.first.weight.data.zero_()
    skip = torch.randn(1, 3, 16, 16)
    constant = functional.leaky_relu(up.first.bias, 0.1)[None, :, None, None].expand(1, 3, 16, 16)
    wanted = functional.conv2d(torch.cat((constant, skip), 1), up.second.weight, up.second.bias, padding=1)
    torch.testing.assert_close(up(x, skip), functional.leaky_relu(wanted, 0.1))

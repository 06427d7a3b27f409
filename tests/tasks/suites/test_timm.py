from __future__ import annotations

import pytest
import torch

from tasks.spec import ModelSpec
from tasks.suites.benchmark import UnsupportedModelError, mean_of_outputs
from tasks.suites.loader import load
from tasks.suites.reference import TIMM
from tasks.suites.timm import random_images, scaled_mean_of_outputs
from tests.tasks.suites.fake import fake_tensors

CPU = torch.device("cpu")
# Height in training and in inference, of the release. Every other model has 224 in both.
SIZES = {
    "adv_inception_v3": (299, 299),
    "botnet26t_256": (256, 256),
    "cait_m36_384": (384, 384),
    "convnext_base": (224, 288),
    "crossvit_9_240": (240, 240),
    "cspdarknet53": (256, 256),
    "dm_nfnet_f0": (192, 256),
    "eca_botnext26ts_256": (256, 256),
    "eca_halonext26ts": (256, 256),
    "fbnetv3_b": (224, 256),
    "gernet_l": (256, 256),
    "gluon_inception_v3": (299, 299),
    "gluon_xception65": (299, 299),
    "inception_v3": (299, 299),
    "mobilevit_s": (256, 256),
    "nfnet_l0": (224, 288),
    "pnasnet5large": (331, 331),
    "resnest101e": (256, 256),
    "sebotnet33ts_256": (256, 256),
    "tinynet_a": (192, 192),
}
IN_THE_DEFAULT_SUITE = ("convnext_base", "ese_vovnet19b_dw", "gluon_xception65", "lcnet_050", "tinynet_a")


def tiny(name, mode="training", batch_size=2, **options):
    return load(ModelSpec("timm", name, batch_size=batch_size, options=options), mode, CPU, 1)


def fake(name, mode="training"):
    with fake_tensors():
        return load(ModelSpec("timm", name), mode, CPU, 1)


def assert_sizes(name):
    for mode, size in zip(("training", "inference"), SIZES.get(name, (224, 224)), strict=True):
        assert fake(name, mode).args[0].shape == (TIMM[name].batch_size, 3, size, size)


@pytest.mark.parametrize("name", IN_THE_DEFAULT_SUITE)
def test_images_have_the_releases_sizes(name):
    assert_sizes(name)


@pytest.mark.models
@pytest.mark.parametrize("name", [name for name in TIMM if name not in IN_THE_DEFAULT_SUITE])
def test_images_have_the_releases_sizes_in_every_model(name):
    assert_sizes(name)


def test_images_are_normalised_bytes():
    images = random_images(4, 3, 32, 32)
    assert images.dtype == torch.float32
    assert abs(images.mean()) < 1e-5
    assert abs(images.std() - 1) < 1e-5
    assert 200 < len(images.unique()) <= 256


def test_a_training_step_gives_gradients():
    benchmark = tiny("lcnet_050", image_size=32)
    benchmark.loss(benchmark.module(*benchmark.args)).backward()
    assert all(parameter.grad is not None for parameter in benchmark.module.parameters())


def test_no_path_is_dropped():
    with fake_tensors():
        module = tiny("swin_tiny_patch4_window7_224", batch_size=1).module
    assert {part.drop_prob for part in module.modules() if hasattr(part, "drop_prob")} == {0.0}


def test_dropout_is_off_and_no_option_brings_it_back():
    with fake_tensors():
        assert tiny("tf_efficientnet_b0").module.drop_rate == 0.0
        with pytest.raises(ValueError, match="unknown option 'drop_rate'"):
            tiny("tf_efficientnet_b0", drop_rate=0.5)


def test_a_transformer_is_built_for_the_size_it_is_given():
    with fake_tensors():
        benchmark = tiny("vit_tiny_patch16_224", image_size=64)
        assert benchmark.module(*benchmark.args).shape == (2, 1000)


def test_the_loss_is_the_mean_and_for_some_a_thousandth_of_it():
    outputs = torch.randn(5, 7)
    assert fake("lcnet_050").loss is mean_of_outputs
    assert fake("mnasnet_100").loss is scaled_mean_of_outputs
    torch.testing.assert_close(scaled_mean_of_outputs(outputs), outputs.mean() / 1000)


@pytest.mark.parametrize("name", [name for name, entry in TIMM.items() if entry.timm_name])
def test_todays_names_exist(name):
    import timm

    assert timm.is_model(TIMM[name].timm_name)
    assert timm.is_model_pretrained(TIMM[name].timm_name.partition(".")[0])


def test_tolerances_hold_in_training_only():
    assert fake("beit_base_patch16_224").tolerance == 1.6e-1
    assert fake("beit_base_patch16_224", "inference").tolerance is None


def test_an_unknown_name_names_the_nearest():
    with pytest.raises(UnsupportedModelError, match="no model lcnet_0500; did you mean lcnet_050"):
        tiny("lcnet_0500")


def test_an_unknown_option_names_the_nearest():
    with pytest.raises(ValueError, match=r"unknown option 'imagesize' .did you mean 'image_size'"):
        tiny("lcnet_050", imagesize=32)


def test_a_model_outside_the_list_needs_a_batch_size():
    with pytest.raises(ValueError, match="no default batch size"):
        tiny("resnet10t", batch_size=None)

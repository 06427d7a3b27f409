from __future__ import annotations

import importlib.util

import pytest
import torch

from tasks.spec import ModelSpec
from tasks.suites.benchmark import UnsupportedModelError
from tasks.suites.loader import load
from tests.tasks.suites.fake import fake_tensors

CPU = torch.device("cpu")
HAS_EFFDET = importlib.util.find_spec("effdet") is not None


def build(name, mode="training", batch_size=None):
    return load(ModelSpec("torchbench", name, batch_size=batch_size), mode, CPU, 1)


@pytest.mark.parametrize(
    ("name", "batch_size", "size"),
    [("timm_efficientnet", 32, 224), ("timm_nfnet", 128, 192), ("timm_vision_transformer", 8, 224), ("timm_vovnet", 32, 224)],
)
def test_inputs_have_torchbenchs_shapes(name, batch_size, size):
    with fake_tensors():
        benchmark = build(name)
    assert benchmark.args[0].shape == (batch_size, 3, size, size)
    assert benchmark.module.training


def test_the_giant_transformer_is_one():
    with fake_tensors():
        module = build("timm_vision_transformer_large").module
    assert (module.embed_dim, len(module.blocks)) == (1408, 40)


def test_activations_are_the_scriptable_ones():
    with fake_tensors():
        names = {type(part).__name__ for part in build("timm_efficientnet").module.modules()}
    assert not [name for name in names if name.endswith(("Me", "Jit"))]


@pytest.mark.skipif(HAS_EFFDET, reason="effdet is installed")
def test_the_detector_names_the_package_it_lacks():
    with pytest.raises(UnsupportedModelError, match=r"needs the Python package effdet.*pip install effdet"):
        build("timm_efficientdet")


@pytest.mark.skipif(not HAS_EFFDET, reason="effdet is an optional package and not installed")
def test_the_detector_returns_losses_in_training_and_detections_in_inference():
    with fake_tensors():
        training = build("timm_efficientdet")
    images, targets = training.args
    assert images.shape == (1, 3, 640, 640)
    assert targets["bbox"].shape == (1, 8, 4)
    inference = build("timm_efficientdet", "inference", batch_size=1)
    with torch.no_grad():
        assert inference.module(*inference.args).shape[2] == 6

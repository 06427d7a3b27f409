"""The wide tolerances that upstream allows some TorchBench models are for training: inference has the suite's own."""

from __future__ import annotations

import pytest
import torch

from tasks.spec import ModelSpec
from tasks.suites.loader import load
from tasks.suites.torchbench import MODELS
from tests.tasks.suites.fake import fake_tensors

WIDE_IN_TRAINING = ("shufflenet_v2_x1_0", "soft_actor_critic", "squeezenet1_1", "tacotron2", "timm_efficientnet", "yolov3")
DETECTORS = ("timm_efficientdet", "vision_maskrcnn")  # whose operators have no kernel without data


def tolerances(name, device="meta"):
    return [load(ModelSpec("torchbench", name), mode, torch.device(device), 1).tolerance for mode in ("training", "inference")]


@pytest.mark.parametrize("name", WIDE_IN_TRAINING)
def test_a_wide_tolerance_is_for_training(name):
    assert tolerances(name) == [8e-2, None]


@pytest.mark.models
@pytest.mark.parametrize("name", [name for name in MODELS if name not in WIDE_IN_TRAINING + DETECTORS])
def test_every_other_model_has_the_suites_in_both_modes(name):
    assert tolerances(name) == [None, None]


@pytest.mark.models
@pytest.mark.parametrize(("name", "in_training"), [("timm_efficientdet", 8e-2), ("vision_maskrcnn", None)])
def test_so_have_detectors(name, in_training):
    if name == "timm_efficientdet":
        pytest.importorskip("effdet", reason="effdet is an optional package")
    with fake_tensors():
        assert tolerances(name, "cpu") == [in_training, None]

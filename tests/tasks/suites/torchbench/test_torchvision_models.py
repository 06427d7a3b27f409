from __future__ import annotations

import pytest
import torch
from torch import nn

from tasks.spec import ModelSpec
from tasks.suites.benchmark import mean_of_outputs
from tasks.suites.loader import load
from tests.tasks.suites.fake import fake_tensors

CPU = torch.device("cpu")
SMALL_DETECTION = {"min_size": 96, "max_size": 128, "rpn_post_nms_top_n_test": 20}


def build(name, mode="training", batch_size=None, **options):
    return load(ModelSpec("torchbench", name, batch_size=batch_size, options=options), mode, CPU, 1)


@pytest.mark.parametrize(("mode", "batch_size"), [("training", 4), ("inference", 64)])
def test_a_classifier_has_torchbenchs_batch_and_size(mode, batch_size):
    with fake_tensors():
        benchmark = build("densenet121", mode)
    assert benchmark.args[0].shape == (batch_size, 3, 224, 224)
    assert benchmark.module.training is (mode == "training")
    assert (benchmark.loss, benchmark.source, benchmark.tolerance) == (mean_of_outputs, "library", None)


def test_a_classifier_takes_a_step():
    benchmark = build("resnet18", batch_size=2, image_size=32)
    benchmark.loss(benchmark.module(*benchmark.args)).backward()
    assert all(parameter.grad is not None for parameter in benchmark.module.parameters())


def test_the_cifar_model_normalises_groups_and_not_batches():
    benchmark = build("functorch_dp_cifar10", batch_size=2)
    assert benchmark.args[0].shape == (2, 3, 32, 32)
    assert not [module for module in benchmark.module.modules() if isinstance(module, nn.BatchNorm2d)]
    one_by_one = torch.cat([benchmark.module(image.unsqueeze(0)) for image in benchmark.args[0]])
    torch.testing.assert_close(benchmark.module(*benchmark.args), one_by_one)  # samples do not see each other, even in train mode


@pytest.mark.models
def test_mask_rcnn_detects_in_training_and_passes_gradients():
    benchmark = build("vision_maskrcnn", batch_size=1, **SMALL_DETECTION)
    (detections,) = benchmark.module(*benchmark.args)
    assert not benchmark.module.training
    assert detections["masks"].shape == (4, 1, 427, 640)
    benchmark.loss([detections]).backward()
    assert benchmark.module.roi_heads.mask_predictor.mask_fcn_logits.weight.grad.abs().sum() > 0


def test_mask_rcnn_sees_four_images_of_different_sizes():
    with fake_tensors():
        (images,) = build("vision_maskrcnn").args
    assert [tuple(image.shape) for image in images] == [(3, 427, 640), (3, 640, 640), (3, 640, 443), (3, 459, 640)]


def test_an_unknown_option_is_refused():
    with pytest.raises(ValueError, match="unknown option 'size'"):
        build("resnet18", size=32)

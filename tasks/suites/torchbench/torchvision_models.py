"""The TorchBench models that are torchvision's: twelve classifiers, a classifier of CIFAR-sized images, and Mask R-CNN.

``functorch_dp_cifar10`` is a ResNet-18 with group norm in the place of batch norm, as per-sample gradients need it; the sweep takes an
ordinary step with it. ``vision_maskrcnn`` runs its eval-mode forward with gradients in training too, as the historical harness ran it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tasks.suites import torchvision_compat
from tasks.suites.benchmark import Benchmark, BuildRequest
from tasks.suites.torchbench.library import assemble
from tasks.suites.torchbench.rebuilt import batch_size_of

_CLASSIFIER_SIZE = 224
_CIFAR_SIZE = 32
_GROUPS = 32
# Height and width of four COCO images; resized to 800 by at most 1333 they give the shapes that TorchBench's logs show.
_DETECTION_SIZES = ((427, 640), (640, 640), (640, 443), (459, 640))
# With random weights no box scores above the default threshold, and the mask head would have nothing to do.
_DETECTION_ARGUMENTS = {"box_score_thresh": 0.0, "box_detections_per_img": 4}
_DETECTION_OPTIONS = ("min_size", "max_size", "rpn_post_nms_top_n_test")


def build_classifier(request: BuildRequest) -> Benchmark:
    """A torchvision classifier of the same name; images float32 [batch, 3, 224, 224], or of the option ``image_size``."""
    from torchvision import models

    request.check_options(("image_size",))
    batch_size, size = batch_size_of(request), request.integer_option("image_size", _CLASSIFIER_SIZE)
    module = models.get_model(request.name, weights=None).train(request.training)
    return assemble(request, module, batch_size, (torch.randn(batch_size, 3, size, size),))


def build_functorch_dp_cifar10(request: BuildRequest) -> Benchmark:
    """Images float32 [batch, 3, 32, 32]; 1000 classes, as TorchBench has it."""
    from torchvision import models

    request.check_options(())
    batch_size = batch_size_of(request)
    module = models.resnet18(weights=None, norm_layer=_group_norm).train(request.training)
    return assemble(request, module, batch_size, (torch.randn(batch_size, 3, _CIFAR_SIZE, _CIFAR_SIZE),))


def build_vision_maskrcnn(request: BuildRequest) -> Benchmark:
    """A list of images, each float32 [3, height, width] in 0..1; in training too, the module is in eval mode.

    Options are torchvision's own: ``min_size`` and ``max_size`` of a resized image, ``rpn_post_nms_top_n_test`` proposals per image.
    """
    with_extension = torchvision_compat.prepare_detection(request.device)
    from torchvision.models.detection import maskrcnn_resnet50_fpn

    request.check_options(_DETECTION_OPTIONS)
    batch_size = batch_size_of(request)
    sizing: dict[str, Any] = {name: request.integer_option(name, 1) for name in request.options}
    module = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, **_DETECTION_ARGUMENTS, **sizing).eval()
    sizes = [_DETECTION_SIZES[index % len(_DETECTION_SIZES)] for index in range(batch_size)]
    images = [torch.rand(3, height, width) for height, width in sizes]
    remark = "random images of COCO's sizes; no box is below the score threshold, because random weights give low scores"
    fidelity = remark if with_extension else f"{remark}; {torchvision_compat.DETECTION_FIDELITY}"
    return assemble(request, module, batch_size, (images,), fidelity=fidelity)


def _group_norm(channels: int) -> nn.Module:
    return nn.GroupNorm(min(_GROUPS, channels), channels)

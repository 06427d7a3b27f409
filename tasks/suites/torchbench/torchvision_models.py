"""The TorchBench models that are torchvision's: twelve classifiers, a classifier of CIFAR-sized images, and Mask R-CNN.

Two more classifiers are prepared for quantization-aware training: their layers are fused and their weights and activations pass through
fake quantization, with observers that follow the range of the values.

``functorch_dp_cifar10`` is a ResNet-18 with group norm in the place of batch norm, as per-sample gradients need it; the sweep takes an
ordinary step with it. ``vision_maskrcnn`` runs its eval-mode forward with gradients in training too, as the historical harness ran it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tasks.suites import torchvision_compat
from tasks.suites.benchmark import Benchmark, BuildRequest, UnsupportedModelError
from tasks.suites.torchbench.library import assemble
from tasks.suites.torchbench.rebuilt import batch_size_of

_CLASSIFIER_SIZE = 224
_CIFAR_SIZE = 32
_GROUPS = 32
# Height and width of four COCO images; resized to 800 by at most 1333 they give the shapes that TorchBench's logs show.
_DETECTION_SIZES = ((427, 640), (640, 640), (640, 443), (459, 640))
# With random weights no box scores above the default threshold, and the mask head would have nothing to do.
_DETECTION_ARGUMENTS = {"box_score_thresh": 0.0, "box_detections_per_img": 4}
_QUANTIZED = {"mobilenet_v2_quantized_qat": "mobilenet_v2", "resnet50_quantized_qat": "resnet50"}
_QUANTIZATION_BACKEND = "fbgemm"
_DETECTION_OPTIONS = ("min_size", "max_size", "rpn_post_nms_top_n_test")


def build_classifier(request: BuildRequest) -> Benchmark:
    """A torchvision classifier of the same name; images float32 [batch, 3, 224, 224], or of the option ``image_size``."""
    from torchvision import models

    request.check_options(("image_size",))
    batch_size, size = batch_size_of(request), request.integer_option("image_size", _CLASSIFIER_SIZE)
    module = models.get_model(request.name, weights=None).train(request.training)
    return assemble(request, module, batch_size, (torch.randn(batch_size, 3, size, size),))


def build_quantized_classifier(request: BuildRequest) -> Benchmark:
    """A classifier in quantization-aware training; images float32 [batch, 3, 224, 224].

    In inference the model is converted to 8-bit integers, which torch can run on the CPU only.
    """
    from torchvision import models

    request.check_options(())
    if not request.training and request.device.type != "cpu":
        raise UnsupportedModelError(f"{request.name}: torch runs 8-bit models on the CPU only, not on {request.device.type}")
    batch_size = batch_size_of(request)
    images = torch.randn(batch_size, 3, _CLASSIFIER_SIZE, _CLASSIFIER_SIZE)
    module = _prepare_for_quantization(models.get_model(_QUANTIZED[request.name], weights=None).train(), images[:1])
    return assemble(request, module if request.training else _convert(module, images[:1]), batch_size, (images,))


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


def _prepare_for_quantization(module: nn.Module, example: torch.Tensor) -> torch.fx.GraphModule:
    try:
        from torch.ao.quantization import get_default_qat_qconfig_mapping
        from torch.ao.quantization.quantize_fx import prepare_qat_fx
    except ImportError as error:
        raise UnsupportedModelError(
            f"torch {torch.__version__} has no quantization-aware training by FX (torch.ao.quantization)"
        ) from error
    prepared: torch.fx.GraphModule = prepare_qat_fx(module, get_default_qat_qconfig_mapping(_QUANTIZATION_BACKEND), (example,))
    return prepared


def _convert(prepared: torch.fx.GraphModule, example: torch.Tensor) -> nn.Module:
    """The integer model, after one look at an image, without which the observers know no range."""
    from torch.ao.quantization.quantize_fx import convert_fx

    prepared(example)
    prepared.eval()
    converted: nn.Module = convert_fx(prepared)
    return converted


def _group_norm(channels: int) -> nn.Module:
    return nn.GroupNorm(min(_GROUPS, channels), channels)

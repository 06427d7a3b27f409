"""The TorchBench models that are timm's: seven classifiers and, through the optional package effdet, EfficientDet-D1.

The classifiers are built with timm's ``scriptable`` layers, as TorchBench built them in 2022; that choice decides which activation
functions they use.
"""

from __future__ import annotations

from typing import Any

import torch

from tasks.suites import torchvision_compat
from tasks.suites.benchmark import Benchmark, BuildRequest
from tasks.suites.torchbench.library import assemble
from tasks.suites.torchbench.rebuilt import batch_size_of

_ARCHITECTURES = {
    "timm_efficientnet": "efficientnet_b0",
    "timm_nfnet": "dm_nfnet_f0",
    "timm_regnet": "regnety_120",
    "timm_resnest": "resnest14d",
    "timm_vision_transformer": "vit_small_patch16_224",
    "timm_vision_transformer_large": "vit_giant_patch14_224",
    "timm_vovnet": "vovnet39a",
}
_DETECTOR = "tf_efficientdet_d1"
_DETECTOR_CLASSES = 90
_BOXES = 8  # ground-truth boxes per image


def build_classifier(request: BuildRequest) -> Benchmark:
    """Images float32 [batch, 3, size, size] of the architecture's training size in both modes, as TorchBench has it."""
    import timm

    request.check_options(())
    batch_size = batch_size_of(request)
    module = timm.create_model(_ARCHITECTURES[request.name], pretrained=False, scriptable=True).train(request.training)
    return assemble(request, module, batch_size, (torch.randn(batch_size, *module.default_cfg["input_size"]),))


def build_timm_efficientdet(request: BuildRequest) -> Benchmark:
    """Images float32 [batch, 3, 640, 640]; in training with boxes and classes, and effdet's own losses as outputs.

    In inference the outputs are the detections after suppression. Needs the package effdet, and torchvision's operators.
    """
    with_extension = torchvision_compat.prepare_detection(request.device)
    import effdet

    request.check_options(())
    batch_size = batch_size_of(request)
    task: dict[str, Any] = {"bench_task": "train", "bench_labeler": True} if request.training else {"bench_task": "predict"}
    module = effdet.create_model(_DETECTOR, num_classes=_DETECTOR_CLASSES, pretrained=False, pretrained_backbone=False, **task)
    size = module.config.image_size[0]
    images = torch.randn(batch_size, 3, size, size)
    inputs = (images, _detection_targets(batch_size, size)) if request.training else (images,)
    fidelity = "random images and boxes" if with_extension else f"random images and boxes; {torchvision_compat.DETECTION_FIDELITY}"
    return assemble(request, module.train(request.training), batch_size, inputs, fidelity=fidelity)


def _detection_targets(batch_size: int, size: int) -> dict[str, torch.Tensor]:
    """Boxes float32 [batch, N, 4] as y0, x0, y1, x1 in pixels, classes [batch, N] from 1, and each image's scale and size."""
    corners = torch.rand(batch_size, _BOXES, 2) * size / 2
    extents = (torch.rand(batch_size, _BOXES, 2) + 0.1) * size / 3
    return {
        "bbox": torch.cat([corners, corners + extents], dim=2),
        "cls": torch.randint(1, _DETECTOR_CLASSES + 1, (batch_size, _BOXES)).float(),
        "img_scale": torch.ones(batch_size),
        "img_size": torch.full((batch_size, 2), float(size)),
    }

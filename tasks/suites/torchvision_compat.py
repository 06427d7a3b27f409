"""The one place that knows about torchvision without its compiled extension.

PyPI's torchvision is built against CUDA's torch. Next to a CPU-only torch its extension cannot load, so the operators that it would
register do not exist, and ``import torchvision`` (and with it timm, and the vision code of transformers) ends with ``operator
torchvision::nms does not exist``: the package attaches shape functions to operators that nobody has declared. ``prepare`` declares the
schemas of those operators, and only when the extension is missing; it has to run before the first import of torchvision. Everything
but the detection operators then works as it stands.

The detection models need two operators more. ``prepare_detection`` gives ``nms`` a kernel in plain torch and lets ``roi_align`` run
torchvision's own Python version as ordinary eager code; torchvision itself would compile that version on its first call, and an eager
arm that is half compiled measures nothing. Both are slower than the extension's kernels, so a benchmark built this way says so in its
fidelity remark. Where the extension loads, this module changes nothing.
"""

from __future__ import annotations

import importlib
import importlib.util
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader, FileFinder

import numpy
import torch

from tasks.suites.benchmark import UnsupportedModelError

DETECTION_FIDELITY = "torchvision's extension is not loadable beside this torch: nms and roi_align run as plain torch code"

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


@cache
def prepare() -> bool:
    """Make ``import torchvision`` possible; whether its compiled extension is there. False also where torchvision is not installed."""
    if _extension_loads():
        return True
    _fallback_library()
    return False


def prepare_detection(device: torch.device) -> bool:
    """Make torchvision's detection models runnable on ``device``; whether they run on the compiled extension.

    Raises:
        UnsupportedModelError: the extension does not load, and ``device`` is none that plain torch code stands in for it on.
    """
    if prepare():
        return True
    if device.type != "cpu":
        raise UnsupportedModelError(
            f"torchvision's operators nms and roi_align are missing on {device.type}: its extension does not load beside torch "
            f"{torch.__version__}; install the torchvision that was built for this torch"
        )
    _stand_in_for_detection_operators()
    return False


@cache
def _stand_in_for_detection_operators() -> None:
    boxes = importlib.import_module("torchvision.ops.boxes")
    pooling = importlib.import_module("torchvision.ops.roi_align")  # the package's attribute of that name is the function
    _fallback_library().impl("nms", non_maximum_suppression, "CPU")  # type: ignore[no-untyped-call]
    # In front of an operator that now exists stands a check that the extension is there; around the function, a lazy torch.compile.
    vars(boxes)["_assert_has_ops"] = _nothing
    vars(pooling)["_roi_align"] = vars(pooling)["_roi_align"].__wrapped__


def non_maximum_suppression(boxes: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    """Greedy suppression: indices (int64, best score first) of the boxes kept.

    ``boxes`` is float [N, 4] as x1, y1, x2, y2 and ``scores`` float [N]; a box goes when its intersection over union with a better one
    that stays is above ``iou_threshold``.
    """
    order = scores.argsort(descending=True, stable=True)
    overlapping = (_pairwise_iou(boxes[order].float()) > iou_threshold).numpy()
    suppressed = numpy.zeros(len(order), dtype=bool)
    keep = []
    for index, row in enumerate(overlapping):
        if not suppressed[index]:
            keep.append(index)
            suppressed |= row
    return order[torch.tensor(keep, dtype=torch.int64)]


def _pairwise_iou(boxes: torch.Tensor) -> torch.Tensor:
    left, top, right, bottom = boxes.unbind(dim=1)
    area = (right - left) * (bottom - top)
    width = (torch.minimum(right[:, None], right) - torch.maximum(left[:, None], left)).clamp(min=0)
    height = (torch.minimum(bottom[:, None], bottom) - torch.maximum(top[:, None], top)).clamp(min=0)
    intersection = width * height
    return intersection / (area[:, None] + area - intersection)


def _extension_loads() -> bool:
    package = importlib.util.find_spec("torchvision")
    if package is None or not package.submodule_search_locations:
        return False
    finder = FileFinder(package.submodule_search_locations[0], (ExtensionFileLoader, EXTENSION_SUFFIXES))
    extension = finder.find_spec("_C")
    if extension is None or extension.origin is None:
        return False
    try:
        torch.ops.load_library(extension.origin)  # type: ignore[no-untyped-call]
    except OSError:
        return False
    return True


@cache
def _fallback_library() -> torch.library.Library:
    """The declared schemas; they vanish with this object, so it has to live as long as the process."""
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for schema in _SCHEMAS:
        library.define(schema)  # type: ignore[no-untyped-call]
    return library


def _nothing() -> None:
    """Stands in for torchvision's check."""

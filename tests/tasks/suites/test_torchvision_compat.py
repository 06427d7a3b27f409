from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tasks.suites import torchvision_compat
from tasks.suites.benchmark import UnsupportedModelError

CPU = torch.device("cpu")
COORDINATES = st.integers(0, 12)


def overlap(first, second):
    width = max(0, min(first[2], second[2]) - max(first[0], second[0]))
    height = max(0, min(first[3], second[3]) - max(first[1], second[1]))
    area = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return width * height / (sum(area) - width * height)


def suppress_one_by_one(boxes, threshold):
    """Boxes in the order of their scores, best first."""
    keep = []
    for index, box in enumerate(boxes):
        if all(overlap(boxes[kept], box) <= threshold for kept in keep):
            keep.append(index)
    return keep


@given(st.lists(st.tuples(COORDINATES, COORDINATES, st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=20))
def test_suppression_agrees_with_the_definition(places):
    boxes = [(x, y, x + width, y + height) for x, y, width, height in places]
    scores = torch.linspace(1, 0, len(boxes))
    shuffled = torch.randperm(len(boxes))
    kept = torchvision_compat.non_maximum_suppression(torch.tensor(boxes).float()[shuffled], scores[shuffled], 0.3)
    assert shuffled[kept].tolist() == suppress_one_by_one(boxes, 0.3)


def test_suppression_of_nothing_is_nothing():
    kept = torchvision_compat.non_maximum_suppression(torch.zeros(0, 4), torch.zeros(0), 0.5)
    assert kept.shape == (0,)
    assert kept.dtype == torch.int64


def test_torchvision_and_timm_import_after_prepare():
    program = "from tasks.suites import torchvision_compat; torchvision_compat.prepare(); import torchvision.ops, timm"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_without_the_extension_roi_align_averages_the_region():
    if torchvision_compat.prepare_detection(CPU):
        pytest.skip("torchvision's extension loads here, and nothing is replaced")
    from torchvision.ops import nms, roi_align

    image = torch.arange(16.0).view(1, 1, 4, 4)
    pooled = roi_align(image, torch.tensor([[0.0, 0.0, 0.0, 4.0, 4.0]]), output_size=1, sampling_ratio=4, aligned=True)
    assert torch.allclose(pooled, image.mean().view(1, 1, 1, 1))
    assert nms(torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 4]]), torch.tensor([0.1, 0.9]), 0.5).tolist() == [1]


def test_another_device_without_the_extension_is_unsupported():
    if torchvision_compat.prepare():
        pytest.skip("torchvision's extension loads here")
    with pytest.raises(UnsupportedModelError, match="nms and roi_align are missing on cuda"):
        torchvision_compat.prepare_detection(torch.device("cuda"))

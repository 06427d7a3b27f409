"""The two classifiers in quantization-aware training, and what becomes of them in inference."""

from __future__ import annotations

import pytest
import torch

from tasks.spec import ModelSpec
from tasks.suites.benchmark import BuildRequest, UnsupportedModelError
from tasks.suites.loader import load
from tasks.suites.torchbench.torchvision_models import build_quantized_classifier

CPU = torch.device("cpu")
LEVELS = 256


def built(mode, name="mobilenet_v2_quantized_qat"):
    return load(ModelSpec("torchbench", name, batch_size=2), mode, CPU, 1)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("mobilenet_v2_quantized_qat", 3_504_872),
        pytest.param("resnet50_quantized_qat", 25_557_032, marks=pytest.mark.slow),
    ],
)
def test_training_keeps_the_parameters_and_rounds_what_flows(name, parameters):
    benchmark = built("training", name)
    outputs = benchmark.module(*benchmark.args)
    benchmark.loss(outputs).backward()

    assert sum(parameter.numel() for parameter in benchmark.module.parameters()) == parameters
    assert outputs.shape == (2, 1000)
    assert LEVELS // 4 < len(outputs.unique()) <= LEVELS  # 2000 outputs, eight bits
    assert all(parameter.grad is not None and torch.isfinite(parameter.grad).all() for parameter in benchmark.module.parameters())


def test_inference_runs_in_integers():
    benchmark = built("inference")

    assert benchmark.module(*benchmark.args).shape == (2, 1000)
    assert list(benchmark.module.parameters()) == []
    assert any("quantized" in type(part).__module__ for part in benchmark.module.modules())


def test_integers_are_for_the_cpu():
    request = BuildRequest("resnet50_quantized_qat", "inference", torch.device("cuda"))
    with pytest.raises(UnsupportedModelError, match="on the CPU only, not on cuda"):
        build_quantized_classifier(request)

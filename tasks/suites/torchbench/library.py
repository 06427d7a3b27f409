"""What the TorchBench models that come from a library have in common: how a ``Benchmark`` is put together.

Random weights, the library's own class, TorchBench's sizes; the loss is the mean of the outputs, not the model's own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from tasks.suites.benchmark import Benchmark, BuildRequest, mean_of_outputs

# The limits that pytorch/benchmarks/dynamo gave these models, in both modes.
_TOLERANCES = {
    "alexnet": 1e-3,
    "densenet121": 1e-3,
    "hf_Albert": 1e-3,
    "mobilenet_v3_large": 1e-3,
    "shufflenet_v2_x1_0": 8e-2,
    "squeezenet1_1": 8e-2,
    "timm_efficientdet": 8e-2,
    "timm_efficientnet": 8e-2,
    "vgg16": 1e-3,
    "vision_maskrcnn": 1e-3,
}


def assemble(
    request: BuildRequest,
    module: nn.Module,
    batch_size: int,
    args: tuple[Any, ...] = (),
    kwargs: dict[str, Any] | None = None,
    *,
    loss: Callable[[Any], torch.Tensor] = mean_of_outputs,
    fidelity: str | None = None,
) -> Benchmark:
    """The benchmark of ``module(*args, **kwargs)``; the module's mode is the caller's business."""
    tolerance = _TOLERANCES.get(request.name)
    return Benchmark(
        module=module,
        args=args,
        kwargs=kwargs or {},
        loss=loss,
        batch_size=batch_size,
        source="library",
        fidelity=fidelity,
        tolerance=tolerance,
        tolerance_reason=None if tolerance is None else f"pytorch/benchmarks/dynamo allows this model {tolerance:g}",
    )

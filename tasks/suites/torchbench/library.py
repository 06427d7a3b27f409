"""What the TorchBench models that come from a library have in common: how a ``Benchmark`` is put together.

Random weights, the library's own class, TorchBench's sizes; the loss is the mean of the outputs, not the model's own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from tasks.suites.benchmark import Benchmark, BuildRequest, mean_of_outputs

# The limits that pytorch/benchmarks/dynamo gave these models in training. Its list of models with 1e-3 has no place here: that is the
# suite's limit in training, and the list did not apply in inference either.
_TRAINING_TOLERANCES = {
    "shufflenet_v2_x1_0": 8e-2,
    "squeezenet1_1": 8e-2,
    "timm_efficientdet": 8e-2,
    "timm_efficientnet": 8e-2,
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
    tolerance = _TRAINING_TOLERANCES.get(request.name) if request.training else None
    return Benchmark(
        module=module,
        args=args,
        kwargs=kwargs or {},
        loss=loss,
        batch_size=batch_size,
        source="library",
        fidelity=fidelity,
        tolerance=tolerance,
        tolerance_reason=None if tolerance is None else f"pytorch/benchmarks/dynamo allows this model {tolerance:g} in training",
    )

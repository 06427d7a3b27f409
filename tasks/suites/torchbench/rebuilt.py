"""What the models that this project writes itself have in common: how a request's batch size is settled and a ``Benchmark`` assembled.

The models follow the papers that their modules name; TorchBench supplies hyper-parameters and input shapes only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from tasks.suites.benchmark import Benchmark, BuildRequest, mean_of_outputs
from tasks.suites.torchbench import EXTRA, MODELS


def batch_size_of(request: BuildRequest) -> int:
    """The requested batch size, else the table's for the request's mode; ``ValueError`` if it is not positive."""
    if request.batch_size is None:
        entry = MODELS[request.name] if request.name in MODELS else EXTRA[request.name]
        return entry.default_batch_size(request.mode)
    if request.batch_size < 1:
        raise ValueError(f"{request.name}: batch_size must be at least 1, not {request.batch_size}")
    return request.batch_size


def reject_unknown_options(request: BuildRequest, *known: str) -> None:
    """``ValueError`` if the manifest gives an option that this model does not have."""
    request.check_options(known)


def assemble(
    request: BuildRequest,
    module: nn.Module,
    args: tuple[Any, ...],
    batch_size: int,
    *,
    loss: Callable[[Any], torch.Tensor] = mean_of_outputs,
    fidelity: str | None = None,
    always_train: bool = False,
    training_tolerance: float | None = None,
    tolerance_reason: str | None = None,
) -> Benchmark:
    """The benchmark of a rebuilt model, in train mode for training and in eval mode otherwise.

    ``always_train``: in train mode in inference too, as the historical harness ran the model. The tolerance is upstream's for training.
    """
    wide = training_tolerance is not None and request.training
    return Benchmark(
        module=module.train(request.training or always_train),
        args=args,
        kwargs={},
        loss=loss,
        batch_size=batch_size,
        source="rebuilt",
        fidelity=fidelity,
        tolerance=training_tolerance if wide else None,
        tolerance_reason=tolerance_reason if wide else None,
    )

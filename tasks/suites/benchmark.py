"""What a suite's builder is given, and what it returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from tasks.spec import Scalar


class UnsupportedModelError(Exception):
    """This machine or these library versions cannot run the model; the message says what lacks and, if possible, the remedy."""


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """One model to build, on ``device`` and with random weights. ``batch_size`` None asks for the suite's own default.

    ``options`` come from the manifest (``seq_len``, ``image_size`` and the like); a builder rejects those that it does not know with
    ``ValueError``. Builders run under ``torch.manual_seed(seed)`` and ``with torch.device(device)``.
    """

    name: str
    mode: str  # "training" or "inference"
    device: torch.device
    batch_size: int | None = None
    options: dict[str, Scalar] = field(default_factory=dict)
    seed: int = 1337

    @property
    def training(self) -> bool:
        return self.mode == "training"


@dataclass(slots=True)
class Benchmark:
    """A model ready to be stepped.

    ``module(*args, **kwargs)`` gives the outputs, ``loss(outputs)`` a scalar tensor. Parameters and inputs are float32 on the
    requested device; the module is already in the train or eval mode that the protocol of its suite asks for.
    """

    module: torch.nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    loss: Callable[[Any], torch.Tensor]
    batch_size: int
    source: str  # "library", "rebuilt", "checkout", "factory" or "toy"
    fidelity: str | None = None  # how the model differs from the historical one of that name
    tolerance: float | None = None  # accuracy tolerance that this model needs, where it is not the suite's default
    tolerance_reason: str | None = None


def mean_of_outputs(outputs: Any) -> torch.Tensor:
    """TorchBench's and TIMM's loss: the mean of each floating-point output tensor, averaged over nested outputs."""
    means = [tensor.float().mean() for tensor in _tensors(outputs) if tensor.is_floating_point()]
    if not means:
        raise TypeError(f"no floating-point tensor in outputs of type {type(outputs).__name__}")
    return torch.stack(means).mean()


def _tensors(outputs: Any) -> list[torch.Tensor]:
    if isinstance(outputs, torch.Tensor):
        return [outputs]
    if isinstance(outputs, dict):
        return [tensor for value in outputs.values() for tensor in _tensors(value)]
    if isinstance(outputs, (list, tuple)):
        return [tensor for value in outputs for tensor in _tensors(value)]
    return []

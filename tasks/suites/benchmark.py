"""What a suite's builder is given, and what it returns."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
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

    def batch_size_or(self, default: int | None) -> int:
        """The requested batch size, else ``default``; ``ValueError`` if there is neither, or if it is not positive."""
        size = default if self.batch_size is None else self.batch_size
        if size is None:
            raise ValueError(f"{self.name} is none of its suite's listed models and has no default batch size: give one")
        if size < 1:
            raise ValueError(f"{self.name}: batch_size must be at least 1, not {size}")
        return size

    def check_options(self, known: Iterable[str]) -> None:
        """``ValueError`` if the manifest gives an option that is not among ``known``; it names the nearest one."""
        names = sorted(known)
        for option in self.options:
            if option not in names:
                near = difflib.get_close_matches(option, names, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names) or 'none'}"
                raise ValueError(f"{self.name}: unknown option {option!r} ({hint})")

    def integer_option(self, name: str, default: int) -> int:
        """The option ``name``, else ``default``; ``ValueError`` if it is no positive integer."""
        value = self.options.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{self.name}: option {name} must be a positive integer, not {value!r}")
        return value


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

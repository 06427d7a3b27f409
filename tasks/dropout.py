"""Dropout that drops nothing: eager and compiled draw different random numbers, and could not be compared otherwise.

A probability of ``NEGLIGIBLE_RATE`` keeps the operator, and what it costs, in what is timed. It keeps a few drops as well: the fused
operator on CUDA draws float32 numbers from (0, 1] and drops where one is not below 1, which rounding makes of one in 2^25, several per
step of a large language model. Next to nothing for most; all that there is where gradients cancel (RoBERTa's, whose inputs are one
token). So what is checked steps eagerly with ``undropped``.

Needs torch only, because ``sweep repro`` copies it into its scripts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

NEGLIGIBLE_RATE = 1e-30
_DROPOUTS = (torch.nn.functional.dropout, torch.dropout)  # both take the input first and the probability second, as ``p``


def neutralise_dropout(module: torch.nn.Module) -> int:
    """Make every dropout probability of ``module`` negligible; how many there were."""
    found = 0
    for part in module.modules():
        for name, value in vars(part).items():
            is_rate = "drop" in name or (name == "p" and isinstance(part, torch.nn.modules.dropout._DropoutNd))  # noqa: SLF001
            if is_rate and isinstance(value, float) and NEGLIGIBLE_RATE < value < 1.0:
                setattr(part, name, NEGLIGIBLE_RATE)
                found += 1
    return found


def undropped(step: Callable[[], Any]) -> Callable[[], Any]:
    """``step``, run eagerly, with every dropout of negligible probability left out; others are as they were."""

    def stepped() -> Any:
        with _NothingDropped():
            return step()

    return stepped


class _NothingDropped(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if func in _DROPOUTS and _hardly_drops(*args[1:], **given):
            tensor = args[0] if args else given["input"]
            return tensor.clone()  # the caller may write to it
        return func(*args, **given)


def _hardly_drops(p: float = 0.5, training: bool = True, *_: Any, **other: Any) -> bool:
    """By the arguments of either function but the input; ``torch.dropout`` says ``train``."""
    return bool(other.get("train", training)) and 0.0 < p <= NEGLIGIBLE_RATE

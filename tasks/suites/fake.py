"""Models without memory or arithmetic: tensors that have a shape, a type and a device, and no data.

What a library computes on the host while it builds a model (timm asks for ``device="cpu"`` there) stays real, and so does what follows
from it, because Python loops over the numbers. LayerDrop's draw, the one number that a forward pass decides upon, is a constant.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_iter

_DRAW = 0.5


class _HostArithmetic(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.rand and args and args[0] in ([], ()):
            return _DRAW
        if kwargs.get("device") == "cpu" or _only_real_tensors(args, kwargs):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        return func(*args, **kwargs)


def _only_real_tensors(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    tensors = [value for value in tree_iter((args, kwargs)) if isinstance(value, torch.Tensor)]
    return bool(tensors) and not any(isinstance(tensor, FakeTensor) for tensor in tensors)


@contextlib.contextmanager
def fake_tensors() -> Iterator[None]:
    """Inside, building and stepping a model on the CPU costs neither memory nor arithmetic."""
    with FakeTensorMode(), _HostArithmetic():
        yield

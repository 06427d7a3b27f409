"""What is stepped: one training or inference step of a model, and the state that a step starts from.

A training step is: gradients to None, forward and loss under autocast, backward outside of it, then the optimizer if there is one. It
returns the loss and nothing else, so that the compiler may discard outputs that nobody reads, as it may in a training loop. An inference
step returns the outputs. There is no gradient scaler: it would be a constant factor here.
"""

from __future__ import annotations

import copy
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils import _pytree as pytree

from tasks.dropout import neutralise_dropout
from tasks.spec import PrecisionSpec
from tasks.suites.benchmark import Benchmark

LEARNING_RATE = 0.01


@dataclass(frozen=True, slots=True)
class Workload:
    """A model with all that its step needs. ``step`` takes nothing and is what is timed, as it is and compiled."""

    module: torch.nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    loss: Callable[[Any], torch.Tensor]
    training: bool
    autocast_dtype: torch.dtype | None
    optimizer: torch.optim.Optimizer | None
    step: Callable[[], Any]


def prepare(benchmark: Benchmark, mode: str, precision: PrecisionSpec, optimizer: str, device: torch.device) -> Workload:
    """The step of ``benchmark`` in the precision and with the optimizer that the task asks for.

    Raises:
        ValueError: the precision or the optimizer has no such name.
    """
    set_tf32(precision.tf32, device)
    neutralise_dropout(benchmark.module)
    for parameter in benchmark.module.parameters():
        parameter.requires_grad_(parameter.requires_grad and mode == "training")
    parts = (benchmark.module, benchmark.args, benchmark.kwargs, benchmark.loss)
    return _workload(*parts, mode == "training", autocast_dtype(precision, device), optimizer, device)


def in_precision(workload: Workload, dtype: torch.dtype, device: torch.device) -> Workload:
    """A copy of ``workload`` on ``device`` that computes in ``dtype`` throughout, without autocast: the reference of an accuracy check.

    Each parameter and buffer is converted as it is copied, so that the device never holds a second copy in the old dtype.
    """
    tensors = [*workload.module.parameters(), *workload.module.buffers()]
    converted = {id(tensor): _converted(tensor, dtype, device) for tensor in tensors if type(tensor) in (torch.Tensor, torch.nn.Parameter)}
    module = copy.deepcopy(workload.module, converted).to(device=device, dtype=dtype)
    module.zero_grad(set_to_none=True)
    inputs = (workload.args, workload.kwargs)
    args, kwargs = pytree.tree_map_only(torch.Tensor, lambda tensor: _converted(tensor, dtype, device), inputs)
    optimizer = {torch.optim.SGD: "sgd", torch.optim.Adam: "adam"}.get(type(workload.optimizer), "none")
    return _workload(module, args, kwargs, workload.loss, workload.training, None, optimizer, device)


def without_autocast(workload: Workload, device: torch.device) -> Workload:
    """The same module and inputs, stepped in the dtypes that they have."""
    forward = _autocast_forward(workload.module, workload.args, workload.kwargs, workload.loss if workload.training else None, None, device)
    plain = _training_step(workload.module, forward, workload.optimizer) if workload.training else _inference_step(forward)
    return replace(workload, autocast_dtype=None, step=plain)


@torch.no_grad()
def outputs_of(workload: Workload, device: torch.device) -> Any:
    """What the module gives from the state that it is in, in the precision of the step."""
    return _autocast_forward(workload.module, workload.args, workload.kwargs, None, workload.autocast_dtype, device)()


def batch_of(workload: Workload) -> int | None:
    """The leading dimension that all inputs share; None if they do not, or if the module mixes the samples of a batch."""
    if any(isinstance(part, torch.nn.modules.batchnorm._BatchNorm) and part.training for part in workload.module.modules()):  # noqa: SLF001
        return None
    tensors = [leaf for leaf in pytree.tree_leaves((workload.args, workload.kwargs)) if isinstance(leaf, torch.Tensor)]
    sizes = {tensor.shape[0] if tensor.ndim else 0 for tensor in tensors}
    return sizes.pop() if len(sizes) == 1 else None


def in_chunks(workload: Workload, count: int, device: torch.device) -> Workload:
    """``workload`` with a step that takes the batch in ``count`` chunks of equal size, so that it needs less memory at a time.

    Losses and gradients are averaged over the chunks, outputs joined, and scalar outputs averaged. Whether that is the same step depends on
    the model: the caller has to look.
    """
    module, training = workload.module, workload.training
    forwards = [
        _autocast_forward(module, args, kwargs, workload.loss if training else None, workload.autocast_dtype, device)
        for args, kwargs in _split((workload.args, workload.kwargs), count)
    ]

    def training_step() -> torch.Tensor:
        module.zero_grad(set_to_none=True)
        losses = []
        for forward in forwards:
            loss = forward() / count
            loss.backward()
            losses.append(loss.detach())
        if workload.optimizer is not None:
            workload.optimizer.step()
        return torch.stack(losses).sum(0)

    def inference_step() -> Any:
        with torch.no_grad():
            return _joined([forward() for forward in forwards])

    return replace(workload, step=training_step if training else inference_step)


def _split(inputs: Any, count: int) -> list[Any]:
    """``inputs``, ``count`` times, each with its part of every tensor."""
    leaves, structure = pytree.tree_flatten(inputs)
    parts = [leaf.chunk(count) if isinstance(leaf, torch.Tensor) else (leaf,) * count for leaf in leaves]
    return [pytree.tree_unflatten(list(part), structure) for part in zip(*parts, strict=True)]


def _joined(outputs: list[Any]) -> Any:
    """One output of the outputs of chunks.

    Raises:
        ValueError: they hold something that is neither a tensor of samples nor a floating-point scalar.
    """
    flat = [pytree.tree_flatten(output) for output in outputs]
    leaves = [_joined_leaf(parts) for parts in zip(*(leaves for leaves, _ in flat), strict=True)]
    return pytree.tree_unflatten(leaves, flat[0][1])


def _joined_leaf(parts: tuple[Any, ...]) -> Any:
    first = parts[0]
    if isinstance(first, torch.Tensor) and first.ndim > 0:
        return torch.cat(parts)
    if isinstance(first, torch.Tensor) and first.is_floating_point():
        return torch.stack(parts).mean(0)
    if first is None:
        return None
    raise ValueError(f"outputs of chunks cannot be joined: {type(first).__name__}")


def _workload(
    module: torch.nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    loss: Callable[[Any], torch.Tensor],
    training: bool,
    dtype: torch.dtype | None,
    optimizer_name: str,
    device: torch.device,
) -> Workload:
    optimizer = make_optimizer(optimizer_name, module, device) if training else None
    forward = _autocast_forward(module, args, kwargs, loss if training else None, dtype, device)
    step = _training_step(module, forward, optimizer) if training else _inference_step(forward)
    return Workload(module, args, kwargs, loss, training, dtype, optimizer, step)


def _autocast_forward(
    module: torch.nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    loss: Callable[[Any], torch.Tensor] | None,
    dtype: torch.dtype | None,
    device: torch.device,
) -> Callable[[], Any]:
    """The forward pass, and the loss if it is given, under autocast if ``dtype`` is given."""
    device_type = device.type

    def forward() -> Any:
        outputs = module(*args, **kwargs)
        return outputs if loss is None else loss(outputs)

    def forward_under_autocast() -> Any:
        with torch.autocast(device_type, dtype=dtype):
            return forward()

    return forward if dtype is None else forward_under_autocast


def _training_step(
    module: torch.nn.Module, forward: Callable[[], torch.Tensor], optimizer: torch.optim.Optimizer | None
) -> Callable[[], torch.Tensor]:
    def step() -> torch.Tensor:
        module.zero_grad(set_to_none=True)
        loss = forward()
        loss.backward()  # type: ignore[no-untyped-call]
        if optimizer is not None:
            optimizer.step()
        return loss

    return step


def _inference_step(forward: Callable[[], Any]) -> Callable[[], Any]:
    def step() -> Any:
        with torch.no_grad():
            return forward()

    return step


def make_optimizer(name: str, module: torch.nn.Module, device: torch.device) -> torch.optim.Optimizer | None:
    """``none``, ``sgd`` or ``adam``; both work on all parameters at once, and Adam's state can stay on the GPU."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if name == "none" or not parameters:
        return None
    if name == "sgd":
        return torch.optim.SGD(parameters, lr=LEARNING_RATE, foreach=True)
    if name == "adam":
        return torch.optim.Adam(parameters, lr=LEARNING_RATE, foreach=True, capturable=device.type == "cuda")
    raise ValueError(f"unknown optimizer {name!r}: none, sgd or adam")


def autocast_dtype(precision: PrecisionSpec, device: torch.device) -> torch.dtype | None:
    """The dtype to autocast to; None for float32."""
    if precision.dtype == "float32":
        return None
    if precision.dtype != "amp":
        raise ValueError(f"unknown precision {precision.dtype!r}: float32 or amp")
    name = precision.autocast_dtype or ("float16" if device.type == "cuda" else "bfloat16")
    known = {"float16": torch.float16, "bfloat16": torch.bfloat16}
    if name not in known:
        raise ValueError(f"unknown autocast dtype {name!r}: {' or '.join(known)}")
    return known[name]


def set_tf32(allowed: bool, device: torch.device) -> None:
    """Let float32 matrix products and convolutions on CUDA use TF32, or not.

    The older of torch's two interfaces on purpose: Inductor's autotuner still reads it (``torch.get_float32_matmul_precision``), and that
    raises an error once the newer one was used.
    """
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = allowed
        torch.backends.cudnn.allow_tf32 = allowed


def seed_everything(seed: int) -> None:
    """Every generator that a step may draw from."""
    torch.manual_seed(seed)
    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed % 2**32)


def generators(device: torch.device) -> tuple[object, ...]:
    """What changes whenever a step draws from a generator that ``seed_everything`` seeds."""
    states: list[object] = [random.getstate(), torch.get_rng_state().numpy().tobytes()]
    if "numpy" in sys.modules:
        _, words, *rest = sys.modules["numpy"].random.get_state()
        states += [words.tobytes(), *rest]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device).numpy().tobytes())
    return tuple(states)


def synchronize(device: torch.device) -> None:
    """Wait until ``device`` has done all its work; a CPU has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def shapes(inputs: Any) -> str:
    """The tensors among ``inputs``, as ``float32[8, 3], int64[8]``."""
    tensors = [leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, torch.Tensor)]
    return ", ".join(f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}" for tensor in tensors)


class State:
    """What a step changes: parameters, buffers, inputs, the optimizer's state and the generators.

    Held as one copy, on the device, or on the host once the device has no room for it (``on_host``).

    Restored in place: the tensors keep their identity, which compiled code relies on. Gradients are filled with NaN rather than removed,
    because a step must replace them, and whether they exist is part of what the compiler specialises on.
    """

    def __init__(self, workload: Workload, seed: int) -> None:
        self._workload = workload
        self._seed = seed
        self._tensors = list(_state_tensors(workload))
        self.on_host = False
        try:
            self._copies = [tensor.detach().clone() for _, tensor in self._tensors]
        except torch.OutOfMemoryError:
            self._copies = [tensor.detach().to("cpu", copy=True) for _, tensor in self._tensors]
            self.on_host = True

    @property
    def initial(self) -> dict[str, torch.Tensor]:
        """Parameters and buffers as they were, by the names of ``named_state``."""
        return {name: copied for (name, _), copied in zip(self._tensors, self._copies, strict=True) if name is not None}

    def to_host(self) -> None:
        """Give the device its memory back; restoring takes longer from now on."""
        for index, copied in enumerate(self._copies):
            self._copies[index] = copied.to("cpu")
        self.on_host = True

    @torch.no_grad()
    def restore(self, seed_offset: int = 0) -> None:
        """All of it; the generators start from the seed plus ``seed_offset``."""
        for (_, tensor), copied in zip(self._tensors, self._copies, strict=True):
            tensor.copy_(copied)
        optimizer = self._workload.optimizer
        for value in pytree.tree_leaves([] if optimizer is None else list(optimizer.state.values())):
            if isinstance(value, torch.Tensor):
                value.zero_()  # as it was before the first step
        for parameter in self._workload.module.parameters():
            if parameter.grad is not None:  # of a sparse one only what it holds can be filled
                (parameter.grad._values() if parameter.grad.is_sparse else parameter.grad).fill_(float("nan"))  # noqa: SLF001
        seed_everything(self._seed + seed_offset)


def named_state(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters, as ``parameter.NAME``, then buffers, persistent or not, as ``buffer.NAME``; shared ones once."""
    yield from ((f"parameter.{name}", parameter) for name, parameter in module.named_parameters())
    yield from ((f"buffer.{name}", buffer) for name, buffer in module.named_buffers())


def _state_tensors(workload: Workload) -> Iterator[tuple[str | None, torch.Tensor]]:
    """Parameters and buffers with their names, then the inputs, which have none."""
    yield from named_state(workload.module)
    yield from ((None, leaf) for leaf in pytree.tree_leaves((workload.args, workload.kwargs)) if isinstance(leaf, torch.Tensor))


def _converted(tensor: torch.Tensor, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A copy on ``device``, in ``dtype`` if it holds floating-point numbers; a parameter stays one."""
    copied = tensor.detach().to(device=device, dtype=dtype if tensor.is_floating_point() else None, copy=True)
    return torch.nn.Parameter(copied, tensor.requires_grad) if isinstance(tensor, torch.nn.Parameter) else copied

"""From a model's description to a ``Benchmark``: finds the builder, seeds, and builds on the device. Nothing here needs a network.

A model comes from, in this order: its ``factory``, one of the suites of this package, or a suite that an installed package has added.

A *factory*, ``package.module:function``, is called with the ``BuildRequest``. It returns a ``Benchmark``, or a triple of the module, its
inputs and its loss. Inputs are a tuple of positional arguments, or a pair of such a tuple and a dict of keyword arguments; a loss is a
function from outputs to a scalar, or None for the mean of the outputs.

An *added suite* is an entry point in the group ``compile_sweep.suites``: its name is the suite's, its object a function from
``BuildRequest`` to ``Benchmark``.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

import torch

from tasks.spec import ModelSpec
from tasks.suites import torchvision_compat
from tasks.suites.benchmark import Benchmark, BuildRequest, UnsupportedModelError, mean_of_outputs

ENTRY_POINTS = "compile_sweep.suites"
_MODES = ("training", "inference")
_LIBRARY_SUITES = ("huggingface", "timm")

Builder = Callable[[BuildRequest], Benchmark]


def load(model: ModelSpec, mode: str, device: torch.device, seed: int) -> Benchmark:
    """Build ``model`` for ``mode`` on ``device``, with weights and inputs that follow from ``seed``.

    Raises:
        UnsupportedModelError: these libraries have no such model, or a package that it needs is not installed.
        ValueError: the description makes no sense: no such suite, mode or option, or no batch size where there is no default.
    """
    if mode not in _MODES:
        raise ValueError(f"unknown mode {mode!r}: one of {', '.join(_MODES)}")
    request = BuildRequest(model.name, mode, device, model.batch_size, dict(model.options), seed)
    torchvision_compat.prepare()
    with _missing_packages_as_unsupported(model):
        builder = _builder(model)
        _seed_everything(seed)
        with torch.device(device):
            benchmark = builder(request)
    _move_strays(benchmark.module, device)
    return benchmark


def _move_strays(module: torch.nn.Module, device: torch.device) -> None:
    """No default device reaches a tensor made from numpy or by an old constructor: effdet's anchors, XLNet's weights."""
    if any(tensor.device.type != device.type for tensor in (*module.parameters(), *module.buffers())):
        module.to(device)


def _builder(model: ModelSpec) -> Builder:
    if model.factory is not None:
        return partial(_from_factory, _import(model.factory))
    if model.suite in _LIBRARY_SUITES:
        return cast("Builder", _import(f"tasks.suites.{model.suite}:build"))
    if model.source == "checkout":
        return cast("Builder", _import("tasks.suites.checkout:build"))
    if model.suite == "torchbench":
        return _torchbench_builder(model.name)
    return _added_builder(model.suite)


def _torchbench_builder(name: str) -> Builder:
    from tasks.suites import torchbench

    entry = torchbench.MODELS.get(name) or torchbench.EXTRA.get(name)
    if entry is None:
        raise ValueError(f"the torchbench suite has no model {name!r}")
    return cast("Builder", _import(f"tasks.suites.torchbench.{entry.builder}"))


def _added_builder(suite: str) -> Builder:
    added = importlib.metadata.entry_points(group=ENTRY_POINTS)
    if suite not in added.names:
        known = ", ".join([*_LIBRARY_SUITES, "torchbench", *sorted(added.names)])
        raise ValueError(f"unknown suite {suite!r}: this machine has {known}")
    builder: Builder = added[suite].load()
    return builder


def _import(reference: str) -> Any:
    module_name, _, attribute = reference.partition(":")
    if not attribute:
        raise ValueError(f"{reference!r} does not name a function; write package.module:function")
    module = importlib.import_module(module_name)
    try:
        return getattr(module, attribute)
    except AttributeError:
        raise ValueError(f"module {module_name} has no {attribute!r}") from None


def _from_factory(factory: Callable[[BuildRequest], Any], request: BuildRequest) -> Benchmark:
    made = factory(request)
    if isinstance(made, Benchmark):
        return made
    if not isinstance(made, tuple) or len(made) != 3 or not isinstance(made[0], torch.nn.Module):
        raise TypeError(f"the factory of {request.name} returned neither a Benchmark nor (module, inputs, loss) but {type(made).__name__}")
    module, inputs, loss = made
    args, kwargs = _split_inputs(request.name, inputs)
    return Benchmark(
        module=module.train(request.training),
        args=args,
        kwargs=kwargs,
        loss=loss or mean_of_outputs,
        batch_size=request.batch_size or _leading_dimension([*args, *kwargs.values()]),
        source="factory",
    )


def _split_inputs(name: str, inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if not isinstance(inputs, (tuple, list)):
        raise TypeError(f"the factory of {name} gave its inputs as {type(inputs).__name__}, not as a tuple")
    if len(inputs) == 2 and isinstance(inputs[0], (tuple, list)) and isinstance(inputs[1], dict):
        return tuple(inputs[0]), inputs[1]
    return tuple(inputs), {}


def _leading_dimension(inputs: list[Any]) -> int:
    """The batch size, as far as inputs tell: the first dimension of the first tensor that has one."""
    return next((len(value) for value in inputs if isinstance(value, torch.Tensor) and value.ndim > 0), 1)


def _seed_everything(seed: int) -> None:
    """Every generator that model code draws from."""
    torch.manual_seed(seed)
    random.seed(seed)
    if importlib.util.find_spec("numpy") is not None:
        import numpy

        numpy.random.seed(seed % 2**32)


@contextlib.contextmanager
def _missing_packages_as_unsupported(model: ModelSpec) -> Iterator[None]:
    """A missing package is this machine's state, not the model's failure. A module missing from this project is a bug and stays one."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "tasks"):
            raise
        message = f"{model.suite}/{model.name} needs the Python package {package}, which is not installed: pip install {package}"
        raise UnsupportedModelError(message) from error

"""How the tests of the rebuilt models call a builder, and what they look at in the outputs."""

from __future__ import annotations

from importlib import import_module

import torch
from torch.utils import _pytree as pytree

from tasks.spec import Scalar
from tasks.suites.benchmark import Benchmark, BuildRequest
from tasks.suites.torchbench import MODELS

CPU = torch.device("cpu")


def build(name: str, mode: str = "training", batch_size: int | None = None, **options: Scalar) -> Benchmark:
    module, function = MODELS[name].builder.split(":")
    builder = getattr(import_module(f"tasks.suites.torchbench.{module}"), function)
    torch.manual_seed(0)
    with CPU:
        benchmark: Benchmark = builder(BuildRequest(name, mode, CPU, batch_size, options))
    return benchmark


def shapes_of(values: object) -> list[tuple[int, ...]]:
    return [tuple(leaf.shape) for leaf in pytree.tree_leaves(values) if isinstance(leaf, torch.Tensor)]

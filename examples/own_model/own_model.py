"""A model of your own for a sweep: a function that takes a ``BuildRequest`` and returns the module, its inputs and its loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tasks.suites.benchmark import BuildRequest

FEATURES = 32


class Block(nn.Module):
    """Rows [batch, width] -> [batch, width]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.inner = nn.Linear(width, 2 * width)
        self.outer = nn.Linear(2 * width, width)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return rows + self.outer(nn.functional.gelu(self.inner(self.norm(rows))))


def build(request: BuildRequest) -> tuple[nn.Module, tuple[Any, ...], Any]:
    """A regression on tables; options ``width`` and ``depth``.

    The generators are seeded and the requested device is torch's default, so plain ``nn.Linear`` and ``torch.randn`` are right here.
    """
    request.check_options(("width", "depth"))
    width, depth = request.integer_option("width", 256), request.integer_option("depth", 4)
    module = nn.Sequential(nn.Linear(FEATURES, width), *(Block(width) for _ in range(depth)), nn.Linear(width, 1))
    batch_size = request.batch_size_or(512)
    targets = torch.randn(batch_size, 1)
    return module, (torch.randn(batch_size, FEATURES),), lambda outputs: nn.functional.mse_loss(outputs.float(), targets)

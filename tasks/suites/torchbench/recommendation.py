"""Recommendation models.

* ``nvidia_deeprecommender``: the deep autoencoder of Kuchaiev and Ginsburg, arXiv 1708.01715. Unlike the paper's final model its decoder
  has weights of its own.
* ``dlrm``: Naumov et al., arXiv 1906.00091, with eight embedding tables of a million rows (2 GB in float32). Its gradients are sparse:
  of the sweep's optimizers only plain SGD without ``foreach``, or none, can step it.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from tasks.suites.benchmark import Benchmark, BuildRequest
from tasks.suites.torchbench.rebuilt import assemble, batch_size_of

_ITEMS = 197_951
_DROPOUT = 0.8

_DENSE_FEATURES = 512
_TABLES = 8
_TABLE_ROWS = 1_000_000
_EMBEDDING_SIZE = 64
_DRAWS_PER_BAG = 100


class DeepAutoencoder(nn.Module):
    """Ratings [B, items] -> reconstructed ratings [B, items]; SELU after every layer, the last one included."""

    def __init__(self, items: int = _ITEMS) -> None:
        super().__init__()
        widths = [items, 512, 512, 1024]
        self.encoder = nn.ModuleList(nn.Linear(fan_in, fan_out) for fan_in, fan_out in pairwise(widths))
        widths.reverse()
        self.decoder = nn.ModuleList(nn.Linear(fan_in, fan_out) for fan_in, fan_out in pairwise(widths))
        self.dropout = nn.Dropout(_DROPOUT)
        for layer in (*self.encoder, *self.decoder):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, ratings: torch.Tensor) -> torch.Tensor:
        hidden = ratings
        for layer in self.encoder:
            hidden = functional.selu(layer(hidden))
        hidden = self.dropout(hidden)
        for layer in self.decoder:
            hidden = functional.selu(layer(hidden))
        return hidden


class Dlrm(nn.Module):
    """Dense features [B, 512] and one bag of table rows per sample and table -> click score [B, 1].

    ``offsets`` is int64 [tables, B]; ``indices`` holds one int64 vector per table, in which the bag of sample ``i`` starts at
    ``offsets[table, i]``. The nine vectors of a sample interact through the dot products of their distinct pairs.
    """

    def __init__(self, rows: int = _TABLE_ROWS) -> None:
        super().__init__()
        self.tables = nn.ModuleList(_embedding_table(rows) for _ in range(_TABLES))
        vectors = _TABLES + 1
        self.bottom = _relu_mlp([_DENSE_FEATURES, 512, _EMBEDDING_SIZE])
        self.top = _relu_mlp([vectors * (vectors - 1) // 2 + _EMBEDDING_SIZE, 1024, 1024, 1024, 1])

    def forward(self, dense: torch.Tensor, offsets: torch.Tensor, indices: list[torch.Tensor]) -> torch.Tensor:
        bottom = self.bottom(dense)
        pooled = [table(rows, offsets[number]) for number, (table, rows) in enumerate(zip(self.tables, indices, strict=True))]
        result: torch.Tensor = self.top(_interact(bottom, pooled))
        return result


def build_nvidia_deeprecommender(request: BuildRequest) -> Benchmark:
    """Gaussian noise for ratings."""
    request.check_options(())
    batch_size = batch_size_of(request)
    return assemble(request, DeepAutoencoder(), (torch.randn(batch_size, _ITEMS),), batch_size)


def build_dlrm(request: BuildRequest) -> Benchmark:
    """Random features and bags. Option ``table_rows`` shrinks the tables, for machines that cannot hold 2 GB of them."""
    request.check_options(("table_rows",))
    batch_size = batch_size_of(request)
    rows = request.integer_option("table_rows", _TABLE_ROWS)
    generator = np.random.default_rng(request.seed)
    bags = [_draw_bags(generator, batch_size, rows) for _ in range(_TABLES)]
    offsets = torch.stack([offset for offset, _ in bags])
    args = (torch.rand(batch_size, _DENSE_FEATURES), offsets, [indices for _, indices in bags])
    return assemble(request, Dlrm(rows), args, batch_size, fidelity=None if rows == _TABLE_ROWS else f"tables of {rows} rows")


def _interact(bottom: torch.Tensor, pooled: list[torch.Tensor]) -> torch.Tensor:
    vectors = torch.stack([bottom, *pooled], dim=1)  # [B, 9, 64]
    products = torch.bmm(vectors, vectors.transpose(1, 2))
    count = vectors.size(1)
    # Built from Python lists on every call, as the original does: a copy to the device in eager mode, a constant once compiled.
    first = torch.tensor([i for i in range(count) for _ in range(i)], device=bottom.device)
    second = torch.tensor([j for i in range(count) for j in range(i)], device=bottom.device)
    return torch.cat([bottom, products[:, first, second]], dim=1)


def _embedding_table(rows: int) -> nn.EmbeddingBag:
    table = nn.EmbeddingBag(rows, _EMBEDDING_SIZE, mode="sum", sparse=True)
    nn.init.uniform_(table.weight, -(rows**-0.5), rows**-0.5)
    return table


def _relu_mlp(widths: list[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        linear = nn.Linear(fan_in, fan_out)
        nn.init.xavier_normal_(linear.weight)
        nn.init.normal_(linear.bias, 0.0, fan_out**-0.5)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers)


def _draw_bags(generator: np.random.Generator, bags: int, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Offsets int64 [bags] and indices int64 [sum of sizes]: each bag's uniform draws, sorted and without repeats."""
    draws = np.sort(generator.integers(0, rows, size=(bags, _DRAWS_PER_BAG)), axis=1)
    first_of_its_kind = np.ones_like(draws, dtype=bool)
    first_of_its_kind[:, 1:] = draws[:, 1:] != draws[:, :-1]
    ends = np.cumsum(first_of_its_kind.sum(axis=1))
    offsets = np.concatenate([[0], ends[:-1]])
    return torch.tensor(offsets), torch.tensor(draws[first_of_its_kind])

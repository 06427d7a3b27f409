"""Models for the tests on CUDA, as factories for ``ModelSpec.factory``."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch import nn

from tests.tasks.models import benchmark, mlp

STREAMED_FLOATS = 2**28  # 1 GiB: many times what the device's cache holds
BUSY_SIZE = 4096
MORE_THAN_ANY_DEVICE_HAS = 2**46  # bytes


class Streaming(nn.Module):
    """Bound by the device's memory, whose clock does not move: a few milliseconds a step, the same in every process."""

    def forward(self, values):
        return values.mul(1.5).add(1.0).mul(0.5).add(2.0)


def streaming(request):
    return benchmark(Streaming(), (torch.rand(STREAMED_FLOATS),), training=request.training)


class Exhausting(nn.Module):
    """Asks for more memory than there is."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, inputs):
        return self.layer(inputs) + torch.empty(MORE_THAN_ANY_DEVICE_HAS, dtype=torch.uint8, device=inputs.device).sum()


def exhausting(request):
    return benchmark(Exhausting(), (torch.randn(4, 8),), training=request.training)


def asserting(request):
    """Looks up rows that the table does not have, which an assertion on the device finds."""
    return benchmark(nn.Embedding(8, 8), (torch.full((4,), 1000),), training=request.training)


class Straying(nn.Module):
    """Writes to memory that is nobody's."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, inputs):
        from tests.gpu.kernels import write_far_behind

        write_far_behind(inputs)
        return self.layer(inputs)


def straying(request):
    return benchmark(Straying(), (torch.randn(4, 8),), training=request.training)


def busy(request):
    """Keeps the device busy while it is built, for ``seconds``, as far ahead of it as the queue allows; makes the file ``ready`` early."""
    matrix = torch.randn(BUSY_SIZE, BUSY_SIZE).to(torch.bfloat16)
    product = torch.empty_like(matrix)
    torch.mm(matrix, matrix, out=product)
    torch.cuda.synchronize()
    Path(request.options["ready"]).touch()
    end = time.monotonic() + request.options["seconds"]
    while time.monotonic() < end:
        torch.mm(matrix, matrix, out=product)
    return mlp(request)

"""Models that compute something else once they are compiled, each in one way, as a compiler with that fault would have it.

A worker that builds one of them runs all its own code: nothing is put in place of anything in it.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from tests.tasks.models import benchmark, squares


class Faulty(nn.Module):
    """A linear layer behind a running mean. ``fault`` is what goes wrong when it is compiled."""

    def __init__(self, fault):
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.fault = fault
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, inputs):
        fault = self.fault if torch.compiler.is_compiling() else None
        if fault != "stale buffer":
            self.mean.mul_(0.9).add_(0.1 * inputs.mean(0))
        weight = self.layer.weight
        if fault == "wrong gradient":
            weight = weight + 0.1 * (weight - weight.detach())
        outputs = nn.functional.linear(inputs - self.mean, weight, self.layer.bias)
        if fault == "two percent off":
            return outputs * 1.02
        if fault == "one nan":
            return outputs + self.one_nan
        return outputs.double() if fault == "another dtype" else outputs


def build(request):
    module = Faulty(request.options["fault"])
    inputs = torch.randn(16, 8)
    module.one_nan = torch.zeros(16, 8)
    module.one_nan[3, 5] = math.nan
    if module.fault == "skipped step":
        torch.optim.SGD.step = _skipped_when_compiled(torch.optim.SGD.step)
    return benchmark(module, (inputs,), squares, request.training)


def _skipped_when_compiled(step):
    def maybe(optimizer, closure=None):
        return None if torch.compiler.is_compiling() else step(optimizer, closure)

    return maybe

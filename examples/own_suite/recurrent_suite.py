"""A suite as an installed package: one function from a ``BuildRequest`` to a ``Benchmark``, found through its entry point."""

from __future__ import annotations

import torch
from torch import nn

from tasks.suites.benchmark import Benchmark, BuildRequest, mean_of_outputs

CELLS = {"lstm": nn.LSTM, "gru": nn.GRU, "elman": nn.RNN}
BATCH_SIZE, STEPS, WIDTH = 32, 64, 128


def build(request: BuildRequest) -> Benchmark:
    """Sequences float32 [batch, steps, 128]; the options are ``steps`` and ``layers``. ``ValueError`` for a name that is none of ours."""
    if request.name not in CELLS:
        raise ValueError(f"the recurrent suite has no model {request.name!r}: {', '.join(sorted(CELLS))}")
    request.check_options(("steps", "layers"))
    module = CELLS[request.name](WIDTH, WIDTH, request.integer_option("layers", 2), batch_first=True)
    batch_size = request.batch_size_or(BATCH_SIZE)
    return Benchmark(
        module=module.train(request.training),
        args=(torch.randn(batch_size, request.integer_option("steps", STEPS), WIDTH),),
        kwargs={},
        loss=mean_of_outputs,
        batch_size=batch_size,
        source="library",
    )

from __future__ import annotations

import pytest
import torch

from tests.gpu import planted


@pytest.fixture
def device():
    return planted.cuda_device()


@pytest.fixture
def machine(device):
    """The machine as a task sees it, its device warm."""
    planted.keep_busy(planted.fresh_machine(device), planted.spin(10 * planted.ASSUMED_CYCLES_PER_MS))
    yield planted.fresh_machine(device)
    torch.cuda.synchronize()

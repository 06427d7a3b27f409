"""Libraries that are imported as if there were a GPU, by a process that must touch none, so that they decide as in a worker that has one.

What torch says of devices is made up below its public functions, so that whoever keeps one of these keeps the true one.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

_BY_COUNT = "PYTORCH_NVML_BASED_CUDA_CHECK"
"""Environment variable: ``torch.cuda.is_available()`` asks for the number of devices, which does not initialise CUDA."""


class NoPresumptionError(RuntimeError):
    """This torch cannot be made to see a GPU that it does not use."""


@contextlib.contextmanager
def presumed_gpu() -> Iterator[None]:
    """Have ``torch``, which is imported, see one GPU in this block.

    Raises:
        NoPresumptionError: it does not.
    """
    import torch

    earlier = os.environ.get(_BY_COUNT)
    os.environ[_BY_COUNT] = "1"
    torch.cuda._cached_device_count = 1  # noqa: SLF001 - what it has counted, of which it is sure
    try:
        if not (torch.cuda.is_available() and torch.cuda.device_count() == 1):
            raise NoPresumptionError(f"torch {torch.__version__} sees no GPU that it does not use")
        yield
    finally:
        torch.cuda._cached_device_count = None  # noqa: SLF001
        if earlier is None:
            del os.environ[_BY_COUNT]
        else:
            os.environ[_BY_COUNT] = earlier

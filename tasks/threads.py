"""How many threads the arithmetic of a step uses on the CPU: all of the task's where it is compiled or timed, its share beside neighbours.

Threads of OpenMP wait for each other by turning in circles. Two tasks with as many threads as there are processors wait for threads that
the other one keeps from running, and take ten times as long; with a share each, next to none.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

T = TypeVar("T")


@contextlib.contextmanager
def using(count: int) -> Iterator[None]:
    """Compute with ``count`` threads in this block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def with_all(compiled: Callable[[], T]) -> Callable[[], T]:
    """``compiled`` with as many threads as there are now, whatever there are when it is called.

    Their number is one of Dynamo's guards: with another one a compiled step would be compiled anew.
    """
    count = torch.get_num_threads()

    def step() -> T:
        with using(count):
            return compiled()

    return step

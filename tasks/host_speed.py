"""How fast a processor of the host computes at the moment: the time of a fixed piece of Python.

Virtual processors are not always equally fast. One whose core another tenant's machine uses too computes at two thirds of its speed, or at
half, for tenths of a second to minutes, and nothing in the guest counts that: it is no stolen time. A step that waits for its host takes as
much longer, and its speedup moves where only one arm waits.
"""

from __future__ import annotations

import time

LOOPS, TRIES = 2000, 3
"""Some 70 us on the machines used so far, which is less than any such change lasts; the best of three, for an interrupt only adds."""


def probe_ns() -> int:
    """What the work takes where this thread is now."""
    return min(_loop_ns() for _ in range(TRIES))


def _loop_ns() -> int:
    began_ns = time.perf_counter_ns()
    total = 0
    for number in range(LOOPS):
        total += number
    return time.perf_counter_ns() - began_ns

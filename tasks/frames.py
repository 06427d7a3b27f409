"""Room for the frames of Python functions, so that no call that is timed pays for how deep it happens to lie. Standard library only.

CPython keeps frames in chunks of 16 KiB, each mapped when a call does not fit into the one before, and unmapped when that call returns. A
call at the border does both every time: 8 us instead of 0.1 (docs/decisions/021). Which call that is follows from how deep the program
stands that makes it, and has nothing to do with what it does.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import TypeVar

T = TypeVar("T")

ROOM_BYTES = 2 * 2**20
"""What frames above ``with_room`` may take together: those of some thousand functions. It is mapped, and memory only where it is used."""

_SLOT_BYTES = 8


def _call(program: Callable[[], T]) -> T:
    return program()


# A chunk is as large as the power of two that its first frame fits into. This one, which claims a stack of just over half of that, leaves
# the other half to those that it calls.
with_room: Callable[[Callable[[], T]], T] = FunctionType(
    _call.__code__.replace(co_stacksize=ROOM_BYTES // _SLOT_BYTES + 1), globals(), "with_room"
)
with_room.__doc__ = """Call ``program`` where the frames of all that it calls lie in one chunk; what it returns."""

"""What a call costs at any depth, counted in page faults; in processes of their own, for the depth of a test's own is not known."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tasks.frames import with_room

CALLS = 1000
DEPTHS = """
import resource
from tasks.frames import with_room

def called(first=0):
    second = third = fourth = fifth = first
    return fifth

def faults_at(depth):
    if depth:
        return faults_at(depth - 1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(CALLS):
        called()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def worst():
    return max(faults_at(depth) for depth in range(400))
"""


def worst(call):
    source = f"CALLS = {CALLS}\n{DEPTHS}\nprint({call})"
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=60, check=True)
    return int(done.stdout)


def test_no_depth_costs_more_than_another():
    assert worst("with_room(worst)") < CALLS / 10


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="later interpreters keep a chunk")
def test_without_room_a_call_at_the_border_of_a_chunk_does():
    assert worst("worst()") >= CALLS


def test_it_returns_and_raises_what_the_program_does():
    assert with_room(lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        with_room(lambda: 1 // 0)
    assert with_room.__name__ == "with_room"
    assert "program" in (with_room.__doc__ or "")


def test_as_much_room_as_it_says():
    """Frames of 64 KiB each: as many as fit are called without another chunk."""
    source = f"""
import resource, types
from tasks import frames
large = types.FunctionType(frames._call.__code__.replace(co_stacksize=2**13), {{}})

def nested(depth):
    return large(lambda: nested(depth - 1)) if depth else [faults() for _ in range(3)][-1]

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range({CALLS}):
        large(int)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(frames.with_room(lambda: max(nested(depth) for depth in range(frames.ROOM_BYTES // 2**16 - 3))))
"""
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=60, check=True)
    assert int(done.stdout) < CALLS / 10

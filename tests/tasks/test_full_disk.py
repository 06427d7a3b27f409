"""Real attempts on a real file system that is full."""

from __future__ import annotations

import subprocess

import pytest

from tasks.spec import FailureClass, Status
from tasks.supervisor import Finished, supervise
from tests.tasks.processes_fixtures import attempt, toy

MIB = 2**20
SIZE_MIB = 64


@pytest.fixture
def disk(node_directory):
    """A small file system, where attempts have their directories."""
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE_MIB}m", "tmpfs", str(node_directory)], capture_output=True).returncode:
        pytest.skip("this user may not mount a small file system")
    yield node_directory
    subprocess.run(["umount", "-l", str(node_directory)], check=True)


def fill(disk, left_bytes):
    """What somebody else has there."""
    (disk / "theirs").write_bytes(b"." * (SIZE_MIB * MIB - left_bytes))


def outcome(task):
    return [event.outcome for event in supervise(task, attempt()) if isinstance(event, Finished)][-1]


@pytest.mark.parametrize("left_bytes", [2 * MIB, 0])
def test_a_disk_that_others_filled_is_no_fault_of_the_task(disk, left_bytes):
    """Whether the worker finds it full, or its guardian before it can start one."""
    fill(disk, left_bytes)
    found = outcome(toy("litter", mib=4096))
    assert (found.status, found.failure_class) == (Status.INFRA_ERROR, FailureClass.DISK_FULL), found.error


def test_a_disk_that_the_task_filled_is_its_own(disk):
    found = outcome(toy("litter", mib=4096))
    assert (found.status, found.failure_class) == (Status.CRASH, FailureClass.CRASH), found.error
    assert "filled the node's disk" in found.error

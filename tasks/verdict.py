"""What became of a worker, from what it left: its result, how its process ended, and what its guardian did to it. Standard library only.

A whole result counts, however the process ended after leaving it: the measurement was complete by then, and what broke on the way out
(an extension's destructor, a compile pool that did not shut down) goes into ``error``. Without a whole result nothing ever passes.
"""

from __future__ import annotations

import errno
import json
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tasks.capture import printable
from tasks.spec import FailureClass, Phase, SpecError, Status, WorkerResult, decode

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
DISK_FULL_STATUS = 74
"""What a worker exits with that could not write for lack of room; EX_IOERR of sysexits.h."""

OWN_DISK_SHARE = 0.05
"""A worker whose own files take this much of a full file system has filled it."""

RESULT_LIMIT_BYTES = 256 * 2**20
ERROR_LIMIT = 16 * 1024  # characters


@dataclass(frozen=True, slots=True)
class Ending:
    """How a worker's process ended. ``wait_status`` is that of ``waitpid``; None if the process could not be ended."""

    wait_status: int | None
    phase: Phase
    expired: str | None = None  # the deadline for which its guardian ended it, in words
    killed: bool = False  # its guardian sent the SIGKILL
    out_of_memory: bool = False  # the kernel killed something for lack of memory meanwhile
    stuck: tuple[int, ...] = ()  # its processes that SIGKILL did not end
    residue: str | None = None  # what it left on its GPU, in words


def judge(ending: Ending, result_path: Path) -> WorkerResult:
    """The worker's own result if it left a whole one, else what the ending says."""
    found = read_result(result_path)
    result = _without_result(ending, found) if isinstance(found, str) else found
    remarks = (None if isinstance(found, str) else _after_result(ending), ending.residue)
    told = "\n".join(text for text in (result.error, *remarks) if text)
    return _limited(replace(result, error=told or None))


def read_result(path: Path) -> WorkerResult | str:
    """The result at ``path``, or why there is none."""
    try:
        if path.stat().st_size > RESULT_LIMIT_BYTES:
            return f"its result is larger than {RESULT_LIMIT_BYTES // 2**20} MiB"
        return decode(WorkerResult, json.loads(path.read_bytes()))
    except FileNotFoundError:
        return "it left no result"
    except (SpecError, ValueError, RecursionError, OSError) as error:
        return f"its result cannot be read: {error}"


def blame_for_disk(result: WorkerResult, scratch: Path) -> WorkerResult:
    """``result``, or, if the disk was full and mostly of the worker's own files in ``scratch``, a crash."""
    if result.failure_class is not FailureClass.DISK_FULL:
        return result
    system = os.statvfs(scratch)
    own = sum(_allocated(Path(folder) / name) for folder, _, names in os.walk(scratch) for name in names)
    if own < OWN_DISK_SHARE * system.f_blocks * system.f_frsize:
        return result
    text = f"it filled the node's disk: {own // 2**20} MiB in its temporary directory"
    return replace(result, status=Status.CRASH, failure_class=FailureClass.CRASH, error=text)


def _allocated(path: Path) -> int:
    try:
        return 512 * path.lstat().st_blocks
    except FileNotFoundError:
        return 0


def oom_kills() -> dict[str, int]:
    """The kernel's counters of processes killed for lack of memory, as far as this process can see them."""
    sources = {"vmstat": Path("/proc/vmstat"), **{str(path): path for path in _cgroup_files()}}
    counts = {}
    for name, path in sources.items():
        try:
            fields = dict(line.split(maxsplit=1) for line in path.read_text(encoding="ascii").splitlines())
        except (OSError, ValueError):
            continue
        if "oom_kill" in fields:
            counts[name] = int(fields["oom_kill"])
    return counts


def has_risen(before: Mapping[str, int], after: Mapping[str, int]) -> bool:
    """Some counter is higher now."""
    return any(count > before.get(name, count) for name, count in after.items())


def _cgroup_files() -> list[Path]:
    """Where this process's memory cgroup counts, in version 2 and in version 1."""
    files = []
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            files += [Path(f"/sys/fs/cgroup{path}/memory.events"), Path("/sys/fs/cgroup/memory.events")]
        elif "memory" in controllers.split(","):
            files += [Path(f"/sys/fs/cgroup/memory{path}/memory.oom_control"), Path("/sys/fs/cgroup/memory/memory.oom_control")]
    return files


def _without_result(ending: Ending, lacks: str) -> WorkerResult:
    if ending.stuck:
        pids = ", ".join(map(str, ending.stuck))
        why = f" after {ending.expired}" if ending.expired else ""
        return _failure(ending, Status.INFRA_ERROR, FailureClass.DEVICE, f"SIGKILL did not end process {pids}{why}: stuck in the kernel")
    if ending.expired is not None:
        return _failure(ending, Status.TIMEOUT, FailureClass.DEADLINE, ending.expired)
    how = describe(ending.wait_status)
    if ending.wait_status is not None and os.waitstatus_to_exitcode(ending.wait_status) == DISK_FULL_STATUS:
        return _failure(ending, Status.INFRA_ERROR, FailureClass.DISK_FULL, "the node's disk is full")
    if ending.out_of_memory and not ending.killed and _signal(ending.wait_status) == signal.SIGKILL:
        return _failure(ending, Status.OOM, FailureClass.HOST_OOM, f"the worker {how}: the kernel was out of memory")
    return _failure(ending, Status.CRASH, FailureClass.CRASH, f"the worker {how} in phase {ending.phase.value}; {lacks}")


def _after_result(ending: Ending) -> str | None:
    if ending.stuck:
        return f"after it left its result, SIGKILL did not end process {', '.join(map(str, ending.stuck))}"
    if ending.expired is not None:
        return f"after it left its result, the worker did not end: {ending.expired}"
    return f"after it left its result, the worker {describe(ending.wait_status)}" if ending.wait_status else None


def _failure(ending: Ending, status: Status, failure_class: FailureClass, error: str) -> WorkerResult:
    return WorkerResult(status=status, phase=ending.phase, failure_class=failure_class, error=error)


def _limited(result: WorkerResult) -> WorkerResult:
    return replace(result, error=printable(result.error)[:ERROR_LIMIT]) if result.error else result


def _signal(wait_status: int | None) -> int | None:
    return os.WTERMSIG(wait_status) if wait_status is not None and os.WIFSIGNALED(wait_status) else None


def describe(wait_status: int | None) -> str:
    """``was killed by SIGSEGV``, ``exited with status 3``."""
    if wait_status is None:
        return "did not end"
    number = _signal(wait_status)
    if number is None:
        return f"exited with status {os.waitstatus_to_exitcode(wait_status)}"
    try:
        return f"was killed by {signal.Signals(number).name}"
    except ValueError:
        return f"was killed by signal {number}"

"""``python -m tasks.worker SPEC OUT [EARLIER...]``: run one task and leave its result at OUT by atomic rename.

SPEC is a JSON file with an encoded ``TaskSpec``; OUT receives an encoded ``WorkerResult``. A task that is measured in several processes
has one worker after the other: each is given the results of those before it, and the last one leaves the result of them all. Everything
that goes wrong inside a phase becomes a result; only a crash of the process leaves none. SIGUSR1 makes it write the stacks of its threads
to its output.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sys
import traceback
from pathlib import Path

from tasks.channel import Channel
from tasks.ending import leave
from tasks.frames import with_room
from tasks.spec import TaskSpec, WorkerResult, decode, encode
from tasks.verdict import DISK_FULL, DISK_FULL_STATUS


def main(arguments: list[str] | None = None) -> int:
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    spec_path, out_path, *earlier_paths = (Path(argument) for argument in (arguments or sys.argv[1:]))
    task = decode(TaskSpec, json.loads(spec_path.read_text(encoding="utf-8")))
    channel = Channel.from_environment()
    earlier = [decode(WorkerResult, json.loads(path.read_bytes())) for path in earlier_paths]
    try:
        write_result(combined([*earlier, run(task, channel, out_path, len(earlier))], task), out_path)
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        traceback.print_exc()
        return DISK_FULL_STATUS
    return 0


def run(task: TaskSpec, channel: Channel, out_path: Path, process: int = 0) -> WorkerResult:
    """Run ``task`` in this process, its ``process``-th; toys need no torch and so pay for none."""
    if task.model.suite == "toy":
        from tasks.suites import toy

        return toy.run(task, channel, out_path, process)
    from tasks.execute import execute

    return with_room(lambda: execute(task, channel, process))


def combined(results: list[WorkerResult], task: TaskSpec) -> WorkerResult:
    """The task's result: that of its only process, of one that failed, or of all; for any but the last process, its own."""
    if len(results) < max(2, task.measure.processes) or not results[-1].measured:
        return results[-1]
    from tasks.merge import merge

    return merge(results)


def write_result(result: WorkerResult, out_path: Path) -> None:
    """Atomically: a reader finds the whole file or none."""
    partial = out_path.with_suffix(".partial")
    with partial.open("w", encoding="utf-8") as file:
        json.dump(encode(result), file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(out_path)


if __name__ == "__main__":
    leave(main)

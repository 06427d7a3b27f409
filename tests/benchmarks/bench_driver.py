"""What the orchestrator itself costs: many toys that finish at once, through real Ray, and many more through the core and the store alone.

``python -m tests.benchmarks.bench_driver [--tasks N] [--core-tasks N]`` prints tasks per second, driver CPU per task and peak memory.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import io
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console

from orchestrator import run as runs
from orchestrator.cluster import RayCluster
from orchestrator.request import RunRequest
from tasks.probe import cpu_model
from tests.orchestrator.fakes import NODE, FakeCluster, passed

MANIFEST = """\
schema_version: 1
name: bench
matrix: {dtype: [float32, amp]}
execution: {num_cpus: 1, isolation: inline}
suites:
  toy:
"""


class CoreOnly(FakeCluster):
    """Every attempt has passed when it is launched; a node without limits."""

    def nodes(self):
        return (NODE,)

    def probe(self):
        from tasks.probe import probe

        return {NODE.name: probe()}


def one_run(tasks: int, core_only: bool) -> dict[str, float]:
    """One run of ``tasks`` toys, an even number, in this process. Two dtypes, because a manifest may hold 100,000 values and no more."""
    with tempfile.TemporaryDirectory() as folder:
        manifest = Path(folder) / "bench.yaml"
        manifest.write_text(MANIFEST + "".join(f"    - pass.{i}\n" for i in range(tasks // 2)))
        cluster = CoreOnly(lambda task_id, attempt: [_ended(task_id, attempt)]) if core_only else RayCluster()
        before, began = _cpu_s(), time.monotonic()
        request = RunRequest(manifest, f"{folder}/out", "r")
        ended = runs.run(request, Console(file=io.StringIO()), connect=lambda _: cluster)
        wall_s, cpu_s = time.monotonic() - began, _cpu_s() - before
    if ended.ending.exit_code != 0:
        raise SystemExit(f"the run ended with {ended.ending}")
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"tasks": tasks, "seconds": wall_s, "per_second": tasks / wall_s, "driver_cpu_ms": 1e3 * cpu_s / tasks, "peak_mib": peak_mib}


def _where() -> str:
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("ray", "pyarrow"))
    load = os.getloadavg()[0]
    cores = len(os.sched_getaffinity(0))
    return f"{time.strftime('%Y-%m-%d')}, {cores} cores of {cpu_model()}, load {load:.1f}, Python {platform.python_version()}, {versions}"


def _ended(task_id: str, attempt: int):
    from orchestrator.events import Ended

    return Ended(0.0, task_id, attempt, passed(task_id, attempt))


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _in_fresh_process(tasks: int, core_only: bool) -> dict[str, float]:
    words = [sys.executable, "-m", "tests.benchmarks.bench_driver", "--one", str(tasks), *(["--core-only"] if core_only else [])]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=10_000, help="toys through real Ray")
    parser.add_argument("--core-tasks", type=int, default=100_000, help="toys through plan, core and store")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--core-only", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        sys.stdout.write(json.dumps(one_run(arguments.one, arguments.core_only)) + "\n")
        return
    sys.stdout.write(_where() + "\n")
    # A tenth first: if a step is quadratic, its cost per task grows with the number of tasks.
    for label, tasks, core_only in (
        ("Ray", arguments.tasks // 10, False),
        ("Ray", arguments.tasks, False),
        ("core", arguments.core_tasks // 10, True),
        ("core", arguments.core_tasks, True),
    ):
        found = _in_fresh_process(tasks, core_only)
        speed = "{tasks:7d} tasks in {seconds:7.1f} s: {per_second:7.0f} per s".format(**found)
        cost = "{driver_cpu_ms:6.3f} ms of driver CPU each, peak {peak_mib:5.0f} MiB".format(**found)
        sys.stdout.write(f"{label:5s} {speed}, {cost}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()

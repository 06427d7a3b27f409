"""What storing costs: ``python -m tests.benchmarks.bench_store [--rows N] [--batch N] [--samples N]``.

Plans, appends, reads and compacts a run of toy rows on a local disk, and prints each step's time and what it did to the resident
memory. Rows and samples are built before the clock starts.
"""

from __future__ import annotations

import argparse
import dataclasses
import resource
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.record import PlannedTask, RunRecord
from orchestrator.store import Store
from tasks.spec import Measurement, ModelSpec, Outcome, Phase, PrecisionSpec, Samples, Status, TaskSpec

MIB = 2**20


def main() -> None:
    arguments = parse()
    tasks = [a_task(number) for number in range(arguments.rows)]
    samples = some_samples(arguments.samples)
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        print(f"{arguments.rows} rows of {arguments.samples} samples in batches of {arguments.batch}; {resident_mib():.0f} MiB resident")
        with step("plan and create", arguments.rows):
            run = store.create(RunRecord("bench", "bench", "m" * 64, time.time()), [PlannedTask(task) for task in tasks])
        with step("append", arguments.rows):
            for start in range(0, arguments.rows, arguments.batch):
                run.append([(task, an_outcome(task, samples)) for task in tasks[start : start + arguments.batch]])
        with step("terminal, from the parts", arguments.rows):
            assert len(run.terminal()) == arguments.rows
        with step("compact", arguments.rows):
            run.compact()
        with step("rows, all columns", arguments.rows):
            assert run.rows().num_rows == arguments.rows
        with step("samples, one column", arguments.rows * arguments.samples):
            assert run.samples(columns=("host_ns",)).num_rows == arguments.rows * arguments.samples
        with step("samples of one task", 1):
            assert len(run.samples_of(tasks[arguments.rows // 2].task_id).phase) == arguments.samples
        with step("resume: lock, check every byte", arguments.rows):
            run.close()
            store.resolve("bench").acquire()
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
        print(f"{'on disk':34s} {size / MIB:9.1f} MiB {size / arguments.rows:9.0f} bytes per row")
    print(f"{'peak resident':34s} {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:9.1f} MiB")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--samples", type=int, default=20)
    return parser.parse_args()


@contextmanager
def step(name: str, count: int) -> Iterator[None]:
    wall, cpu, resident = time.perf_counter(), time.process_time(), resident_mib()
    yield
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    per_item = f"{cpu / count * 1e6:9.1f} us of CPU per item" if count else ""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{name:34s} {wall:9.2f} s   {per_item}  {resident_mib() - resident:+8.1f} MiB, peak {peak:.0f}", flush=True)


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize() / MIB


def a_task(number: int) -> TaskSpec:
    name = f"instant_{number:06d}"
    return TaskSpec(
        f"toy/{name}/float32/training/inductor",
        ModelSpec("toy", name),
        "training",
        "inductor",
        PrecisionSpec("float32"),
        digest=f"{number:064x}",
        manifest_digest="m" * 64,
    )


def an_outcome(task: TaskSpec, samples: Samples) -> Outcome:
    return Outcome(
        task.task_id,
        1,
        Status.PASS,
        Phase.WRITE,
        started=1.8e9,
        ended=1.8e9 + 1,
        node="node",
        measurement=Measurement(speedup=1.5, speedup_low=1.4, speedup_high=1.6, pairs=10, versions={"torch": "2.13.0"}),
        samples=samples,
    )


def some_samples(count: int) -> Samples:
    constant = {"phase": "timed", "process": 0, "block": 0, "order": 0, "washout": False, "device_ms": None, "valid": True, "reason": None}
    columns = {field.name: (constant.get(field.name),) * count for field in dataclasses.fields(Samples)}
    numbers = tuple(range(count))
    arms = tuple("eager" if number % 2 else "compiled" for number in numbers)
    return Samples(**columns | {"arm": arms, "pair": numbers, "iteration": numbers, "host_ns": numbers, "started_ns": numbers})  # type: ignore[arg-type]


if __name__ == "__main__":
    main()

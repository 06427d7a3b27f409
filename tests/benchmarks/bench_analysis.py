"""How long the analysis takes on large stores: ``python tests/benchmarks/bench_analysis.py [--runs 1000] [--samples 10000000]``.

Makes synthetic stores in a temporary folder and times what users wait for, each in a fresh process and with its imports. Not a test: the
figures depend on the machine.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.record import RECORD_FILE, read_record, record_bytes
from orchestrator.report.synthetic import STARTED_S, store_run, synthetic_run
from orchestrator.schema import SAMPLES

DAY_S = 86_400.0
LIMITS_S = {"report": 2.0, "report, HTML": 2.0, "aggregate of all samples": 3.0, "history": 5.0, "history, HTML": 5.0}
AGGREGATE = """
import sys, time
import numpy as np, pyarrow as pa, pyarrow.compute as pc, pyarrow.dataset as ds
began = time.perf_counter()
wanted = (pc.field("phase") == "timed") & pc.field("valid") & ~pc.field("washout")
columns = {"task_id": pc.field("task_id"), "arm": pc.field("arm"), "log_ns": pc.ln(pc.field("host_ns"))}
table = ds.dataset(sys.argv[1], format="parquet").to_table(columns=columns, filter=wanted).unify_dictionaries()
found = table.group_by(["task_id", "arm"]).aggregate([("log_ns", "mean"), ("log_ns", "count")])
means = {arm: {} for arm in ("eager", "compiled")}
for row in found.to_pylist():
    means[row["arm"]][row["task_id"]] = row["log_ns_mean"]
logs = np.array([means["eager"][name] - means["compiled"][name] for name in means["eager"]])
took = time.perf_counter() - began
print(f"{len(logs)} tasks, {table.num_rows:,} samples, geometric mean {np.exp(logs.mean()):.4f}, {took:.2f} s after the imports")
"""


def main() -> None:
    """Make the stores, time the commands, print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=10_000_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        one, many = Path(folder, "one"), Path(folder, "many")
        run_with_samples(one, options.samples)
        many_runs(many, options.runs)
        print(f"{options.runs} runs, {options.samples:,} samples, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
        page = str(Path(folder, "page.html"))
        sweep = [sys.executable, "-m", "orchestrator"]
        show("report", [*sweep, "report", "--results", str(one)])
        show("report, JSON", [*sweep, "report", "--json", "--results", str(one)])
        show("report, HTML", [*sweep, "report", "--html", page, "--results", str(one)])
        show("aggregate of all samples", [sys.executable, "-c", AGGREGATE, str(next(one.glob("*/samples")))], output=True)
        show("compare", [*sweep, "compare", "night-0000", "night-0001", "--results", str(many)])
        show("history", [*sweep, "history", "--results", str(many)])
        show("history of a model", [*sweep, "history", "--model", "timm/model_003", "--results", str(many)])
        show("history, HTML", [*sweep, "history", "--html", page, "--results", str(many)])


def show(name: str, command: list[str], *, output: bool = False) -> None:
    """Time ``command`` and print a line: wall seconds, CPU seconds, the limit."""
    before, began = os.times(), time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wall_s, after = time.perf_counter() - began, os.times()
    if done.returncode not in (0, 3):
        sys.exit(f"{name}: {done.stderr}")
    cpu_s = after.children_user + after.children_system - before.children_user - before.children_system
    limit = f"limit {LIMITS_S[name]:.0f} s" if name in LIMITS_S else ""
    print(f"{name:28}{wall_s:7.2f} s wall {cpu_s:7.2f} s CPU   {limit}" + (f"   {done.stdout.strip()}" if output else ""))


def run_with_samples(root: Path, count: int) -> None:
    """One run of 326 tasks whose samples part is replaced by one of ``count`` rows."""
    run = synthetic_run(run_id="big")
    store_run(str(root), run)
    (part,) = root.glob("*/samples/*.parquet")
    per_task = count // len(run.rows)
    rng = np.random.default_rng(1)
    with pq.ParquetWriter(part, pq.read_schema(part), compression="zstd", write_page_checksum=True) as writer:
        for row in run.rows:
            writer.write_table(samples_of(row, per_task, rng), row_group_size=65_536)


def samples_of(row: object, count: int, rng: np.random.Generator) -> pa.Table:
    """``count`` samples of one task: blocks of one washout and five timed iterations, eager and compiled in turns."""
    place = np.arange(count)
    block = place // 6
    compiled = block % 2 == 1
    means_ns = np.where(compiled, row.compiled_ms, row.eager_ms) * 1e6
    named = {name: getattr(row, name) for name in ("task_id", "suite", "model", "dtype", "mode", "backend")}
    zeros = np.zeros(count, np.int32)
    columns = {name: coded(zeros, [value]) for name, value in (named | {"run_id": "big", "phase": "timed"}).items()}
    columns |= {
        "arm": coded(compiled.astype(np.int32), ["eager", "compiled"]),
        "reason": pa.DictionaryArray.from_arrays(pa.nulls(count, pa.int32()), pa.array([], pa.string())),
        "washout": pa.array(place % 6 == 0),
        "valid": pa.array(np.ones(count, bool)),
        "host_ns": pa.array((means_ns * np.exp(rng.normal(0, 0.02, count))).astype(np.int64)),
        "device_ms": pa.nulls(count, pa.float64()),
        "started_ns": pa.array(np.cumsum(means_ns).astype(np.int64)),
        "attempt": pa.array(np.ones(count, np.int32)),
        "process": pa.array(np.zeros(count, np.int32)),
        "pair": pa.array((block // 2).astype(np.int32)),
        "block": pa.array(block.astype(np.int32)),
        "order": pa.array((block % 2).astype(np.int32)),
        "iteration": pa.array((place % 6).astype(np.int32)),
    }
    return pa.table([columns[name] for name in SAMPLES.names], schema=SAMPLES)


def coded(codes: np.ndarray, values: list[str]) -> pa.DictionaryArray:
    """A dictionary-encoded column."""
    return pa.DictionaryArray.from_arrays(pa.array(codes), pa.array(values, pa.string()))


def many_runs(root: Path, count: int) -> None:
    """``count`` runs, one a night: copies of one whose speedups are drawn anew around the same truth; a step at two thirds."""
    store_run(str(root), synthetic_run(run_id="night-0000", process_sd=0.0))
    first = root / "night-0000"
    record = read_record((first / RECORD_FILE).read_bytes(), "synthetic")
    (part,) = first.glob("tasks/*.parquet")
    table = pq.read_table(part)
    # A manifest of 163 models has some 30 kB, which every reader of the record pays for.
    record = dataclasses.replace(record, manifest_files={"pt2.yaml": "# one line of a manifest\n" * 1300})
    rng = np.random.default_rng(7)
    speedups = table.column("speedup").to_numpy()
    slow = np.arange(len(speedups)) % 20 == 0
    for night in range(count):
        folder = root / f"night-{night:04d}"
        (folder / "tasks").mkdir(parents=True, exist_ok=True)
        logs = np.log(speedups) + rng.normal(0, 0.01, len(speedups)) + np.where(slow & (night > 2 * count / 3), -0.1, 0.0)
        changed = table.set_column(table.schema.get_field_index("speedup"), table.schema.field("speedup"), pa.array(np.exp(logs)))
        pq.write_table(changed, folder / "tasks" / part.name, compression="zstd")
        renamed = dataclasses.replace(record, run_id=folder.name, started=STARTED_S + DAY_S * night)
        (folder / RECORD_FILE).write_bytes(record_bytes(renamed))
        if night:
            (folder / "plan.jsonl.gz").write_bytes((first / "plan.jsonl.gz").read_bytes())


if __name__ == "__main__":
    main()

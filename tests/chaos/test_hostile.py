"""A manifest written to break the system: 200 toys that hang, crash, print gigabytes, fill the disk and leave children behind."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
from pathlib import Path

import psutil
import pytest
from ray.cluster_utils import Cluster
from rich.console import Console

from orchestrator import run as runs
from orchestrator.cluster import RayCluster
from orchestrator.errors import ExitCode
from orchestrator.request import RunRequest
from orchestrator.store import Store
from orchestrator.verify import verify

SMALL_DISK = "48m"
EXPECTED = {
    "pass": ("pass", 20, ""),
    "flood": ("pass", 12, "mib: 200"),
    "litter": ("crash", 12, "mib: 4096"),  # the disk is smaller: no result can be written
    "orphans": ("pass", 24, "count: 4"),
    "garbage": ("pass", 12, ""),
    "crash": ("crash", 20, ""),
    "exit_zero": ("crash", 16, ""),
    "half_result": ("crash", 16, ""),
    "hang": ("timeout", 12, "orphans: 2"),
    "ignore_sigterm": ("timeout", 12, "orphans: 2"),
    "fail_compile": ("fail_compile", 12, ""),
    "fail_accuracy": ("fail_accuracy", 12, ""),
    "oom": ("oom", 10, ""),
    "unsupported": ("unsupported", 10, ""),
}
HEAD = """\
schema_version: 1
name: hostile
matrix: {dtype: [float32]}
retries: {infrastructure: 10}  # for the neighbours of those that fill the disk
deadlines: {start_s: 60, build_s: 20, eager_s: 20, compile_s: 15, verify_s: 20, time_s: 20, write_s: 20, task_s: 90}
execution: {num_cpus: 1}
suites:
  toy:
"""


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a file system of its own that 12 toys can fill at once without harm."""
    folder = Path("/tmp") / f"sd{os.getpid()}"  # short: Unix sockets live below it
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK}", "tmpfs", str(folder)], capture_output=True).returncode:
        shutil.rmtree(folder)
        pytest.skip("this user may not mount a small file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)
    folder.rmdir()


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_two_hundred_hostile_models_end_in_two_hundred_right_rows(small_disk, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    monkeypatch.setenv("TMPDIR", str(small_disk))
    monkeypatch.setenv("TRIAL", "hostile")
    manifest = tmp_path / "hostile.yaml"
    toys = [f"{{name: {kind}.{i}, options: {{{options}}}}}" for kind, (_, count, options) in EXPECTED.items() for i in range(count)]
    assert len(toys) == 200
    manifest.write_text(HEAD + "".join(f"    - {toy}\n" for toy in toys))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 6})
    try:
        request = RunRequest(manifest, str(tmp_path / "out"), "r", cluster.address)
        ended = runs.run(request, Console(file=io.StringIO()), connect=RayCluster)
    finally:
        cluster.shutdown()
    assert ended.ending.exit_code is ExitCode.SOME_FAILED, ended
    store = Store(str(tmp_path / "out")).resolve("r")
    rows = store.rows().to_pylist()
    assert len(rows) == 200
    wrong = [(row["model"], row["status"], row["error"]) for row in rows if row["status"] != EXPECTED[row["model"].partition(".")[0]][0]]
    assert wrong == []
    assert verify(store) == []
    assert max(path.stat().st_size for path in (tmp_path / "out" / "r" / "logs").iterdir()) < 2**20
    assert [
        p.name()
        for p in psutil.process_iter(["environ"])
        if (p.info["environ"] or {}).get("TRIAL") == "hostile" and "tasks" in str(p.cmdline())
    ] == []
    assert [path for path in small_disk.rglob("*") if path.is_file() and path.stat().st_size > 2**20] == []

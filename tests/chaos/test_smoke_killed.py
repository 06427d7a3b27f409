"""``kill -9`` of the driver at a random moment of the smoke sweep, then ``--resume``: nothing is lost, what was finished stays as it is."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestrator.errors import ExitCode
from orchestrator.store import Store
from orchestrator.verify import verify

SMOKE = Path(__file__).parents[2] / "manifests" / "smoke.yaml"
MOST_ROWS = 6  # that are there when the driver is killed
LONGEST_S = 20.0  # from then on
LIMIT_S = 1800.0


def files_of(results):
    run = results / "r"
    return {path: path.read_bytes() for folder in ("tasks", "samples", "blocks", "logs") for path in (run / folder).glob("*")}


@pytest.mark.chaos
@pytest.mark.timeout(2 * LIMIT_S)
def test_a_smoke_sweep_survives_kill_9_of_its_driver(tmp_path):
    seed = random.SystemRandom().randrange(10**6)
    rng = random.Random(seed)
    rows, delay_s = rng.randint(0, MOST_ROWS), rng.uniform(0.0, LONGEST_S)
    print(f"seed {seed}: killed {delay_s:.1f} s after row {rows}")
    command = [sys.executable, "-m", "orchestrator", "run", str(SMOKE), "--results", str(tmp_path), "--run-id", "r", "--resume"]
    with (tmp_path / "driver.log").open("ab") as log, subprocess.Popen(command, stdout=log, stderr=log) as driver:
        while len(list((tmp_path / "r" / "tasks").glob("*.parquet"))) < rows:
            assert driver.poll() is None, "it ended before it was killed"
            time.sleep(0.5)
        time.sleep(delay_s)
        os.kill(driver.pid, signal.SIGKILL)
    before = files_of(tmp_path)
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == ExitCode.PASSED, done.stderr[-4000:]
    run = Store(str(tmp_path)).resolve("r")
    assert len(run.plan()) == run.rows().num_rows == 8
    assert verify(run) == []
    after = files_of(tmp_path)
    assert {path: after.get(path) for path in before} == before
    print(f"{len(before)} files were there, at {time.strftime('%H:%M:%S')} all 8 rows are")

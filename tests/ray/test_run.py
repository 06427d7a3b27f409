"""A run from manifest to exit status: on a shared Ray where the driver lives on, in a process of its own where it must not."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
import uuid

import psutil
import pytest
from rich.console import Console

from orchestrator import run as runs
from orchestrator.cluster import RayCluster
from orchestrator.confirm import confirmation
from orchestrator.errors import ExitCode, PreflightError, UsageError
from orchestrator.noise import noise
from orchestrator.report.rows import load
from orchestrator.request import RunRequest
from orchestrator.store import Store
from orchestrator.verify import verify
from tasks.spec import Status

WAIT_S = 90.0
MANIFEST = """\
schema_version: 1
name: trial
matrix: {dtype: [float32]}
execution: {num_cpus: 1}
deadlines: {time_s: 60, compile_s: 60, task_s: 100}
suites:
  toy:
"""


@pytest.fixture
def manifest(tmp_path):
    def write(*models):
        path = tmp_path / "trial.yaml"
        path.write_text(MANIFEST + "".join(f"    - {model}\n" for model in models))
        return path

    return write


class Shared:
    """A cluster that outlives the runs on it."""

    def __init__(self, cluster):
        self._cluster = cluster

    def __getattr__(self, name):
        return getattr(self._cluster, name)

    def close(self):
        pass


@pytest.fixture(scope="module")
def ray():
    cluster = RayCluster()
    yield Shared(cluster)
    cluster.close()


def run(ray, manifest, results, resume=False, rerun=frozenset(), aa=False, rerun_tasks=()):
    """The exit status and what a person would have seen."""
    console = Console(file=io.StringIO(), width=200)
    request = RunRequest(manifest, str(results), "r", None, resume, rerun, aa, rerun_tasks=frozenset(rerun_tasks))
    ended = runs.run(request, console, connect=lambda _: ray)
    return ended.ending.exit_code, console.file.getvalue()


def command(manifest, results, *arguments):
    return [sys.executable, "-m", "orchestrator", "run", str(manifest), "--results", str(results), "--run-id", "r", *arguments]


def start(mark, manifest, results, *arguments):
    return subprocess.Popen(
        command(manifest, results, *arguments),
        env=os.environ | {"TRIAL": mark},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )


def rows(results):
    return {row["model"]: row for row in Store(str(results)).resolve("r").rows().to_pylist()}


def wait_for(holds):
    give_up = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < give_up, "waited in vain"
        time.sleep(0.1)


def task_files(results):
    folder = results / "r" / "tasks"
    return {path.name: path.read_bytes() for path in folder.glob("*.parquet")} if folder.is_dir() else {}


def workers(mark):
    """The worker processes of the driver that was started with ``mark``."""
    return [process for process in psutil.process_iter(["cmdline", "environ"]) if _is_worker(process.info, mark)]


def _is_worker(info, mark):
    return "tasks.worker" in (info["cmdline"] or []) and (info["environ"] or {}).get("TRIAL") == mark


@pytest.fixture
def mark():
    return uuid.uuid4().hex


def test_every_task_ends_in_a_row_whatever_it_did(ray, manifest, tmp_path):
    code, seen = run(ray, manifest("pass", "crash", "fail_accuracy"), tmp_path)
    assert code == ExitCode.SOME_FAILED
    assert "3/3" in seen
    assert {model: row["status"] for model, row in rows(tmp_path).items()} == {
        "pass": "pass",
        "crash": "crash",
        "fail_accuracy": "fail_accuracy",
    }


def test_a_plan_that_no_node_can_run_is_refused_before_anything_is_stored(ray, manifest, tmp_path):
    path = manifest("pass")
    path.write_text(path.read_text().replace("num_cpus: 1", "num_cpus: 1000"))
    with pytest.raises(PreflightError, match="1000 CPUs where the largest node has"):
        run(ray, path, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_a_finished_run_is_refused_without_resume_and_untouched_with_it(ray, manifest, tmp_path):
    path = manifest("pass")
    assert run(ray, path, tmp_path)[0] == ExitCode.PASSED
    before = task_files(tmp_path)
    with pytest.raises(UsageError, match="--resume"):
        run(ray, path, tmp_path)
    assert run(ray, path, tmp_path, resume=True)[0] == ExitCode.PASSED
    assert task_files(tmp_path) == before


def test_a_changed_manifest_is_not_resumed(ray, manifest, tmp_path):
    assert run(ray, manifest("pass"), tmp_path)[0] == ExitCode.PASSED
    with pytest.raises(UsageError, match="has changed"):
        run(ray, manifest("pass", "pass.2"), tmp_path, resume=True)


def test_a_rerun_runs_what_it_names_and_nothing_else(ray, manifest, tmp_path):
    path = manifest("pass", "crash")
    run(ray, path, tmp_path)
    first = rows(tmp_path)
    assert run(ray, path, tmp_path, resume=True, rerun=frozenset({Status.CRASH}))[0] == ExitCode.SOME_FAILED
    second = rows(tmp_path)
    assert second["pass"] == first["pass"]
    assert second["crash"]["attempt"] == 2


def test_a_task_that_passed_is_run_again_by_a_part_of_its_id(ray, manifest, tmp_path):
    path = manifest("pass", "pass.2")
    run(ray, path, tmp_path)
    first = rows(tmp_path)
    assert run(ray, path, tmp_path, resume=True, rerun_tasks=["toy/pass.2/float32"])[0] == ExitCode.PASSED
    second = rows(tmp_path)
    assert second["pass"] == first["pass"]
    assert second["pass.2"]["attempt"] == 2
    with pytest.raises(UsageError, match=r"--rerun pas\.2: no task of this run has that in its id, and it is no status; .*fail_accuracy"):
        run(ray, path, tmp_path, resume=True, rerun_tasks=["pas.2"])


def test_a_result_that_a_dead_driver_did_not_store_is_stored_on_resume(ray, manifest, tmp_path):
    path = manifest("pass", "pass.2")
    run(ray, path, tmp_path)
    files = sorted((tmp_path / "r" / "tasks").glob("*.parquet"))
    lost = {row["model"]: row for row in rows(tmp_path).values()}
    spooled = tmp_path / "r" / "spool"
    _spool_again(lost, spooled)
    for file in files + sorted((tmp_path / "r" / "samples").glob("*.parquet")):
        file.unlink()
    code, seen = run(ray, path, tmp_path, resume=True)
    assert code == ExitCode.PASSED
    assert "stored 2 result(s)" in seen
    assert {row["attempt"] for row in rows(tmp_path).values()} == {1}


def _spool_again(lost, folder):
    """What supervisors leave for a driver that does not live to store it."""
    from tasks.spec import Attempt, Measurement, Outcome, Phase
    from tasks.spool import leave

    for row in lost.values():
        measured = Measurement(
            speedup=row["speedup"], speedup_low=row["speedup_low"], speedup_high=row["speedup_high"], eager_ms=1.0, compiled_ms=1.0
        )
        leave(Outcome(row["task_id"], 1, Status.PASS, Phase.WRITE, measurement=measured), Attempt("r", 1, str(folder)))


@pytest.mark.slow
def test_the_first_ctrl_c_drains_and_the_resume_does_the_rest(ray, manifest, tmp_path, mark):
    path = manifest(*[f"{{name: slow_pass.{i}, options: {{seconds: 3}}}}" for i in range(6)])
    driver = start(mark, path, tmp_path)
    wait_for(lambda: workers(mark))
    driver.send_signal(signal.SIGINT)
    _, errors = driver.communicate(timeout=WAIT_S)
    assert driver.returncode == ExitCode.INTERRUPTED, errors
    assert errors.strip().splitlines()[-1].endswith(f"sweep run {path} --results {tmp_path} --run-id r --resume")
    kept = rows(tmp_path)
    assert 0 < len(kept) < 6
    assert run(ray, path, tmp_path, resume=True)[0] == ExitCode.PASSED
    assert len(rows(tmp_path)) == 6
    assert {model: row for model, row in rows(tmp_path).items() if model in kept} == kept


@pytest.mark.slow
def test_the_second_ctrl_c_stops_at_once_and_leaves_no_process(manifest, tmp_path, mark):
    driver = start(mark, manifest("hang", "hang.2"), tmp_path)
    wait_for(lambda: workers(mark))
    driver.send_signal(signal.SIGINT)
    time.sleep(1.0)
    driver.send_signal(signal.SIGINT)
    _, errors = driver.communicate(timeout=WAIT_S)
    assert driver.returncode == ExitCode.INTERRUPTED, errors
    assert "Token authentication" not in errors  # of a local Ray, which nobody asked for
    wait_for(lambda: not workers(mark))
    assert rows(tmp_path) == {}


@pytest.mark.slow
def test_a_killed_driver_loses_nothing_and_nobody_else_may_write_while_it_lives(ray, manifest, tmp_path, mark):
    models = [*(f"pass.{i}" for i in range(6)), *(f"{{name: slow_pass.{i}, options: {{seconds: 15}}}}" for i in range(4))]
    path = manifest(*models)
    driver = start(mark, path, tmp_path)
    wait_for(lambda: len(task_files(tmp_path)) >= 1)
    second = subprocess.run(command(path, tmp_path, "--resume"), capture_output=True, text=True, timeout=WAIT_S)
    assert second.returncode == ExitCode.INFRASTRUCTURE
    assert str(driver.pid) in second.stderr
    os.kill(driver.pid, signal.SIGKILL)
    driver.communicate()
    before = task_files(tmp_path)
    wait_for(lambda: not workers(mark))
    code, seen = run(ray, path, tmp_path, resume=True)
    assert code == ExitCode.PASSED, seen
    assert len(rows(tmp_path)) == 10
    assert {name: task_files(tmp_path)[name] for name in before} == before


def test_a_bad_manifest_exits_2_with_every_error(manifest, tmp_path):
    path = manifest("pass", "no_such_toy")
    path.write_text(path.read_text().replace("name: trial", "nam: trial"))
    done = subprocess.run(command(path, tmp_path / "out"), capture_output=True, text=True, timeout=WAIT_S)
    assert done.returncode == ExitCode.USAGE
    assert f"{path}:2:1: nam: " in done.stderr
    assert f"{path}:9:7: suites.toy[1]" in done.stderr


def test_a_model_is_measured_in_as_many_fresh_processes_as_the_manifest_says(ray, manifest, tmp_path):
    repeated = "{name: pass.repeated, measurement: {processes: 3}, options: {process_noise: 0.05}}"
    code, _ = run(ray, manifest("pass", repeated, "{name: relapse, measurement: {processes: 2}}"), tmp_path)
    assert code == ExitCode.SOME_FAILED
    found = rows(tmp_path)
    assert {model: row["status"] for model, row in found.items()} == {"pass": "pass", "pass.repeated": "pass", "relapse": "crash"}
    assert [len(found[model]["process_speedups"]) for model in ("pass", "pass.repeated")] == [1, 3]
    store = Store(str(tmp_path)).resolve("r")
    assert set(store.samples_of(found["pass.repeated"]["task_id"]).process) == {0, 1, 2}
    assert verify(store) == []


def test_what_compare_writes_to_confirm_runs(ray, manifest, tmp_path):
    path = manifest("pass", "pass.2")
    run(ray, path, tmp_path / "first")
    specs = [entry.task for entry in Store(str(tmp_path / "first")).resolve("r").plan()]
    ((_, text),) = confirmation(specs, "confirm", processes=2).items()
    path.write_text(text)
    assert run(ray, path, tmp_path / "second")[0] == ExitCode.PASSED
    assert [len(row["process_speedups"]) for row in rows(tmp_path / "second").values()] == [2, 2]
    assert verify(Store(str(tmp_path / "second")).resolve("r")) == []


def test_each_arm_against_itself_gives_ratios_of_one_and_no_speedup(ray, manifest, tmp_path):
    path = manifest("pass", "noisy", "fail_eager")
    assert run(ray, path, tmp_path, aa=True)[0] == ExitCode.SOME_FAILED
    store = Store(str(tmp_path)).resolve("r")
    assert store.record.aa
    assert verify(store) == []
    found = rows(tmp_path)
    assert [found[model]["speedup"] for model in ("pass", "noisy", "fail_eager")] == [None] * 3
    assert {row["aa"] for row in found.values()} == {True}
    shown = noise(load(store))
    assert {(floor.kind, floor.arm): floor.intervals for floor in shown.floors}["CPU", "all"] == 4
    assert shown.without == (("toy/fail_eager/float32/training/inductor", "fail_eager"),)
    with pytest.raises(UsageError, match="was started with --aa"):
        run(ray, path, tmp_path, resume=True)
    assert run(ray, path, tmp_path, resume=True, aa=True)[0] == ExitCode.SOME_FAILED

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from orchestrator.errors import ExitCode
from orchestrator.record import PlannedTask, RunState
from orchestrator.store import Store
from orchestrator.verify import AA, DERIVED, verify
from tasks.merge import merge
from tasks.spec import FailureClass, MeasureSpec, Status, WorkerResult
from tests.orchestrator.stored import a_record, a_task, against_itself, failed, passed

TASKS = [a_task(number) for number in range(4)]


@pytest.fixture
def run(tmp_path):
    """A finished run: two passes, a crash, a skip."""
    plan = [*map(PlannedTask, TASKS[:3]), PlannedTask(TASKS[3], "excluded: too big")]
    run = Store(str(tmp_path)).create(a_record(), plan)
    run.append([(task, passed(task, seed=seed, on_device=True)) for seed, task in enumerate(TASKS[:2], start=1)])
    skipped = failed(TASKS[3], status=Status.SKIPPED, failure_class=FailureClass.EXCLUDED, error="excluded: too big")
    run.append([(TASKS[2], failed(TASKS[2])), (TASKS[3], skipped)])
    return run


def rewrite(run, folder, column, change):
    """Change the values of one column of the run's first part, as a bug or a hand would."""
    path = min(run.files.local(folder).glob("*.parquet"))
    table = pq.read_table(path)
    field = table.schema.field(column)
    values = [change(value) for value in table.column(column).to_pylist()]
    pq.write_table(table.set_column(table.column_names.index(column), field, pa.array(values, field.type)), path)


def rules(run):
    return {(violation.rule, violation.subject) for violation in verify(run)}


@pytest.mark.parametrize("compacted", [False, True])
def test_a_sound_run_has_no_violations(run, compacted):
    if compacted:
        run.compact()
    assert verify(run) == []


def test_a_later_attempt_is_no_duplicate_and_the_same_one_is(run):
    run.append([(TASKS[2], passed(TASKS[2], attempt=2))])
    assert verify(run) == []
    run.append([(TASKS[2], passed(TASKS[2], attempt=2))])
    assert rules(run) == {("row", TASKS[2].task_id)}


def test_in_a_finished_run_no_row_is_left_beside_the_one_that_replaced_it(run):
    run.append([(TASKS[2], passed(TASKS[2], attempt=2))])
    run.set_state(RunState.FINISHED, 3)
    assert rules(run) == {("row", TASKS[2].task_id)}
    run.compact()
    assert verify(run) == []


def test_missing_and_unplanned_rows_are_found(tmp_path):
    run = Store(str(tmp_path)).create(a_record(), [PlannedTask(task) for task in TASKS[:2]])
    run.append([(TASKS[0], failed(TASKS[0])), (TASKS[3], failed(TASKS[3]))])
    assert {str(violation) for violation in verify(run)} == {
        f"{TASKS[1].task_id}: row: planned, but has no terminal row",
        f"{TASKS[3].task_id}: row: has a row, but was not planned",
    }


@pytest.mark.parametrize("column", [column for column in DERIVED if column not in AA])
def test_every_published_number_is_derived_again_to_the_last_bit(run, column):
    nudged = {
        "pairs": lambda value: value + 1,
        "process_speedups": lambda values: [value * (1 + 2**-52) for value in values],
        "launch_bound": lambda value: not value,
    }
    rewrite(run, "tasks", column, nudged.get(column, lambda value: value * (1 + 2**-52)))
    found = verify(run)
    assert {violation.subject for violation in found if violation.rule == "samples"} == {task.task_id for task in TASKS[:2]}
    assert all(column in violation.message for violation in found if violation.rule == "samples")


@pytest.mark.parametrize(
    ("column", "value"), [("process_speedups", []), ("eager_device_ms", None), ("launch_bound", None), ("speedup_low", None)]
)
def test_a_number_that_is_taken_away_is_found(run, column, value):
    rewrite(run, "tasks", column, lambda _: value)
    assert ("samples", TASKS[0].task_id) in rules(run)


@pytest.mark.parametrize(("pairs", "sound"), [(3, True), (6, True), (7, False)])
def test_too_few_pairs_for_an_interval_are_no_violation(tmp_path, pairs, sound):
    run = Store(str(tmp_path)).create(a_record(), [PlannedTask(TASKS[0])])
    run.append([(TASKS[0], passed(TASKS[0], pairs=pairs))])
    assert verify(run) == []
    for column in ("speedup_low", "speedup_high"):
        rewrite(run, "tasks", column, lambda _: None)
    assert (verify(run) == []) is sound
    rewrite(run, "tasks", "speedup_low", lambda _: 0.5)
    assert ("speedup", TASKS[0].task_id) in rules(run)


def test_a_run_of_arms_against_themselves_from_before_their_device_times_were_told_apart_is_sound(aa_run):
    rewrite(aa_run, "samples", "phase", lambda phase: "device" if phase.endswith("_device") else phase)
    assert verify(aa_run) == []


@pytest.fixture
def aa_run(tmp_path):
    task = dataclasses.replace(TASKS[0], aa=True)
    run = Store(str(tmp_path)).create(dataclasses.replace(a_record(), aa=True), [PlannedTask(task)])
    run.append([(task, against_itself(task))])
    return run


def test_a_run_of_arms_against_themselves_is_sound_without_a_speedup(aa_run):
    assert verify(aa_run) == []
    (row,) = aa_run.rows(("speedup", "aa", "aa_eager")).to_pylist()
    assert (row["speedup"], row["aa"]) == (None, True)


@pytest.mark.parametrize("column", [*AA, "eager_ms", "compiled_ms", "eager_device_ms", "compiled_device_ms"])
def test_every_number_of_an_arm_against_itself_is_derived_again(aa_run, column):
    rewrite(aa_run, "tasks", column, lambda value: value * (1 + 2**-52))
    assert rules(aa_run) == {("samples", TASKS[0].task_id)}


@pytest.mark.parametrize(("column", "value"), [("aa_eager", None), ("aa_compiled_low", None), ("speedup", 1.5)])
def test_a_row_of_arms_against_themselves_has_their_ratios_and_nothing_else(aa_run, column, value):
    rewrite(aa_run, "tasks", column, lambda _: value)
    assert (column.removesuffix("_low"), TASKS[0].task_id) in rules(aa_run)


def test_the_numbers_of_several_processes_are_derived_from_the_samples_of_all(tmp_path):
    task = dataclasses.replace(TASKS[0], measure=MeasureSpec(processes=3))
    parts = [passed(task, seed=seed, ratio=1.5 + seed / 10) for seed in range(3)]
    merged = merge([WorkerResult(part.status, part.phase, None, None, part.measurement, part.samples) for part in parts])
    run = Store(str(tmp_path)).create(a_record(), [PlannedTask(task)])
    run.append([(task, dataclasses.replace(parts[0], measurement=merged.measurement, samples=merged.samples))])
    assert verify(run) == []
    (row,) = run.rows(("process_speedups", "speedup_low", "speedup_high")).to_pylist()
    assert row["speedup_low"] < min(row["process_speedups"]) < max(row["process_speedups"]) < row["speedup_high"]
    rewrite(run, "samples", "process", lambda _: 0)
    assert rules(run) == {("samples", task.task_id)}


def test_a_changed_sample_is_found(run):
    rewrite(run, "samples", "host_ns", lambda value: value + 1)
    assert ("samples", TASKS[0].task_id) in rules(run)


def test_a_speedup_without_samples_is_found(run):
    rewrite(run, "samples", "task_id", lambda value: TASKS[1].task_id)
    assert ("samples", TASKS[0].task_id) in rules(run)


@pytest.mark.parametrize(
    ("column", "value", "rule"),
    [
        ("status", "fine", "status"),
        ("phase", "lunch", "phase"),
        ("speedup", None, "speedup"),
        ("speedup_low", None, "speedup"),
        ("speedup_high", 0.5, "speedup"),
        ("speedup", float("nan"), "speedup"),
        ("speedup_high", float("inf"), "speedup"),
        ("run_id", "another", "identity"),
        ("manifest_digest", "another", "identity"),
        ("task_digest", "another", "identity"),
        ("model", "another", "identity"),
        ("log", "logs/another.log", "log"),
    ],
)
def test_a_row_that_breaks_an_invariant_is_found(run, column, value, rule):
    rewrite(run, "tasks", column, lambda _: value)
    assert (rule, TASKS[0].task_id) in rules(run)


def test_a_skip_without_a_reason_is_found(run):
    run.append([(TASKS[3], failed(TASKS[3], attempt=2, status=Status.SKIPPED, error=None))])
    assert rules(run) == {("skip", TASKS[3].task_id)}


def test_a_lost_log_and_a_damaged_file_are_found(run):
    next(run.files.local("logs").glob(f"*{TASKS[0].model.name}*")).unlink()
    path = min(run.files.local("samples").glob("*.parquet"))
    path.write_bytes(path.read_bytes()[:-9])
    found = rules(run)
    assert ("log", TASKS[0].task_id) in found
    assert ("file", str(path)) in found


def sweep_verify(run, *options):
    command = [sys.executable, "-m", "orchestrator", "verify", "latest", "--results", str(run.files.local("..").resolve()), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_the_command_exits_0_or_4_and_prints_each_violation(run):
    sound = sweep_verify(run)
    assert (sound.returncode, sound.stdout, sound.stderr) == (ExitCode.PASSED, "run-1: every invariant holds\n", "")
    rewrite(run, "tasks", "pairs", lambda value: value + 1)
    broken = sweep_verify(run, "--json")
    assert broken.returncode == ExitCode.INFRASTRUCTURE
    answer = json.loads(broken.stdout)
    assert (answer["ok"], answer["run_id"], len(answer["violations"])) == (False, "run-1", 2)
    assert dataclasses.asdict(verify(run)[0]) == answer["violations"][0]
    assert "run-1: 2 violations" in sweep_verify(run).stdout


def test_many_rows_that_are_missing_are_one_line(tmp_path):
    tasks = [a_task(number) for number in range(7)]
    run = Store(str(tmp_path)).create(a_record(), [*map(PlannedTask, tasks)])
    run.append([(tasks[0], failed(tasks[0]))])

    missing, verdict = sweep_verify(run).stdout.splitlines()

    named = ", ".join(task.task_id for task in tasks[1:4])
    assert missing == f"6 times: row: planned, but has no terminal row: {named}, ... (--json has all)"
    assert verdict == "run-1: 6 violations"
    assert len(json.loads(sweep_verify(run, "--json").stdout)["violations"]) == 6
    run.append([(task, failed(task)) for task in tasks[1:4]])
    assert len(sweep_verify(run).stdout.splitlines()) == 4

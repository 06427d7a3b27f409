from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tasks import lease, supervisor
from tasks.estimator import summarise
from tasks.launch import DEVICE_DIRECTORY
from tasks.processes import identity
from tasks.scratch import MARK
from tasks.spec import Attempt, DeadlineSpec, FailureClass, MeasureSpec, ModelSpec, Outcome, Phase, ResourceSpec, Status, decode, encode
from tasks.spool import spool_name
from tasks.supervisor import Finished, Heartbeat, PhaseStarted, Started, run_inline, supervise
from tests.tasks.processes_fixtures import attempt, attempts_in, finish, guardians_of, locks_are_free, start, states_below, toy, wait_until

ROOT = Path(__file__).parent.parent.parent
SHORT = DeadlineSpec(compile_s=0.5)

ENDS = {
    "pass": (Status.PASS, None, Phase.WRITE),
    "noisy": (Status.PASS, None, Phase.WRITE),
    "garbage": (Status.PASS, None, Phase.WRITE),
    "orphans": (Status.PASS, None, Phase.WRITE),
    "fail_eager": (Status.FAIL_EAGER, FailureClass.MODEL, Phase.EAGER),
    "fail_compile": (Status.FAIL_COMPILE, FailureClass.COMPILER, Phase.COMPILE),
    "fail_accuracy": (Status.FAIL_ACCURACY, FailureClass.ACCURACY, Phase.VERIFY),
    "fail_run": (Status.FAIL_RUN, FailureClass.COMPILER, Phase.TIME),
    "oom": (Status.OOM, FailureClass.DEVICE_OOM, Phase.EAGER),
    "host_oom": (Status.OOM, FailureClass.HOST_OOM, Phase.EAGER),
    "unsupported": (Status.UNSUPPORTED, FailureClass.UNSUPPORTED, Phase.BUILD),
    "crash": (Status.CRASH, FailureClass.CRASH, Phase.COMPILE),
    "exit_zero": (Status.CRASH, FailureClass.CRASH, Phase.COMPILE),
    "half_result": (Status.CRASH, FailureClass.CRASH, Phase.WRITE),
    "no_such_toy": (Status.FAIL_EAGER, FailureClass.MODEL, Phase.BUILD),
}


@pytest.mark.parametrize("kind", ENDS)
def test_every_kind_of_end_is_told_apart_and_leaves_nothing(kind, node_directory):
    outcome = finish(toy(kind))
    assert (outcome.status, outcome.failure_class, outcome.phase) == ENDS[kind], outcome
    assert states_below(node_directory) == {}
    assert attempts_in(node_directory) == []
    assert (outcome.task_id, outcome.attempt) == (f"toy/{kind}/amp/training/inductor", 1)
    assert outcome.started < outcome.ended


def test_events_come_in_order_and_end_with_one_outcome(node_directory):
    events = list(supervise(toy("pass"), attempt(), node="here"))
    assert isinstance(events[0], Started)
    assert events[0].node == "here"
    assert [event.phase for event in events if isinstance(event, PhaseStarted)] == [phase for phase in Phase if phase is not Phase.START]
    assert [isinstance(event, Finished) for event in events] == [False] * (len(events) - 1) + [True]
    outcome = events[-1].outcome
    assert set(outcome.phase_s) == {phase.value for phase in Phase}
    assert outcome.node == "here"
    assert outcome.measurement.speedup == pytest.approx(2.0, rel=0.02)
    assert outcome.measurement.speedup_low < outcome.measurement.speedup < outcome.measurement.speedup_high


def test_a_long_phase_sends_heartbeats(node_directory, monkeypatch):
    monkeypatch.setattr(supervisor, "HEARTBEAT_S", 0.2)
    events = list(supervise(toy("slow_pass", seconds=1.0), attempt()))
    beats = [event for event in events if isinstance(event, Heartbeat)]
    assert Phase.COMPILE in [beat.phase for beat in beats]
    assert [beat.at for beat in beats] == sorted(beat.at for beat in beats)
    assert events[-1].outcome.status is Status.PASS


def test_a_worker_is_started_when_no_neighbour_times_and_is_not_charged_for_the_wait(node_directory, monkeypatch):
    monkeypatch.setattr(supervisor, "HEARTBEAT_S", 0.1)
    neighbour = supervise(toy("slow_pass", seconds=0.0, exclusive_seconds=3.0), attempt())
    for event in neighbour:
        if isinstance(event, PhaseStarted) and event.phase is Phase.TIME:
            break
    events = list(supervise(toy("pass", deadlines=DeadlineSpec(start_s=60)), attempt()))
    first_started = next(position for position, event in enumerate(events) if isinstance(event, Started))
    outcome = events[-1].outcome
    if first_started > 0:  # else a busy machine started it after the neighbour was done
        assert all(isinstance(event, Heartbeat) for event in events[:first_started])
        assert outcome.waited_s > 0.1
        assert outcome.phase_s["start"] < outcome.ended - outcome.started - outcome.waited_s
    assert outcome.status is Status.PASS
    neighbour.close()


def test_a_crash_names_the_signal_and_shows_where(node_directory):
    outcome = finish(toy("crash"))
    assert "SIGSEGV in phase compile" in outcome.error
    assert "Segmentation fault" in outcome.log_tail
    assert "toy.py" in outcome.log_tail
    assert "exited with status 0" in finish(toy("exit_zero")).error


@pytest.mark.parametrize("kind", ["hang", "ignore_sigterm"])
def test_a_phase_that_takes_too_long_is_ended_with_its_stacks_in_the_log(kind, node_directory):
    outcome = finish(toy(kind, deadlines=SHORT))
    assert (outcome.status, outcome.failure_class, outcome.phase) == (Status.TIMEOUT, FailureClass.DEADLINE, Phase.COMPILE)
    assert outcome.error == "phase compile took longer than its 0.5 s"
    assert "most recent call first" in outcome.log_tail
    assert "in _hang" in outcome.log_tail
    assert outcome.phase_s["compile"] < 60


def test_a_task_that_takes_too_long_is_ended_whatever_its_phase(node_directory):
    outcome = finish(toy("hang", deadlines=DeadlineSpec(task_s=2.0)))
    assert (outcome.status, outcome.error) == (Status.TIMEOUT, "the task took longer than its 2 s")


def test_a_worker_that_never_gets_to_its_code_is_ended(node_directory):
    outcome = finish(toy("pass", deadlines=DeadlineSpec(start_s=0.001)))
    assert (outcome.status, outcome.phase) == (Status.TIMEOUT, Phase.START)


def test_children_that_left_session_and_environment_are_ended(node_directory):
    outcome = finish(toy("orphans", count=3))
    orphans = [int(pid) for pid in re.findall(r"orphan (\d+)", outcome.log)]
    assert len(orphans) == 3
    assert [identity(pid) for pid in orphans] == [None] * 3


def test_output_is_printable_and_the_last_of_it_in_the_tail(node_directory):
    outcome = finish(toy("garbage"))
    assert "\N{REPLACEMENT CHARACTER}" in outcome.log_tail
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", outcome.log)
    assert "title" not in outcome.log


def test_a_flood_costs_neither_memory_nor_disk(node_directory):
    peaks_kib, sizes, done = [0], [0], threading.Event()

    def watch():
        while not done.wait(0.02):
            for pid in guardians_of(node_directory):
                try:
                    peaks_kib.append(int(re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]))
                except (OSError, TypeError):
                    continue
            for folder, _, names in os.walk(node_directory):  # unlike a glob it does not mind that what it lists disappears
                for name in names:
                    with contextlib.suppress(OSError):
                        sizes.append((Path(folder) / name).stat().st_size)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        outcome = finish(toy("flood", mib=200))
    finally:
        done.set()
        watcher.join()
    assert outcome.status is Status.PASS
    assert 0 < max(peaks_kib) < 64 * 1024
    assert max(sizes) < 2**20
    assert len(outcome.log) < 257 * 1024
    assert f"[... {200 * 2**20 - 256 * 1024} bytes cut ...]" in outcome.log
    assert outcome.log.startswith("0000000 ...")
    assert outcome.log_tail.endswith("....\n")


def test_the_outcome_is_left_in_the_spool(node_directory, tmp_path):
    spool = tmp_path / "spool"
    spool.mkdir()
    outcome = finish(toy("pass"), attempt(3, spool=str(spool)))
    (path,) = spool.iterdir()
    assert path.name == spool_name(outcome.task_id, 3)
    assert decode(Outcome, json.loads(path.read_text())) == outcome


def test_a_spool_that_is_not_there_is_no_failure(node_directory, tmp_path):
    assert finish(toy("pass"), attempt(spool=str(tmp_path / "nowhere"))).status is Status.PASS
    assert not (tmp_path / "nowhere").exists()


def test_what_the_worker_got_is_recorded_and_nothing_of_ray(node_directory, monkeypatch):
    monkeypatch.setenv("RAY_JOB_ID", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "77")
    monkeypatch.setenv("TORCH_LOGS", "graph_breaks")
    outcome = finish(toy("pass", resources=ResourceSpec(num_cpus=3, compile_threads=2)))
    assert outcome.environment["OMP_NUM_THREADS"] == "3"
    assert outcome.environment["TORCHINDUCTOR_COMPILE_THREADS"] == "2"
    assert outcome.environment["CUDA_VISIBLE_DEVICES"] == ""
    assert outcome.environment["TORCH_LOGS"] == "graph_breaks"
    assert outcome.environment["TMPDIR"].startswith(str(node_directory))
    assert not any(name.startswith("RAY_") for name in outcome.environment)


def test_a_worker_knows_where_those_meet_who_share_its_device(node_directory):
    events = supervise(toy("hang"), attempt())
    environment = Path(f"/proc/{start(events)}/environ").read_bytes().split(b"\0")
    events.close()
    (place,) = (os.fsdecode(entry.partition(b"=")[2]) for entry in environment if entry.startswith(DEVICE_DIRECTORY.encode()))
    assert (Path(place) / "device.queue").exists()  # the lease's


def test_a_cold_cache_is_an_attempts_own_and_a_shared_one_the_runs(node_directory):
    cold = {finish(toy("fail_eager")).environment["TORCHINDUCTOR_CACHE_DIR"] for _ in range(2)}
    shared = {finish(toy("fail_eager", cache="shared")).environment["TORCHINDUCTOR_CACHE_DIR"] for _ in range(2)}
    other = finish(toy("fail_eager", cache="shared"), Attempt("other run", 1)).environment["TORCHINDUCTOR_CACHE_DIR"]
    assert len(cold) == 2
    assert len(shared) == 1
    assert other not in shared
    assert not any(Path(path).exists() for path in cold)
    assert all(Path(path).is_dir() for path in (*shared, other))


def test_a_gpu_task_without_a_gpu_is_refused(node_directory):
    outcome = finish(toy("pass", resources=ResourceSpec(device="cuda", num_gpus=1)))
    assert (outcome.status, outcome.failure_class) == (Status.INFRA_ERROR, FailureClass.DEVICE)
    assert "assigned none" in outcome.error


def test_closing_the_iterator_ends_everything(node_directory):
    events = supervise(toy("ignore_sigterm", orphans=2), attempt())
    start(events)
    wait_until(lambda: len(states_below(node_directory)) == 3, "the worker and two orphans, nameless in the middle of an exec")
    events.close()
    assert states_below(node_directory) == {}
    assert attempts_in(node_directory) == []


def test_a_guardian_that_is_killed_loses_the_attempt_and_leaves_nothing(node_directory):
    events = supervise(toy("hang", orphans=2), attempt())
    start(events)
    (guardian,) = guardians_of(node_directory)
    os.kill(guardian, signal.SIGKILL)
    *_, last = events
    assert (last.outcome.status, last.outcome.failure_class) == (Status.INFRA_ERROR, FailureClass.WORKER_LOST)
    assert last.outcome.phase is Phase.COMPILE
    assert states_below(node_directory) == {}
    assert attempts_in(node_directory) == []


def test_a_guardian_that_is_told_to_end_says_so(node_directory):
    events = supervise(toy("hang"), attempt())
    start(events)
    (guardian,) = guardians_of(node_directory)
    os.kill(guardian, signal.SIGTERM)
    *_, last = events
    assert (last.outcome.status, last.outcome.failure_class) == (Status.INFRA_ERROR, FailureClass.WORKER_LOST)
    assert "SIGTERM" in last.outcome.error
    assert attempts_in(node_directory) == []


CALLER = """
import json, sys, tempfile
tempfile.tempdir = sys.argv[1]
from tasks import lease
from tasks.spec import *
lease.SHARED_MEMORY = sys.argv[3]
from tasks.supervisor import supervise
for event in supervise(decode(TaskSpec, json.loads(sys.argv[2])), Attempt("run", 1)):
    print(type(event).__name__, getattr(event, "phase", ""), flush=True)
"""


def calling_process(node_directory, task):
    """Another process that supervises ``task``, once its worker compiles."""
    command = [sys.executable, "-c", CALLER, str(node_directory), json.dumps(encode(task)), lease.SHARED_MEMORY]
    caller = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    for line in caller.stdout:
        if line == "PhaseStarted compile\n":
            return caller
    raise AssertionError("the worker never compiled")


def test_a_supervisor_that_is_killed_takes_the_whole_tree_with_it(node_directory):
    caller = calling_process(node_directory, toy("ignore_sigterm", orphans=2))
    wait_until(lambda: len(states_below(node_directory)) == 3, "the worker and two orphans, nameless in the middle of an exec")
    caller.kill()
    caller.communicate()
    wait_until(lambda: not states_below(node_directory), "the end of the worker")
    wait_until(lambda: attempts_in(node_directory) == [], "the end of its directory")
    assert states_below(node_directory) == {}


def test_the_guardian_is_no_child_of_its_supervisor(node_directory):
    """Ray kills the children of its workers; a guardian among them could not clean up."""
    caller = calling_process(node_directory, toy("hang"))
    (guardian,) = guardians_of(node_directory)
    parent, group, session = Path(f"/proc/{guardian}/stat").read_text().rpartition(")")[2].split()[1:4]
    assert int(parent) != caller.pid
    assert os.getpgid(caller.pid) != int(group)
    assert int(session) == int(group)  # of a session of its own, which is named after the process that left
    caller.kill()
    caller.communicate()


def test_what_a_supervisor_and_guardian_killed_together_leave_is_ended_by_the_next(node_directory):
    caller = calling_process(node_directory, toy("hang", orphans=2))
    for pid in (*guardians_of(node_directory), caller.pid):
        os.kill(pid, signal.SIGSTOP)  # so that neither sees the other die
    for pid in (*guardians_of(node_directory), caller.pid):
        os.kill(pid, signal.SIGKILL)
    caller.communicate()
    wait_until(lambda: locks_are_free(node_directory), "the end of the guardian, which the kernel owes nobody at once")
    events = supervise(toy("hang"), attempt())
    pid = start(events)
    assert set(states_below(node_directory)) == {pid}
    events.close()
    assert states_below(node_directory) == {}
    assert attempts_in(node_directory) == []


def test_an_attempt_does_not_touch_its_neighbours(node_directory):
    events = supervise(toy("slow_pass", seconds=1.5), attempt())
    start(events)
    assert finish(toy("pass")).status is Status.PASS
    *_, last = events
    assert last.outcome.status is Status.PASS


def test_each_process_is_a_fresh_worker_and_the_last_one_brings_the_result_of_all(node_directory):
    events = list(supervise(toy("slow_pass", measure=MeasureSpec(processes=3), seconds=0.01, process_noise=0.05), attempt()))
    assert [type(event) for event in events].count(Started) == 1
    once = [phase for phase in Phase if phase is not Phase.START]
    assert [event.phase for event in events if isinstance(event, PhaseStarted)] == [*once, Phase.START, *once, Phase.START, *once]
    outcome = events[-1].outcome
    assert outcome.status is Status.PASS, outcome
    assert set(outcome.samples.process) == {0, 1, 2}
    assert summarise(outcome.samples).speedup == outcome.measurement.speedup
    speedups = outcome.measurement.process_speedups
    assert len(set(speedups)) == 3
    assert outcome.measurement.speedup_low < min(speedups) < max(speedups) < outcome.measurement.speedup_high
    assert "--- process 3 of 3 ---" in outcome.log
    assert attempts_in(node_directory) == []


def test_a_process_that_fails_fails_the_task_and_none_follows(node_directory):
    outcome = finish(toy("relapse", measure=MeasureSpec(processes=3)))
    assert (outcome.status, outcome.failure_class, outcome.phase) == (Status.CRASH, FailureClass.CRASH, Phase.COMPILE)
    assert outcome.error.startswith("process 2 of 3: the worker was killed by SIGSEGV")
    assert "process 3 of 3" not in outcome.log
    assert outcome.measurement.speedup is None
    assert outcome.samples.phase == ()


def test_phases_have_their_deadlines_in_each_process_and_the_task_has_one_for_all(node_directory):
    three = MeasureSpec(processes=3)
    assert finish(toy("slow_pass", measure=three, deadlines=DeadlineSpec(compile_s=1.5), seconds=1.0)).status is Status.PASS
    outcome = finish(toy("slow_pass", measure=three, deadlines=DeadlineSpec(task_s=2.0), seconds=1.5))
    assert (outcome.status, outcome.failure_class) == (Status.TIMEOUT, FailureClass.DEADLINE)
    assert outcome.error == "process 2 of 3: the task took longer than its 2 s"


def test_inline_runs_as_many_processes_in_turn_in_this_one():
    outcome = run_inline(toy("pass", measure=MeasureSpec(processes=3)), attempt())
    assert len(outcome.measurement.process_speedups) == 3


def test_inline_runs_a_toy_here_and_now(tmp_path):
    outcome = run_inline(toy("pass"), attempt(spool=str(tmp_path)), node="here")
    assert (outcome.status, outcome.node) == (Status.PASS, "here")
    assert outcome.measurement.speedup == pytest.approx(2.0, rel=0.02)
    assert MARK not in os.environ
    assert len(list(tmp_path.iterdir())) == 1
    failed = run_inline(toy("fail_compile"), attempt())
    assert (failed.status, failed.failure_class) == (Status.FAIL_COMPILE, FailureClass.COMPILER)


@pytest.mark.parametrize("model", [ModelSpec("toy", "crash"), ModelSpec("timm", "lcnet_050")])
def test_inline_refuses_what_needs_the_protection_of_a_process(model):
    task = toy("pass")
    outcome = run_inline(decode(type(task), {**encode(task), "model": encode(model)}), attempt())
    assert outcome.status is Status.UNSUPPORTED

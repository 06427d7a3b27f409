from __future__ import annotations

import json
import signal
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks import verdict
from tasks.spec import FailureClass, Measurement, Phase, Status, WorkerResult, encode
from tasks.verdict import DISK_FULL_STATUS, Ending, blame_for_disk, has_risen, judge, oom_kills

KILLED = int(signal.SIGKILL)
PASSED = WorkerResult(Status.PASS, Phase.WRITE, measurement=Measurement(speedup=1.5))


@pytest.fixture
def result(tmp_path):
    path = tmp_path / "result.json"
    path.write_text(json.dumps(encode(PASSED)))
    return path


def test_a_whole_result_counts(result):
    assert judge(Ending(0, Phase.WRITE), result) == PASSED


@pytest.mark.parametrize(
    ("ending", "remark"),
    [
        (Ending(int(signal.SIGSEGV), Phase.WRITE), "after it left its result, the worker was killed by SIGSEGV"),
        (Ending(3 << 8, Phase.WRITE), "after it left its result, the worker exited with status 3"),
        (Ending(KILLED, Phase.WRITE, "phase write took longer than its 60 s", True), "the worker did not end: phase write took longer"),
        (Ending(None, Phase.WRITE, stuck=(7, 8)), "SIGKILL did not end process 7, 8"),
    ],
)
def test_what_breaks_after_a_whole_result_is_only_remarked(result, ending, remark):
    judged = judge(ending, result)
    assert (judged.status, judged.measurement) == (Status.PASS, PASSED.measurement)
    assert remark in judged.error


@pytest.mark.parametrize(
    ("ending", "status", "failure_class", "text"),
    [
        (Ending(0, Phase.TIME), Status.CRASH, FailureClass.CRASH, "exited with status 0 in phase time; it left no result"),
        (Ending(int(signal.SIGSEGV) | 0x80, Phase.EAGER), Status.CRASH, FailureClass.CRASH, "was killed by SIGSEGV in phase eager"),
        (Ending(signal.SIGRTMIN + 3, Phase.EAGER), Status.CRASH, FailureClass.CRASH, "was killed by signal"),
        (Ending(KILLED, Phase.EAGER), Status.CRASH, FailureClass.CRASH, "was killed by SIGKILL"),
        (Ending(KILLED, Phase.EAGER, out_of_memory=True), Status.OOM, FailureClass.HOST_OOM, "the kernel was out of memory"),
        (Ending(int(signal.SIGSEGV), Phase.EAGER, out_of_memory=True), Status.CRASH, FailureClass.CRASH, "SIGSEGV"),
        (Ending(KILLED, Phase.EAGER, "the task took longer", True, True), Status.TIMEOUT, FailureClass.DEADLINE, "the task took longer"),
        (Ending(0, Phase.EAGER, "the task took longer"), Status.TIMEOUT, FailureClass.DEADLINE, "the task took longer"),
        (Ending(None, Phase.TIME, "the task took longer", True, stuck=(7,)), Status.INFRA_ERROR, FailureClass.DEVICE, "process 7"),
    ],
)
def test_without_a_result_the_ending_decides_and_nothing_passes(tmp_path, ending, status, failure_class, text):
    judged = judge(ending, tmp_path / "result.json")
    assert (judged.status, judged.failure_class, judged.phase) == (status, failure_class, ending.phase)
    assert text in judged.error


@pytest.mark.parametrize(
    "content",
    ["", '{"status": "pass"', "null", "[]", '{"status": "perfect", "phase": "write"}', '{"status": "pass"}', "[" * 100_000, "\xff\xfe"],
)
def test_a_result_that_is_not_one_is_a_crash(tmp_path, content):
    path = tmp_path / "result.json"
    path.write_text(content, encoding="latin-1")
    judged = judge(Ending(0, Phase.WRITE), path)
    assert (judged.status, judged.failure_class) == (Status.CRASH, FailureClass.CRASH)
    assert "its result cannot be read" in judged.error


def test_a_result_too_large_to_read_is_a_crash(tmp_path, monkeypatch, result):
    monkeypatch.setattr(verdict, "RESULT_LIMIT_BYTES", 10)
    assert "larger than" in judge(Ending(0, Phase.WRITE), result).error


@given(cut=st.integers(0, 500))
def test_no_prefix_of_a_result_passes(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("cut") / "result.json"
    whole = json.dumps(encode(PASSED))
    path.write_text(whole[: min(cut, len(whole) - 1)])
    assert judge(Ending(0, Phase.WRITE), path).status is Status.CRASH


def test_the_error_of_a_worker_is_made_fit_to_be_shown(result):
    failed = WorkerResult(Status.FAIL_EAGER, Phase.EAGER, FailureClass.MODEL, "\x1b[31mred\udcff" + "x" * 100_000)
    result.write_text(json.dumps(encode(failed)))
    error = judge(Ending(0, Phase.EAGER), result).error
    assert error.startswith("redx")
    assert len(error) == verdict.ERROR_LIMIT


def test_counters_of_killed_processes():
    assert all(isinstance(count, int) for count in oom_kills().values())
    assert "vmstat" in oom_kills()
    assert has_risen({"a": 1, "b": 2}, {"a": 1, "b": 3})
    assert not has_risen({"a": 1}, {"a": 1, "new": 5})


def test_a_full_disk_is_the_fault_of_whoever_filled_it(tmp_path, monkeypatch):
    result = judge(Ending(DISK_FULL_STATUS << 8, Phase.COMPILE), tmp_path / "result.json")
    assert (result.status, result.failure_class) == (Status.INFRA_ERROR, FailureClass.DISK_FULL)
    assert blame_for_disk(result, tmp_path) == result
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "large").write_bytes(b"." * 2**20)
    monkeypatch.setattr("os.statvfs", lambda _: SimpleNamespace(f_blocks=16 * 2**8, f_frsize=2**12))
    own = blame_for_disk(result, tmp_path)
    assert (own.status, own.failure_class) == (Status.CRASH, FailureClass.CRASH)
    assert "filled the node's disk: 1 MiB" in own.error

"""What becomes of a command whose reader has gone: its exit status, its rows."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace

import pytest

from orchestrator.errors import ExitCode
from orchestrator.report.synthetic import failed, store_run, synthetic_run, true_logs
from orchestrator.store import Store

RUN = synthetic_run(true_logs({"timm": 2}), run_id="failing")
TOYS = "schema_version: 1\nname: toys\nmatrix: {dtype: [float32]}\nexecution: {device: cpu}\nsuites: {toy: [pass.1, pass.2, pass.3]}\n"
FAKE = """\
import functools, sys
from orchestrator import cli, run
from tasks.probe import probe
from tests.orchestrator.fakes import NODE, FakeCluster
cluster = FakeCluster()
cluster.probe = lambda: {NODE.name: probe()}
run.run = functools.partial(run.run, connect=lambda _: cluster)
cli.main()
"""


@contextmanager
def closed_pipe():
    read_end, write_end = os.pipe()
    os.close(read_end)
    yield write_end
    os.close(write_end)


def sweep(*arguments, code=("-m", "orchestrator"), **streams):
    return subprocess.run([sys.executable, *code, *arguments], text=True, timeout=60, **streams)


@pytest.fixture
def results(tmp_path):
    store_run(str(tmp_path), replace(RUN, rows=(failed(RUN.rows[0]), *RUN.rows[1:])))
    return str(tmp_path)


def test_a_report_that_nobody_reads_to_its_end_keeps_its_status(results):
    with closed_pipe() as gone:
        done = sweep("report", "failing", "--results", results, stdout=gone, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (ExitCode.SOME_FAILED, "")


def test_an_error_that_nobody_reads_keeps_its_status(results):
    with closed_pipe() as gone:
        assert sweep("report", "nowhere", "--results", results, stdout=gone, stderr=gone).returncode == ExitCode.USAGE


@pytest.mark.slow
def test_a_run_whose_progress_nobody_reads_goes_on_to_its_end(tmp_path):
    (tmp_path / "toys.yaml").write_text(TOYS)
    with closed_pipe() as gone:
        store = ("--results", str(tmp_path / "out"), "--run-id", "r")
        done = sweep("run", str(tmp_path / "toys.yaml"), *store, code=("-c", FAKE), stdout=gone, stderr=gone)
    assert done.returncode == ExitCode.PASSED
    assert len(Store(str(tmp_path / "out")).resolve("r").terminal()) == 3


def test_who_writes_for_ever_is_told_that_nobody_reads():
    watch = "import sys; from orchestrator.cli.streams import *\noutlive_readers()\nwhile is_read(sys.stdout): print('x', flush=True)"
    with closed_pipe() as gone:
        assert sweep(code=("-c", watch), stdout=gone, stderr=subprocess.PIPE).returncode == 0

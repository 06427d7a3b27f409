"""A store behind a filesystem of pyarrow's instead of a directory."""

from __future__ import annotations

import pyarrow.fs as pafs
import pytest

from orchestrator.errors import RunLockedError, UsageError
from orchestrator.files import LocalFiles, ObjectFiles, open_files
from orchestrator.record import RunState
from orchestrator.store import Store
from tests.orchestrator.store.harness import TASKS, content
from tests.orchestrator.stored import a_plan, a_run, passed


@pytest.fixture
def in_objects(tmp_path, monkeypatch):
    """A store reached through pyarrow.fs alone, as an object store is: no paths, no flock, no renames of our own."""
    filesystem = pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem())
    monkeypatch.setattr("orchestrator.store.open_files", lambda root: ObjectFiles(filesystem, "bucket/results"))
    return Store("s3://bucket/results")


def test_a_store_works_through_pyarrow_filesystems(in_objects):
    run = a_run(in_objects, TASKS)
    assert run.spool_path is None
    for index, task in enumerate(TASKS[:3]):
        run.append([(task, passed(task, seed=index))])
    before = content(run)
    with pytest.raises(RunLockedError, match="held by process"):
        in_objects.resolve("latest").acquire()
    run.refresh_lock()
    assert run.compact()
    run.set_state(RunState.INTERRUPTED, 130)
    run.close()
    again = in_objects.resolve("latest")
    again.acquire()
    assert content(again) == before
    assert (again.ingest_orphans(), again.record.state) == ([], RunState.INTERRUPTED)
    assert again.plan() == tuple(a_plan(TASKS))
    assert again.read_log(content(again)[0][TASKS[0].task_id].log) == "built\ntimed\n"
    again.append([(TASKS[3], passed(TASKS[3]))])
    assert [record.run_id for record in in_objects.runs()] == ["run-1"]


def test_places_are_told_apart(tmp_path):
    assert isinstance(open_files(str(tmp_path)), LocalFiles)
    assert open_files(f"file://{tmp_path}").at("x") == str(tmp_path / "x")
    with pytest.raises(UsageError, match="nonsense://x"):
        open_files("nonsense://x")

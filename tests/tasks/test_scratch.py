from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from tasks.processes import mark, marked
from tasks.scratch import MARK, UnsafeDirectoryError, attempt_directory, clear_leftovers, renew, user_directory


def test_a_users_directory_is_private_and_made_once(tmp_path):
    path = user_directory(str(tmp_path))
    assert path == user_directory(str(tmp_path))
    assert path.stat().st_mode & 0o777 == 0o700


def test_a_directory_that_others_can_write_or_a_link_is_refused(tmp_path):
    name = tmp_path / f"sweep-{os.getuid()}"
    name.mkdir()
    name.chmod(0o777)
    with pytest.raises(UnsafeDirectoryError, match="only this user"):
        user_directory(str(tmp_path))
    name.rmdir()
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    name.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UnsafeDirectoryError):
        user_directory(str(tmp_path))


def test_an_attempts_directory_goes_with_all_that_is_in_it(tmp_path):
    with attempt_directory(tmp_path) as path:
        (path / "a" / "b").mkdir(parents=True)
        (path / "a" / "b" / "file").write_text("x")
        clear_leftovers(tmp_path)
        assert (path / "a" / "b" / "file").exists()
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_the_dead_go_and_their_processes_end(tmp_path):
    left = tmp_path / "left"
    left.mkdir()
    (tmp_path / "left.lock").touch()
    (tmp_path / "cache-run").mkdir()
    process = subprocess.Popen([sys.executable, "-ISc", "import time; time.sleep(600)"], env={MARK: str(left)})
    clear_leftovers(tmp_path)
    assert process.wait(timeout=30) == -9
    assert [path.name for path in tmp_path.iterdir()] == ["cache-run"]


def test_what_was_forked_and_not_executed_ends_by_its_mark(tmp_path):
    """As a worker's forked children would live on if their guardian and its caller were killed; a neighbour's stay."""
    children = {}
    for name in ("left", "neighbour"):
        (tmp_path / name).mkdir()
        with mark(MARK, str(tmp_path / name)):
            children[name] = os.fork()
            if children[name] == 0:
                os.chdir("/")
                time.sleep(600)
                os._exit(0)
    (tmp_path / "left.lock").touch()
    assert {process.pid for process in marked(MARK, str(tmp_path / "left"))} == {children["left"]}
    clear_leftovers(tmp_path)
    assert os.waitpid(children["left"], 0) == (children["left"], 9)
    assert os.waitpid(children["neighbour"], os.WNOHANG) == (0, 0)
    os.kill(children["neighbour"], 9)
    os.waitpid(children["neighbour"], 0)


def test_a_mark_longer_than_a_name_may_be_is_found_by_its_end():
    value = "/" + "d" * 300 + "/0123456789ab"
    with mark(MARK, value):
        assert os.getpid() in {process.pid for process in marked(MARK, value)}
        assert list(marked(MARK, value[:-1] + "c")) == []


def test_the_next_process_of_a_task_finds_only_what_was_kept(tmp_path):
    with attempt_directory(tmp_path) as path:
        (path / "cache" / "inductor").mkdir(parents=True)
        for name in ("spec.json", "result.json", "result-0.json", "cache/inductor/kernel"):
            (path / name).write_text("x")
        (path / "link").symlink_to(tmp_path)
        renew(path, keep=[path / "result-0.json"])
        assert [entry.name for entry in path.iterdir()] == ["result-0.json"]
    assert tmp_path.is_dir()

"""A node's libraries are read once, by a process that stays to be forked from, or by one that ends; nothing depends on either."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tasks import lease
from tasks.preload import ALWAYS, modules_of, preload
from tests.tasks.processes_fixtures import parents_of, wait_until


@pytest.fixture(params=["stays", "ends"])
def node(request, tmp_path, monkeypatch):
    """Where modules are imported from; the process that imports them stays as a parent, or cannot."""
    if request.param == "stays":
        request.getfixturevalue("prepared_node")
    else:
        monkeypatch.setattr(lease, "SHARED_MEMORY", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_toys_need_nothing_and_suites_their_own():
    assert modules_of(["toy"]) == ()
    assert modules_of(["toy", "somebodys"]) == ALWAYS
    assert modules_of(["timm", "huggingface", "timm"]) == (*ALWAYS, "transformers", "torchvision", "timm")


def test_modules_are_imported_elsewhere_and_what_is_not_installed_is_left_out(node):
    (node / "leaves_a_mark.py").write_text(f"open({str(node / 'mark')!r}, 'w').close()")
    assert preload(["leaves_a_mark", "is_not_there"], 30.0, "cpu") is None
    assert (node / "mark").exists()
    assert "leaves_a_mark" not in sys.modules


def test_a_failure_is_told(node):
    (node / "is_broken.py").write_text("raise OSError('the disk')")
    (node / "takes_long.py").write_text("import time; time.sleep(60)")
    assert preload(["is_broken"], 30.0, "cpu") == "OSError: the disk"
    assert "takes_long took more than 0.7 s" in preload(["takes_long"], 0.7, "cpu")
    wait_until(lambda: not parents_of(lease.SHARED_MEMORY), "the end of what took too long")


@pytest.mark.parametrize("module", ["os._exit(3)", "os.kill(os.getpid(), 9)"])
def test_where_no_parent_survives_the_libraries_are_read_all_the_same(prepared_node, tmp_path, monkeypatch, module):
    (tmp_path / "leaves_a_mark.py").write_text(
        f"import os\nif 'fork' in ' '.join(os.sys.argv): {module}\nopen({str(tmp_path / 'mark')!r}, 'w').close()"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    assert preload(["leaves_a_mark"], 30.0, "cpu") is None
    assert (tmp_path / "mark").exists()


def test_where_nobody_can_meet_the_libraries_are_read_all_the_same(prepared_node, tmp_path, monkeypatch):
    far = tmp_path / ("d" * 100)
    far.mkdir()
    monkeypatch.setattr(lease, "SHARED_MEMORY", str(far))
    (tmp_path / "leaves_a_mark.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w').close()")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert preload(["leaves_a_mark"], 30.0, "cpu") is None
    assert (tmp_path / "mark").exists()
    assert Path(far).is_dir()

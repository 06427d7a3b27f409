"""A node's libraries are read once, in a process that ends, and nothing depends on it."""

from __future__ import annotations

import sys

from tasks.preload import ALWAYS, modules_of, preload


def test_toys_need_nothing_and_suites_their_own():
    assert modules_of(["toy"]) == ()
    assert modules_of(["toy", "somebodys"]) == ALWAYS
    assert modules_of(["timm", "huggingface", "timm"]) == (*ALWAYS, "transformers", "torchvision", "timm")


def test_modules_are_imported_elsewhere_and_what_is_not_installed_is_left_out(tmp_path, monkeypatch):
    (tmp_path / "leaves_a_mark.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w').close()")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert preload(["leaves_a_mark", "is_not_there"], 30.0) is None
    assert (tmp_path / "mark").exists()
    assert "leaves_a_mark" not in sys.modules


def test_a_failure_is_told(tmp_path, monkeypatch):
    (tmp_path / "is_broken.py").write_text("raise OSError('the disk')")
    (tmp_path / "takes_long.py").write_text("import time; time.sleep(60)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert preload(["is_broken"], 30.0) == "OSError: the disk"
    assert "took more than 0.5 s" in preload(["takes_long"], 0.5)

"""Reading libraries ahead of the first task."""

from __future__ import annotations

import pytest

from tasks import prefetch


@pytest.fixture
def library(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(prefetch, "COMMON", ())

    def write(name, text):
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.setitem(prefetch.LIBRARIES, name, (name,))

    return write


def test_a_fresh_interpreter_without_a_gpu_imports_what_the_suites_need(library, tmp_path):
    library("broken", "raise RuntimeError('no')")
    library("sound", f"import os; open({str(tmp_path / 'seen')!r}, 'w').write(repr(os.environ['CUDA_VISIBLE_DEVICES']))")
    library("other", f"open({str(tmp_path / 'never')!r}, 'w')")
    assert prefetch.prefetch(["broken", "sound", "unknown"]) is None
    assert (tmp_path / "seen").read_text() == "''"
    assert not (tmp_path / "never").exists()


def test_it_does_not_last_for_ever(library):
    library("slow", "import time; time.sleep(60)")
    assert "not imported within 0 s" in prefetch.prefetch(["slow"], 0.3)


def test_a_crash_is_told(library):
    library("crash", "import os; os.write(2, b'dead'); os._exit(7)")
    assert prefetch.prefetch(["crash"]) == "importing its libraries ended with status 7: dead"

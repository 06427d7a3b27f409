"""What a forked worker has read again; the libraries are stand-ins."""

from __future__ import annotations

import sys
from types import SimpleNamespace

from tasks.reread import reread


def test_threads_and_random_numbers_are_this_processs(monkeypatch):
    config, seeded = SimpleNamespace(compile_threads=1), []
    monkeypatch.setitem(sys.modules, "torch._inductor.config", config)
    monkeypatch.setitem(sys.modules, "numpy.random", SimpleNamespace(seed=lambda: seeded.append(True)))
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "3")
    reread()
    assert (config.compile_threads, seeded) == (3, [True])


def test_headers_are_compiled_for_this_attempt(monkeypatch):
    names = {"_HEADER_DIR": "/tmp/inductor_me/headers", "_HEADER_LOCK_DIR": "/tmp/inductor_me/headers/locks"}
    codecache = SimpleNamespace(**names, default_cache_dir=lambda: "/scratch/tmp/inductor_me")
    monkeypatch.setitem(sys.modules, "torch._inductor.codecache", codecache)
    monkeypatch.delitem(sys.modules, "torch._inductor.config", raising=False)
    reread()
    assert codecache._HEADER_DIR == "/scratch/tmp/inductor_me/headers"
    assert codecache._HEADER_LOCK_DIR == "/scratch/tmp/inductor_me/headers/locks"


def test_where_nothing_is_imported_there_is_nothing_to_read(monkeypatch):
    names = {"torch._inductor.config", "torch._inductor.codecache", "numpy.random"}
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    reread()
    assert not names & sys.modules.keys()

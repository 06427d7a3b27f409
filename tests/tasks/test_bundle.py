"""Compile caches that are kept: what one worker compiled, the next one finds."""

from __future__ import annotations

import dataclasses

import pytest

from tasks import bundle
from tasks.launch import BUNDLES
from tasks.spec import Attempt, CompileSpec, MeasureSpec, ModelSpec, Outcome, Phase, PrecisionSpec, ResourceSpec, Status, TaskSpec
from tasks.supervisor import supervise

VERSIONS = {"torch": "2", "triton": None, "python": "3"}


def spec(cache):
    return TaskSpec(
        task_id="factory/mlp/float32/training/inductor",
        model=ModelSpec("factory", "mlp", factory="tests.tasks.models:mlp"),
        mode="training",
        backend="inductor",
        precision=PrecisionSpec("float32"),
        compile=CompileSpec(),
        measure=MeasureSpec(half_width=10.0, min_pairs=7, max_pairs=7, max_time_s=1.0, block_iterations=2, warmup_max_s=0.2),
        resources=ResourceSpec(num_cpus=1),
        cache=cache,
    )


def test_only_a_task_that_keeps_its_cache_has_a_place_for_it(monkeypatch, tmp_path):
    assert bundle.place(spec("bundle"), "cpu", VERSIONS) is None
    monkeypatch.setenv(BUNDLES, str(tmp_path))

    path = bundle.place(spec("bundle"), "cpu", VERSIONS)

    assert path.parent == tmp_path
    assert bundle.place(spec("cold"), "cpu", VERSIONS) is None
    others = [
        bundle.place(spec("bundle"), "another", VERSIONS),
        bundle.place(spec("bundle"), "cpu", VERSIONS | {"torch": "2.1"}),
        bundle.place(dataclasses.replace(spec("bundle"), digest="changed"), "cpu", VERSIONS),
    ]
    assert len({path, *others}) == 4


def test_nothing_is_loaded_from_nothing_or_junk(tmp_path):
    junk = tmp_path / "junk.bundle"
    junk.write_bytes(b"no bundle at all")

    assert not bundle.load(None)
    assert not bundle.load(tmp_path / "missing.bundle")
    assert not bundle.load(junk)
    assert not bundle.save(None)


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["cold", "shared", "bundle"])
def test_the_second_time_the_graphs_come_from_the_cache_that_was_kept(node_directory, tmp_path, cache):
    def run(number) -> Outcome:
        *_, last = supervise(spec(cache), Attempt("run", number, bundles=str(tmp_path / "bundles")))
        return last.outcome

    first, second = run(1), run(2)

    assert [(one.status, one.phase) for one in (first, second)] == [(Status.PASS, Phase.TIME)] * 2, first.error
    assert (first.measurement.cache_hits, first.measurement.cache_misses > 0) == (0, True)
    again = second.measurement
    if cache == "cold":
        assert (again.cache_hits, again.cache_misses) == (0, first.measurement.cache_misses)
    else:
        assert (again.cache_hits > 0, again.cache_misses) == (True, 0)
    assert len(list(tmp_path.glob("bundles/*"))) == (cache == "bundle")

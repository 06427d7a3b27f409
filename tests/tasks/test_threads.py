"""How many threads the arithmetic of a step uses, beside neighbours and alone."""

from __future__ import annotations

import pytest
import torch

from tasks import execute, threads
from tasks.channel import Channel
from tasks.spec import ResourceSpec, Status
from tests.tasks.execute.conftest import tidy  # noqa: F401 - a fixture
from tests.tasks.execute.harness import task


def test_as_many_as_before_when_the_block_has_ended_or_failed():
    before = torch.get_num_threads()

    def fails():
        with threads.using(before + 1):
            assert torch.get_num_threads() == before + 1
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert torch.get_num_threads() == before


def test_a_compiled_step_has_those_with_which_it_was_compiled():
    count = torch.get_num_threads()
    compiled = threads.with_all(torch.get_num_threads)
    with threads.using(count + 1):
        assert compiled() == count
        assert torch.get_num_threads() == count + 1


def test_a_task_beside_neighbours_uses_its_share_where_nothing_is_timed(monkeypatch):
    """With two threads on one of two processors: eager steps have one thread, compiled ones two, and nothing is compiled anew."""
    seen = {"eager": set(), "compiled": set()}

    def noting(which, call):
        def noted(*arguments, **named):
            seen[which].add(torch.get_num_threads())
            return call(*arguments, **named)

        return noted

    compile_step = execute.compilation.compile_step
    monkeypatch.setattr(execute.judgement, "randomness_of", noting("eager", execute.judgement.randomness_of))
    monkeypatch.setattr(execute.compilation, "compile_step", lambda *spec, **kind: noting("compiled", compile_step(*spec, **kind)))
    monkeypatch.setattr(execute.accuracy, "check", noting("eager", execute.accuracy.check))

    result = execute.execute(task("mlp", resources=ResourceSpec(num_cpus=1.0, threads=2)), Channel(None))

    assert result.status is Status.PASS, result.error
    assert (result.measurement.threads, result.measurement.recompiles) == (2, 0)
    assert seen == {"eager": {1}, "compiled": {2}}

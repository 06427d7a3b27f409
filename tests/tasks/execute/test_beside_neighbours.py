"""What a task does otherwise because others share its device."""

from __future__ import annotations

import torch

from tasks import execute
from tasks.spec import ResourceSpec, Status
from tests.tasks.execute.harness import run


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

    result = run("mlp", resources=ResourceSpec(num_cpus=1.0, threads=2))

    assert result.status is Status.PASS, result.error
    assert (result.measurement.threads, result.measurement.recompiles) == (2, 0)
    assert seen == {"eager": {1}, "compiled": {2}}

"""Tasks of the models in ``tests.tasks.models``, run through the whole of ``tasks.execute`` in this process."""

from __future__ import annotations

import dataclasses

from tasks import compilation, execute
from tasks.channel import Channel
from tasks.spec import (
    CompileSpec,
    MeasureSpec,
    ModelSpec,
    PrecisionSpec,
    ResourceSpec,
    TaskSpec,
)

QUICK = MeasureSpec(half_width=10.0, min_pairs=7, max_pairs=7, max_time_s=2.0, block_iterations=2, warmup_max_s=0.2)


class Listener(Channel):
    """A channel that writes down what it is told."""

    def __init__(self):
        super().__init__(None)
        self.heard = []

    def phase(self, phase):
        self.heard.append(phase.value)

    def _send(self, message):
        self.heard += [f"{name} {what}" for name, what in message.items() if name in ("lease", "device")]


def task(name, **changes):
    """A quick task on the model of tests.tasks.models with that name."""
    spec = TaskSpec(
        task_id=f"factory/{name}",
        model=ModelSpec("factory", name, factory=f"tests.tasks.models:{name}"),
        mode="training",
        backend="aot_eager",
        precision=PrecisionSpec("float32"),
        compile=CompileSpec(backend="aot_eager"),
        measure=QUICK,
        resources=ResourceSpec(threads=1),
    )
    return dataclasses.replace(spec, **changes)


def run(name, channel=None, **changes):
    return execute.execute(task(name, **changes), channel or Channel(None))


def faulty(monkeypatch, fault):
    """Make every compiled step be the eager one followed by ``fault(result, module)``, which gives the result it is to return."""
    prepare, built = execute.step.prepare, {}

    def remember(benchmark, *rest):
        built["module"] = benchmark.module
        return prepare(benchmark, *rest)

    monkeypatch.setattr(execute.step, "prepare", remember)
    monkeypatch.setattr(compilation, "compile_step", lambda step, spec, **more: lambda: fault(step(), built["module"]))

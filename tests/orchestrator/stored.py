"""Tasks, outcomes and runs as a sweep would store them, for tests of what stores and reads them."""

from __future__ import annotations

import dataclasses
import random

from orchestrator.record import PlannedTask, RunRecord
from tasks.estimator import joined, summarise
from tasks.spec import (
    AA_PHASES,
    Blocks,
    FailureClass,
    Measurement,
    ModelSpec,
    Outcome,
    Phase,
    PrecisionSpec,
    Samples,
    Status,
    TaskSpec,
    beside,
)

MANIFEST_DIGEST = "m" * 64
STARTED = 1_800_000_000.0


def a_task(number, dtype="amp", suite="toy"):
    model = f"model_{number:04d}"
    return TaskSpec(
        f"{suite}/{model}/{dtype}/training/inductor",
        ModelSpec(suite, model, batch_size=4),
        "training",
        "inductor",
        PrecisionSpec(dtype),
        digest=f"digest-{suite}-{number}-{dtype}",
        manifest_digest=MANIFEST_DIGEST,
    )


def some_samples(seed=0, pairs=12, ratio=1.5, block=2):
    """Pairs of one eager and one compiled block of ``block`` iterations, with noise."""
    noise = random.Random(seed)
    columns = {field.name: [] for field in dataclasses.fields(Samples)}
    for pair in range(pairs):
        for order, arm in enumerate(("eager", "compiled") if pair % 2 else ("compiled", "eager")):
            for iteration in range(block):
                took = int(1e6 * noise.lognormvariate(0, 0.02) * (ratio if arm == "eager" else 1.0))
                values = ("timed", arm, 0, pair, 2 * pair + order, order, iteration, False, took, None, 10**9 * pair + took, True, None)
                for column, value in zip(columns.values(), values, strict=True):
                    column.append(value)
    return Samples(**{name: tuple(values) for name, values in columns.items()})


def some_blocks(samples):
    """How a GPU was at the end of each block of ``samples``."""
    columns = {field.name: [] for field in dataclasses.fields(Blocks)}
    keys = dict.fromkeys(zip(*(getattr(samples, name) for name in ("phase", "process", "pair", "block", "arm", "order")), strict=True))
    for number, key in enumerate(keys):
        state = (1900.0 + number, None, 50.0, 300.5, 1000 + number, 0, None, "sw_power_cap", None, 0.0, None, 0.25)
        for column, value in zip(columns.values(), (*key, True, None, 10**9 * number, *state), strict=True):
            column.append(value)
    return Blocks(**{name: tuple(values) for name, values in columns.items()})


def passed(task, attempt=1, seed=0, log="built\ntimed\n", on_device=False, **fields):
    """An outcome whose numbers are those of its samples; ``on_device``: some of them by the device's clock."""
    samples = some_samples(seed, **fields)
    if on_device:
        samples = with_device_times(with_device_times(samples), "event", (("eager", 1.25), ("compiled", 0.875)))
    summary = summarise(samples)
    measured = {field.name: getattr(summary, field.name) for field in dataclasses.fields(summary)}
    names = {field.name for field in dataclasses.fields(Measurement)}
    return Outcome(
        task.task_id,
        attempt,
        Status.PASS,
        Phase.WRITE,
        log_tail=log[-20:],
        log=log,
        phase_s={"build": 0.25, "compile": 3.5, "time": 1.0},
        started=STARTED + seed,
        ended=STARTED + seed + 5.5,
        node="node-1",
        environment={"OMP_NUM_THREADS": "2"},
        measurement=Measurement(
            **{name: value for name, value in measured.items() if name in names},
            versions={"python": "3.11.7", "torch": "2.13.0", "numpy": "2.4"},
            machine={"cores": 2},
        ),
        samples=samples,
        blocks=some_blocks(samples),
    )


def with_device_times(samples, phase="device", arms=(("eager", 0.9), ("eager", 1.1), ("compiled", 0.75))):
    """``samples`` and some of the device's own time."""
    columns = {name: list(getattr(samples, name)) for name in Samples.__dataclass_fields__}
    outside = {"phase": phase, "process": 0, "pair": -1, "block": -1, "order": -1, "iteration": -1, "washout": False, "valid": True}
    for arm, device_ms in arms:
        row = outside | {"arm": arm, "device_ms": device_ms, "host_ns": 10**6, "started_ns": 10**12}
        for name, column in columns.items():
            column.append(row.get(name))
    return Samples(**{name: tuple(column) for name, column in columns.items()})


def against_itself(task, seed=0):
    """An outcome of an A/A task: each arm against itself."""
    parts = [
        with_device_times(replace_phase(some_samples(seed + number, ratio=1.0), phase), beside(phase, "device"))
        for number, phase in enumerate(AA_PHASES.values())
    ]
    samples = joined(parts)
    summary = summarise(samples)
    names = {field.name for field in dataclasses.fields(Measurement)} & {field.name for field in dataclasses.fields(summary)}
    measured = Measurement(**{name: getattr(summary, name) for name in names}, quality="ok")
    return dataclasses.replace(passed(task), measurement=measured, samples=samples, blocks=some_blocks(samples))


def replace_phase(samples, phase):
    return dataclasses.replace(samples, phase=(phase,) * len(samples.phase))


def failed(task, attempt=1, status=Status.CRASH, failure_class=FailureClass.CRASH, error="the worker died"):
    return Outcome(task.task_id, attempt, status, Phase.COMPILE, failure_class, error, log_tail="boom", log="boom\n", started=STARTED)


def a_record(run_id="run-1", manifest="toy", started=STARTED):
    return RunRecord(run_id, manifest, MANIFEST_DIGEST, started, {"toy.yaml": "name: toy\n"}, {"amp": 0.75, "float32": 0.25})


def a_plan(tasks):
    return [PlannedTask(task) for task in tasks]


def a_run(store, tasks, run_id="run-1", **fields):
    """A new run of ``tasks``, with no rows yet, locked."""
    return store.create(a_record(run_id, **fields), a_plan(tasks))

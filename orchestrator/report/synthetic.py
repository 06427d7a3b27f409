"""Made-up runs with known truth: what tests, simulations and benchmarks of the analysis work on. Nothing here measures anything.

A run has ``ln(speedup)`` spread normally between models; each fresh process shifts it by ``process_sd``, and the interval of a row covers
the error inside its process, ``pair_sd``. The true values stay with whoever called.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import special

from orchestrator.report.rows import Planned, Row, Run
from tasks.spec import (
    FailureClass,
    Measurement,
    MeasureSpec,
    ModelSpec,
    Outcome,
    Phase,
    PrecisionSpec,
    ResourceSpec,
    Samples,
    Status,
    TaskSpec,
)

if TYPE_CHECKING:
    from orchestrator.store import RunStore

SUITE_SIZES = {"huggingface": 46, "timm": 61, "torchbench": 56}
WEIGHTS = {"amp": 0.75, "float32": 0.25}
MEAN_LOGS = {"amp": math.log(1.51), "float32": math.log(1.21)}
BETWEEN_MODELS_SD = 0.35
STARTED_S = 1_790_000_000.0
NORMAL_95 = 1.959963984540054
LIBRARIES = {"python": "3.12.3", "torch": "2.11.0+cu129", "triton": "3.6.0", "transformers": "5.17.0", "timm": "1.0.29", "driver": "570.86"}
FAILURES = (
    ("fail_accuracy", "verify", "accuracy", "AssertionError: gradient of layers.3.weight differs by 0.0321 (limit 0.01)"),
    (
        "fail_compile",
        "compile",
        "compiler",
        "torch._inductor.exc.InductorError: LoweringException at 0x7f33a1 in /tmp/cache/ab12/cabc.py:310",
    ),
    ("oom", "eager", "device_oom", "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.50 GiB"),
    ("timeout", "compile", "deadline", "compile took more than 1200 s"),
)


def true_logs(sizes: Mapping[str, int] = SUITE_SIZES, seed: int = 0) -> dict[tuple[str, str, str], float]:
    """``ln(speedup)`` per (suite, model, dtype): the two dtypes of a model are correlated, as real ones are."""
    rng = np.random.default_rng(seed)
    truth = {}
    for suite, size in sizes.items():
        for index in range(size):
            common = rng.normal(0, BETWEEN_MODELS_SD)
            for dtype, mean in MEAN_LOGS.items():
                truth[suite, f"model_{index:03d}", dtype] = mean + 0.9 * common + 0.3 * rng.normal(0, BETWEEN_MODELS_SD)
    return truth


def synthetic_run(
    truth: Mapping[tuple[str, str, str], float] | None = None,
    *,
    run_id: str = "synthetic",
    seed: int = 1,
    process_sd: float | Mapping[tuple[str, str, str], float] = 0.01,
    pair_sd: float = 0.003,
    processes: int = 1,
    failing: Sequence[int] = (),
    started: float = STARTED_S,
    versions: Mapping[str, str] = LIBRARIES,
) -> Run:
    """A complete run of every (suite, model, dtype) in ``truth``; the rows at the places ``failing`` did not pass.

    ``process_sd`` may be given by task, too. With several ``processes`` a row's interval is Student's, on their estimates.
    """
    rng = np.random.default_rng(seed)
    truth = true_logs() if truth is None else truth
    rows = []
    for place, ((suite, model, dtype), log) in enumerate(truth.items()):
        sd = process_sd if isinstance(process_sd, (int, float)) else process_sd[suite, model, dtype]
        logs = [log + rng.normal(0, sd) + rng.normal(0, pair_sd) for _ in range(processes)]
        row = _row(suite, model, dtype, logs, pair_sd, rng)
        row = replace(row, started=started + 10.0 * place, ended=started + 10.0 * place + 60.0, versions=dict(versions))
        rows.append(failed(row, place) if place in failing else row)
    planned = tuple(Planned(row.task_id, row.suite, row.model, row.dtype, row.mode, row.backend, processes) for row in rows)
    return Run(
        run_id, planned, WEIGHTS, tuple(rows), started=started, ended=started + 10.0 * len(rows) + 60.0, manifest="schema_version: 1\n"
    )


def failed(row: Row, kind: int = 0) -> Row:
    """``row`` as a task that ended in one of the four ways of ``FAILURES``."""
    status, phase, failure_class, error = FAILURES[kind % len(FAILURES)]
    return replace(
        row,
        status=status,
        phase=phase,
        failure_class=failure_class,
        error=error,
        log_tail=f"building {row.model}\ncompiling\n{error}",
        log=f"logs/{row.model}.log",
        speedup=None,
        speedup_low=None,
        speedup_high=None,
        compiled_ms=None,
        quality=None,
        accuracy="fail" if status == "fail_accuracy" else None,
    )


def _row(suite: str, model: str, dtype: str, logs: Sequence[float], pair_sd: float, rng: np.random.Generator) -> Row:
    """What belongs to the model is drawn from its name; what belongs to the run from ``rng``. ``logs``: what each process found."""
    own = np.random.default_rng(list(f"{suite}/{model}/{dtype}".encode()))
    eager_ms = float(np.exp(own.normal(math.log(60), 0.8) + rng.normal(0, pair_sd)))
    breaks = int(own.poisson(0.4))
    log = float(np.mean(logs))
    half = NORMAL_95 * pair_sd / math.sqrt(len(logs))
    if len(logs) > 1:
        half = max(half, float(special.stdtrit(len(logs) - 1, 0.975) * np.std(logs, ddof=1)) / math.sqrt(len(logs)))
    return Row(
        task_id=f"{suite}/{model}/{dtype}/training/inductor",
        suite=suite,
        model=model,
        dtype=dtype,
        mode="training",
        backend="inductor",
        status="pass",
        phase="write",
        attempt=1,
        speedup=math.exp(log),
        speedup_low=math.exp(log - half),
        speedup_high=math.exp(log + half),
        quality="wide" if own.random() < 0.05 else "ok",
        pairs=10,
        process_speedups=tuple(float(np.exp(each)) for each in logs) if len(logs) > 1 else (),
        eager_ms=eager_ms,
        compiled_ms=eager_ms / math.exp(log),
        compile_s=float(own.gamma(6, 8) * np.exp(rng.normal(0, 0.05))),
        eager_peak_mib=float(own.uniform(2e3, 3e4)),
        compiled_peak_mib=float(own.uniform(2e3, 2.5e4)),
        graphs=breaks + 1,
        graph_breaks=breaks,
        graph_break_reasons=("Tensor.item() call",) * min(breaks, 1),
        recompiles=0,
        accuracy="pass",
        batch_size=32,
        parameters=int(own.integers(1_000_000, 400_000_000)),
        node="node-1",
        device="NVIDIA H200",
        gpu_uuid="GPU-00000000-0000-0000-0000-000000000001",
    )


def store_run(root: str, run: Run, samples: Samples | None = None) -> RunStore:
    """Write ``run`` into the results store at ``root``, with ``samples`` for every task that passed."""
    from orchestrator.record import PlannedTask, RunRecord, RunState
    from orchestrator.store import Store

    record = RunRecord(run.run_id, "synthetic", "0" * 64, run.started or STARTED_S, {"synthetic.yaml": run.manifest}, dict(run.weights))
    specs = {task.task_id: _spec(task) for task in run.planned}
    with Store(root).create(record, [PlannedTask(spec) for spec in specs.values()]) as store:
        store.append([(specs[row.task_id], _outcome(row, samples or Samples())) for row in run.rows])
        store.set_state(RunState.FINISHED if not run.missing else RunState.INCOMPLETE)
    return store


def _spec(task: Planned) -> TaskSpec:
    if task.spec:
        return task.spec
    model, measure = ModelSpec(task.suite, task.model, batch_size=32), MeasureSpec(processes=task.processes)
    precision, resources = PrecisionSpec(task.dtype), ResourceSpec(task.device)
    return TaskSpec(
        *(task.task_id, model, task.mode, task.backend, precision),
        measure=measure,
        resources=resources,
        digest=f"digest of {task.task_id}",
    )


def _outcome(row: Row, samples: Samples) -> Outcome:
    measured: dict[str, Any] = {name: getattr(row, name) for name in Row.__slots__ if name in Measurement.__slots__}
    return Outcome(
        task_id=row.task_id,
        attempt=row.attempt or 1,
        status=Status(row.status),
        phase=Phase(row.phase or "start"),
        failure_class=FailureClass(row.failure_class) if row.failure_class else None,
        error=row.error,
        log_tail=row.log_tail or "",
        log=row.log_tail or "",
        started=row.started or 0.0,
        ended=row.ended or 0.0,
        node=row.node or "",
        measurement=Measurement(**measured),
        samples=samples if row.passed else Samples(),
    )

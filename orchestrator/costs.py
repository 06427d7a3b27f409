"""What a task is expected to take: seconds of its own, seconds of a device alone, and device memory.

What an earlier run recorded beats any estimate. Paused and waiting seconds are not in it: they depend on who else was there. Neither are
those that a worker waited for memory, which its phases' seconds have in them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.memory import estimated_mib, recorded_mib
from tasks.spec import Phase, TaskSpec

if TYPE_CHECKING:
    from orchestrator.model_table import ModelRow

RUNS_LOOKED_AT = 20
"""How many runs back ``recorded`` looks."""

START_S = {"cuda": 6.5, "cpu": 33.0}
"""Besides timing and what ``COMPILES`` has: to start, build, take eager steps and check; on the CPU also what a cold compile takes before
its first kernel, whose headers a C++ compiler reads, some 25 s. With it the smoke manifest, two tasks at once on two cores, is forecast to
take 354 s; runs took 308 to 401, as fast as the host was."""

COMPILES = Path(__file__).with_name("compile_seconds.json")
"""Cold compile seconds of a training step by model and dtype, seen beside neighbours on sixteen virtual processors: those of the reference
sweep's rows, by the query in docs/performance.md."""
COMPILE_S = {"huggingface": 50.0, "timm": 100.0, "torchbench": 60.0, "toy": 0.5}
OTHER_COMPILE_S = 60.0
AMP_FACTOR = 1.12
"""By how much longer a step compiles in AMP than in float32: the median of the models that have rows in both."""
INFERENCE_SHARE = 0.4
USUAL_TIMING_S = {"cuda": 4.0, "cpu": 10.0}
BESIDE_TIMING_S = {"cuda": 0.3, "cpu": 0.5}
"""Also alone on the device: device times on CUDA, the warm-up of both arms on the CPU."""
DEVICE_S = {"cuda": 6.0, "cpu": 0.0}
"""Of ``START_S``: on the device beside others, which counts where there is one."""
TUNING_S, WARMING_S = 1.8, 1.2
"""On CUDA, owning the device: the autotuner's benchmarks, and the warm-up of both arms. Means over 40 tasks of pt2_sample.yaml."""

CROWDING = 0.25
"""By what part what starts, compiles or uses a device takes longer for each doubling of a node's GPUs, all of them at work: their workers
share memory, caches and clocks. Five pairs of runs on one and on two GPUs of a machine have 1.18 to 1.34 for two (docs/performance.md), and
a compile beside three more H200 took 1.47 times the CPU."""

USUAL_PARAMETERS = 50e6
SIZE_POWER = 0.25
SIZE_BOUNDS = (0.5, 2.0)
"""A larger model tends to have more layers, and layers are what compiling takes time for; sixteen times the parameters count twice."""

_PHASES = ("start_s", "build_s", "eager_s", "compile_phase_s", "verify_s", "time_s", "write_s")
_ON_DEVICE = ("build_s", "eager_s", "verify_s")
_PEAKS = ("eager_peak_mib", "compiled_peak_mib", "peak_mib")
_OTHERS = (
    *("task_id", "phase", "started", "ended", "device", "gpu_uuid", "process_speedups", "owned_s", "tuned_s", "warmed_s", "machine"),
    *("compile_threads", "compile_cpu_s"),
)
COLUMNS = (*_OTHERS, *_PEAKS, *_PHASES)
_MEASURED = {Phase.TIME, Phase.WRITE}


@dataclass(frozen=True, slots=True)
class Cost:
    """One attempt, in seconds, and the peak of its device memory.

    ``shared_s``: it starts or compiles, while whatever neighbours do but time. ``device_s``: on the device beside others that use it, too.
    ``held_s``: it owns the device, to tune or to warm up; only neighbours that start or compile go on. ``exclusive_s``: it times, alone.
    """

    shared_s: float
    exclusive_s: float = 0.0
    peak_mib: float | None = None
    device_s: float = 0.0
    held_s: float = 0.0

    @property
    def total_s(self) -> float:
        return self.shared_s + self.device_s + self.held_s + self.exclusive_s

    def times(self, processes: float) -> Cost:
        """That of so many processes, one after the other."""
        seconds = {name: processes * getattr(self, name) for name in ("shared_s", "exclusive_s", "device_s", "held_s")}
        return replace(self, **seconds)


def recorded(root: str, kind: str | None = None, device: str | None = None) -> dict[str, Cost]:
    """Costs of one process by ``task_id``, over the newest ``RUNS_LOOKED_AT`` runs of the store at ``root``.

    Each is from the newest attempt that got as far as timing: one that failed early says little of what a whole one takes. ``kind``
    ("cuda" or "cpu") leaves out rows of the other. Where there are rows of ``device``, a GPU's or a CPU's name, those count before others.
    """
    from orchestrator.store import Store

    store = Store(root)
    same: dict[str, Cost] = {}
    other: dict[str, Cost] = {}
    for record in [record for record in store.runs() if not record.aa][: -RUNS_LOOKED_AT - 1 : -1]:
        for row in store.resolve(record.run_id).rows(COLUMNS).to_pylist():
            if row["phase"] in _MEASURED and row["started"] and row["ended"] and kind in (None, _kind(row)):
                costs = same if device is not None and row["device"] == device else other
                costs.setdefault(row["task_id"], of_row(row))
    return other | same


def estimated(spec: TaskSpec, gpus_per_node: int = 1) -> Cost:
    """Of one process, where all GPUs of its node are at work. Rough: only forecasts and the order and sharing of tasks rest on it."""
    if spec.model.suite == "toy":
        return Cost(COMPILE_S["toy"] * _mode_share(spec))
    device = spec.resources.device
    timing_s = min(spec.measure.max_time_s, USUAL_TIMING_S[device]) + min(spec.measure.warmup_max_s, BESIDE_TIMING_S[device])
    held_s = TUNING_S + min(spec.measure.warmup_max_s, WARMING_S) if device == "cuda" else 0.0
    shared_s, device_s = START_S[device] - DEVICE_S[device] + _mode_share(spec) * _compile_s(spec), DEVICE_S[device]
    crowd = 1 + CROWDING * math.log2(gpus_per_node) if device == "cuda" else 1.0
    return Cost(crowd * shared_s, timing_s, estimated_mib(spec), crowd * device_s, held_s)


def _compile_s(spec: TaskSpec) -> float:
    seen = _compiles().get(f"{spec.model.suite}/{spec.model.name}", {})
    dtype = spec.precision.dtype
    for other in (dtype, *sorted(seen)):
        if other in seen:
            return seen[other] * _dtype_factor(dtype) / _dtype_factor(other)
    row = _rows().get((spec.model.suite, spec.model.name))
    return COMPILE_S.get(spec.model.suite, OTHER_COMPILE_S) * _size_factor(row.parameters if row else None)


def _dtype_factor(dtype: str) -> float:
    return AMP_FACTOR if dtype == "amp" else 1.0


def of_row(row: Mapping[str, Any]) -> Cost:
    """What one process of a row's task took; the row has ``COLUMNS``.

    Where nobody counted owned seconds, those of the phase that times stand for them. On CUDA, what several processes compiled counts as
    one process's work.
    """
    held_s = (row["tuned_s"] or 0.0) + (row["warmed_s"] or 0.0)
    exclusive_s = max(0.0, (row["owned_s"] or 0.0) - held_s) or row["time_s"] or 0.0
    all_s = sum(row[name] or 0.0 for name in _PHASES)
    if not all_s:  # run without a process of its own
        all_s = (row["ended"] - row["started"]).total_seconds()
    processes = max(1, len(row["process_speedups"] or ()))
    if _kind(row) == "cuda" and (row["compile_threads"] or 1) > 1:
        all_s += max(0.0, processes * (row["compile_cpu_s"] or 0.0) - (row["compile_phase_s"] or 0.0))
    peak_mib = recorded_mib(*(row[name] for name in _PEAKS))
    waited_s = json.loads(row["machine"] or "{}").get("room_waited_s") or 0.0
    timing_s = max(0.0, (row["time_s"] or 0.0) - exclusive_s - (row["warmed_s"] or 0.0))
    device_s = max(0.0, sum(row[name] or 0.0 for name in _ON_DEVICE) + timing_s - waited_s) if _kind(row) == "cuda" else 0.0
    shared_s = max(0.0, all_s - exclusive_s - waited_s - device_s - held_s)
    return Cost(shared_s, exclusive_s, peak_mib, device_s, held_s).times(1 / processes)


def _kind(row: Mapping[str, Any]) -> str:
    return "cuda" if row["gpu_uuid"] else "cpu"


def _mode_share(spec: TaskSpec) -> float:
    return 1.0 if spec.mode == "training" else INFERENCE_SHARE


def _size_factor(parameters: int | None) -> float:
    low, high = SIZE_BOUNDS
    return min(high, max(low, (parameters / USUAL_PARAMETERS) ** SIZE_POWER)) if parameters else 1.0


@cache
def _compiles() -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = json.loads(COMPILES.read_text())
    return found


@cache
def _rows() -> dict[tuple[str, str], ModelRow]:
    from orchestrator.model_table import known

    return {(row.suite, row.name): row for row in known()}

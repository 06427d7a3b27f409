"""One task from model to row, in the phases build, eager, compile, verify and time; every failure becomes a result.

What is verified and then timed is one and the same compiled callable. Whatever is timed, and the verification, runs while this process
owns the device.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import partial
from typing import Any, TypeVar

import torch

from tasks import accuracy, bundle, compilation, environment, estimator, failure, hardware, measure, step
from tasks.channel import Channel
from tasks.comparison import leaves
from tasks.compilation import stance
from tasks.probe import cpu_model
from tasks.spec import AA_PHASES, Accuracy, Blocks, FailureClass, Measurement, Phase, Samples, Status, TaskSpec, WorkerResult
from tasks.step import State, Workload
from tasks.stepper import Machine, Side
from tasks.suites.benchmark import Benchmark

WARM_CUDA_S, WARM_CPU_S = 1.0, 0.2
SLOW_STEPS = 10  # steps that must fit into the eager phase's deadline for the model to be looked at in full
STEPS_PER_CHECK = 8  # eager steps that a check takes per iteration, the float64 reference counted as four
RANDOM_FACTOR = 10.0  # another seed must move a model's results by this many times what repeating moves them

NEGLIGIBLE = 0.1  # of the tolerance; random numbers that move the results by less are each arm's own

T = TypeVar("T")


class Randomness(StrEnum):
    """What a model's random numbers do to its results. Dropout of a probability that drops next to nothing draws and moves nothing."""

    NONE = "none"
    NEGLIGIBLE = "negligible"
    DECISIVE = "decisive"


def execute(task: TaskSpec, channel: Channel, process: int = 0) -> WorkerResult:
    """Run ``task`` in this process, its ``process``-th; always returns a result, unless the process dies."""
    execution = _Execution(task, channel, process)
    try:
        return execution.run()
    except Exception as error:  # noqa: BLE001 - classified, and printed with its traceback
        found = failure.classify(error, execution.phase)
        return WorkerResult(
            status=found.status,
            phase=execution.phase,
            failure_class=found.failure_class,
            error=found.message,
            measurement=execution.measurement,
            samples=execution.samples,
            blocks=execution.blocks,
        )


@dataclass(slots=True)
class _Execution:
    """A task in progress, and what is known of it so far."""

    task: TaskSpec
    channel: Channel
    process: int = 0
    phase: Phase = Phase.START
    measurement: Measurement = field(default_factory=Measurement)
    samples: Samples = field(default_factory=Samples)
    blocks: Blocks = field(default_factory=Blocks)
    neighbours: int = 0
    cold: bool = True  # nothing was compiled yet
    remarks: list[str] = field(default_factory=list)  # on how accuracy was judged

    def run(self) -> WorkerResult:
        device = self._device()
        self._enter(Phase.BUILD)
        workload = self._build(device)
        self._enter(Phase.EAGER)
        state = State(workload, self.task.seed)
        random, eager_s = self._relieved(state, device, partial(self._eager, workload, state, device))
        accuracy.free_memory(device)
        self._enter(Phase.COMPILE)
        kept = bundle.place(self.task, str(self.measurement.device), self.measurement.versions)
        bundle.load(kept)
        compiled = self._relieved(state, device, partial(self._compile, workload, state, device, random))
        self._enter(Phase.VERIFY)
        self._verify(workload, compiled, state, device, random, eager_s)
        del state
        accuracy.free_memory(device)
        self._enter(Phase.TIME)
        self._time(workload, compiled, device)
        if self.measurement.cache_misses:
            bundle.save(kept)
        return self._result()

    def _device(self) -> torch.device:
        resources = self.task.resources
        threads = resources.threads or max(1, int(resources.num_cpus))
        torch.set_num_threads(threads)
        device = torch.device(resources.device)
        if device.type == "cuda":
            failure.require_cuda()
            device = torch.device("cuda", torch.cuda.current_device())
        self._note(
            device=torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_model(),
            gpu_uuid=environment.gpu_uuid(device),
            threads=threads,
            compile_threads=resources.compile_threads,
            versions=environment.versions(),
            machine=environment.machine(device),
        )
        return device

    def _build(self, device: torch.device) -> Workload:
        from tasks.suites.loader import load

        benchmark: Benchmark = load(self.task.model, self.task.mode, device, self.task.seed)
        workload = step.prepare(benchmark, self.task.mode, self.task.precision, self.task.optimizer, device)
        dtype = workload.autocast_dtype
        self._note(
            batch_size=benchmark.batch_size,
            parameters=sum(parameter.numel() for parameter in benchmark.module.parameters()),
            input_shapes=step.shapes((benchmark.args, benchmark.kwargs)),
            model_source=benchmark.source,
            fidelity=benchmark.fidelity,
            autocast_dtype=None if dtype is None else str(dtype).removeprefix("torch."),
            accuracy_tolerance=self.task.accuracy.tolerance
            or benchmark.tolerance
            or accuracy.tolerance_for(self.task.model.suite, workload.training, self.task.precision, dtype),
        )
        return workload

    def _eager(self, workload: Workload, state: State, device: torch.device) -> tuple[Randomness, float]:
        """What the model's random numbers do to its results, and the seconds of an eager step."""
        with self._exclusive():
            first = self._draw(workload, state, 0)
            eager_s = self._seconds(workload, device)
            if eager_s * SLOW_STEPS > self.task.deadlines.eager_s:
                self.remarks.append(f"a step takes {eager_s:.0f} s: whether it draws random numbers was not looked at")
                return Randomness.NONE, eager_s
            repeated, other = (self._draw(workload, state, offset) for offset in (0, 1))
        moved, noise = accuracy.distance(first, other), accuracy.distance(first, repeated)
        if moved <= RANDOM_FACTOR * noise:
            return Randomness.NONE, eager_s
        negligible = moved <= NEGLIGIBLE * (self.measurement.accuracy_tolerance or 0.0)
        return (Randomness.NEGLIGIBLE if negligible else Randomness.DECISIVE), eager_s

    def _relieved(self, state: State, device: torch.device, act: Callable[[], T]) -> T:
        """What ``act`` returns; if it does not fit beside the saved state, once more with that on the host."""
        try:
            return act()
        except torch.OutOfMemoryError:
            if state.on_host:
                raise
        self.remarks.append(f"the saved state was moved to the host in phase {self.phase.value}, for lack of memory")
        state.to_host()
        accuracy.free_memory(device)
        return act()

    def _draw(self, workload: Workload, state: State, offset: int) -> accuracy.Results:
        """What one step from the initial state returns when the generators start from the seed plus ``offset``."""
        state.restore(offset)
        return {name: value.clone() for name, value in leaves(workload.step(), "result") if isinstance(value, torch.Tensor)}

    def _seconds(self, workload: Workload, device: torch.device) -> float:
        step.synchronize(device)
        began = time.perf_counter()
        workload.step()
        step.synchronize(device)
        return time.perf_counter() - began

    def _compile(self, workload: Workload, state: State, device: torch.device, random: Randomness) -> Callable[[], Any]:
        """The step, compiled; where random numbers decide the results it draws what eager draws, or it could not be verified."""
        cold, self.cold = self.cold, False
        same_random_numbers = random is Randomness.DECISIVE
        if same_random_numbers and cold:
            self.remarks.append("the model draws random numbers: compiled with fallback_random, and timed so")
        compiled = compilation.compile_step(workload.step, self.task.compile, same_random_numbers=same_random_numbers)
        state.restore()
        with compilation.autotune_under(self._exclusive):
            calls = compilation.first_calls(
                compiled, lambda: step.synchronize(device), environment.process_tree_cpu_s, self.channel.paused_s
            )
        if cold:
            self._note(compile_s=calls.compile_s, compile_cpu_s=calls.compile_cpu_s)
        self._note_compiler()
        return compiled

    def _verify(
        self, workload: Workload, compiled: Callable[[], Any], state: State, device: torch.device, random: Randomness, eager_s: float
    ) -> None:
        spec = self.task.accuracy
        if not spec.enabled:
            self._note(accuracy=Accuracy.SKIPPED.value, accuracy_reason="switched off in the manifest")
            return
        iterations = spec.iterations
        if iterations * STEPS_PER_CHECK * eager_s > self.task.deadlines.verify_s / 2:
            iterations = 1
            self.remarks.append("one step instead of several, for lack of time")
        rule = accuracy.rule_for(self.measurement.accuracy_tolerance or 0.0, workload, self.task.precision, device)
        time_s = self.task.deadlines.verify_s / 2
        reseed = random is Randomness.NEGLIGIBLE
        if reseed:
            self.remarks.append("random numbers move its results by less than a tenth of the tolerance: each arm drew its own")
        arguments: dict[str, Any] = {"iterations": iterations, "rule": rule, "device": device, "time_s": time_s, "reseed": reseed}
        with self._exclusive():
            verdict = accuracy.check(workload, compiled, state, **arguments)
        self._note(
            accuracy=verdict.accuracy.value,
            accuracy_reason="; ".join([*([verdict.reason] if verdict.reason else []), *self.remarks]) or None,
            accuracy_tensor=verdict.tensor,
            accuracy_margin=verdict.margin,
            eager_rmse=_finite(verdict.eager_rmse),
            compiled_rmse=_finite(verdict.compiled_rmse),
            deterministic=verdict.deterministic,
            reference=verdict.reference,
        )
        self._note_compiler()

    def _time(self, workload: Workload, compiled: Callable[[], Any], device: torch.device) -> None:
        compilation.stop_compile_workers()
        sides = (
            Side(workload.step, partial(stance, "force_eager"), partial(stance, "force_eager")),
            Side(compiled, partial(stance, "default"), partial(stance, "fail_on_recompile"), compilation.compiler_activity),
        )
        with self._exclusive():
            machine = hardware.machine_for(device, self.measurement.gpu_uuid)
            eager_mib, compiled_mib = (hardware.peak_mib(side.step, side.warm, device) for side in sides)
            timing = self._measure(sides, machine, WARM_CUDA_S if device.type == "cuda" else WARM_CPU_S)
        self.samples, self.blocks = timing.samples, timing.blocks
        self._note(eager_peak_mib=eager_mib, compiled_peak_mib=compiled_mib, neighbours=self.neighbours)
        self._note(machine={**self.measurement.machine, **machine.summary(), "quality_reason": "; ".join(timing.flags) or None})
        self._note_compiler()
        self._note_timing(timing)

    def _measure(self, sides: tuple[Side, Side], machine: Machine, warm_s: float) -> measure.Timing:
        """Eager against compiled; in an A/A task each against itself, in half the time."""
        share = len(sides) if self.task.aa else 1
        pairs = partial(
            measure.measure,
            machine=machine,
            spec=self.task.measure,
            seed=self.task.seed + self.process,
            process=self.process,
            deadline_s=self.task.deadlines.time_s / share,
            warm_s=warm_s,
        )
        if not self.task.aa:
            return pairs(sides)
        return measure.against_itself(
            {arm: pairs((side, side), phase=phase) for side, (arm, phase) in zip(sides, AA_PHASES.items(), strict=True)}
        )

    def _note_timing(self, timing: measure.Timing) -> None:
        summary, device_ms = timing.summary, timing.eager_device_ms
        self._note(
            speedup=summary.speedup,
            speedup_low=summary.speedup_low,
            speedup_high=summary.speedup_high,
            speedup_of_medians=summary.speedup_of_medians,
            process_speedups=summary.process_speedups,
            aa_eager=summary.aa_eager,
            aa_eager_low=summary.aa_eager_low,
            aa_eager_high=summary.aa_eager_high,
            aa_compiled=summary.aa_compiled,
            aa_compiled_low=summary.aa_compiled_low,
            aa_compiled_high=summary.aa_compiled_high,
            quality=timing.quality.value,
            pairs=summary.pairs,
            eager_ms=summary.eager_ms,
            compiled_ms=summary.compiled_ms,
            eager_device_ms=device_ms,
            compiled_device_ms=timing.compiled_device_ms,
            launch_bound=estimator.launch_bound(device_ms, summary.eager_ms),
        )

    def _note_compiler(self) -> None:
        """Counted anew after each phase: a recompile while verifying counts as well."""
        self._note(**dataclasses.asdict(compilation.report()))

    def _result(self) -> WorkerResult:
        found = self.measurement
        verdict: tuple[Status, FailureClass | None, str | None] = Status.PASS, None, None
        if found.accuracy == Accuracy.FAIL:
            verdict = Status.FAIL_ACCURACY, FailureClass.ACCURACY, found.accuracy_reason
        elif None in ((found.aa_eager, found.aa_compiled) if self.task.aa else (found.speedup,)):
            verdict = Status.INFRA_ERROR, FailureClass.DEVICE, f"no pair could be used: {found.machine['quality_reason']}"
        status, failure_class, error = verdict
        return WorkerResult(status, self.phase, failure_class, error, found, self.samples, self.blocks)

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[None]:
        with self.channel.exclusive() as grant:
            self.neighbours = max(self.neighbours, grant.neighbours)
            yield

    def _enter(self, phase: Phase) -> None:
        self.phase = phase
        self.channel.phase(phase)

    def _note(self, **found: Any) -> None:
        self.measurement = replace(self.measurement, **found)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None

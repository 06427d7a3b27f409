"""One task from model to row, in the phases build, eager, compile, verify and time; every failure becomes a result.

What is verified and then timed is one and the same compiled callable. Whatever is timed, by the autotuner as well, runs while this
process owns the device; nothing else does. The first compiled step, most of which is compiling, is taken off the device.
"""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from tasks import accuracy, bundle, compilation, environment, failure, hardware, heap, judgement, measure, step, threads
from tasks.channel import Channel
from tasks.comparison import Rule, leaves
from tasks.compilation import stance
from tasks.cuda_queue import CudaQueue
from tasks.dropout import undropped
from tasks.headroom import Headroom
from tasks.judgement import Randomness
from tasks.ownership import Ownership
from tasks.probe import cpu_model
from tasks.spec import AA_PHASES, Accuracy, Blocks, FailureClass, Measurement, Phase, Quality, Samples, Status, TaskSpec, WorkerResult
from tasks.step import State, Workload
from tasks.stepper import Machine, Side
from tasks.suites.benchmark import Benchmark

WARM_CUDA_S, WARM_CPU_S = 0.5, 0.2
SLOW_STEPS = 10  # steps that must fit into the eager phase's deadline for the model to be looked at in full
PEAK_STEPS, PEAK_SHARE = 4, 0.1  # what it takes to see how much memory both arms need, and how much of the time phase it may take
WIDER = 2.0  # what a step needs in float32 beside one under autocast at most, or in float64 beside one in float32
FLOAT32_OVER_AUTOCAST = 1.5  # as a rule: 1.1 to 1.8 for twenty models on an H100
STEPS_PER_CHECK = 8  # eager steps that a check takes per iteration, the float64 reference counted as four

CROWDED_OUT = "results differ, and beside its neighbours no reference fitted that could tell whether they are wrong"
NEVER_SETTLES = "what was timed could not be judged: it compiles anew each time"
_UNJUDGED: dict[str, Any] = dict.fromkeys(("accuracy_tensor", "accuracy_margin", "eager_rmse", "compiled_rmse"))


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
            measurement=execution.found(),
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
    own: Ownership = field(init=False)
    headroom: Headroom = field(init=False)
    step_mib: float = 0.0  # the peak of an eager step, as measured
    remarks: list[str] = field(default_factory=list)  # on how accuracy was judged

    def __post_init__(self) -> None:
        self._use(torch.device("cpu"))

    def run(self) -> WorkerResult:
        device = self._device()
        self._enter(Phase.BUILD)
        with self._beside_neighbours():
            workload = self.headroom.fitted(partial(self._build, device), self.headroom.wait)
            self._enter(Phase.EAGER)
            state = State(workload, self.task.seed)
            reliefs = self.headroom.wait, partial(self.headroom.to_host, state)
            random, eager_s = self.headroom.fitted(partial(self._eager, workload, state, device), *reliefs)
        _give_back(device)
        self._enter(Phase.COMPILE)
        kept = bundle.place(self.task, str(self.measurement.device), self.measurement.versions)
        bundle.load(kept)
        compiled = self._compile(workload, state, device, random, *reliefs, self.headroom.wait)  # to compile again costs most of a task
        _give_back(device)
        self._enter(Phase.VERIFY)
        self._verify(workload, compiled, state, device, random, eager_s)
        verified = compilation.compiled_code()
        del state
        _give_back(device)
        self._enter(Phase.TIME)
        self._time(workload, compiled, device, eager_s)
        if compilation.compiled_code() != verified:
            self._verify_again(workload, compiled, device, random, eager_s)
        if self.measurement.cache_misses:
            bundle.save(kept)
        return self._result()

    def _device(self) -> torch.device:
        kept = heap.keep(os.environ)
        resources = self.task.resources
        count = resources.threads or max(1, int(resources.num_cpus))
        torch.set_num_threads(count)
        device = torch.device(resources.device)
        if device.type == "cuda":
            failure.require_cuda()
            device = torch.device("cuda", torch.cuda.current_device())
            self._use(device)
        self._note(
            device=torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_model(),
            gpu_uuid=environment.gpu_uuid(device),
            threads=count,
            compile_threads=resources.compile_processes,
            versions=environment.versions(),
            machine={**environment.machine(device), "heap": kept.value},
        )
        return device

    def _beside_neighbours(self) -> AbstractContextManager[None]:
        """Compute with this task's share of the processors: nothing is timed here, and neighbours want theirs."""
        return threads.using(self._share_of_threads())

    def _share_of_threads(self) -> int:
        return min(max(1, int(self.task.resources.num_cpus)), torch.get_num_threads())

    def _use(self, device: torch.device) -> None:
        self.own = Ownership(self.channel, CudaQueue(device) if device.type == "cuda" else None)
        self.headroom = Headroom(device, self.task.resources.peak_mib or 0.0, self.remarks)

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
        """What the model's random numbers do to its results, and the seconds of an eager step, beside neighbours: good for limits."""
        with self.headroom.turn():
            workload.step()  # the first one takes longer
        self.step_mib = self.headroom.peak.so_far() or 0.0
        before = step.generators(device)
        eager_s = self._seconds(undropped(workload.step), device)
        draws = step.generators(device) != before  # or nothing can follow from what it draws
        if eager_s * SLOW_STEPS > self.task.deadlines.eager_s:
            self.remarks.append(f"a step takes {eager_s:.0f} s: whether it draws random numbers was not looked at")
            return Randomness.NONE, eager_s
        random = self._randomness(workload, state, device) if draws else Randomness.NONE
        self._note(random_numbers=random.value)
        return random, eager_s

    def _randomness(self, workload: Workload, state: State, device: torch.device) -> Randomness:
        """Looked at in float32: under autocast a single other number moves the results by as much as rounding does, which is a lot."""
        limit = judgement.seed_limit(self._rule(workload, device))
        try:
            with accuracy.without_tf32(device):
                return self._moved(step.without_autocast(workload, device), state, limit)
        except torch.OutOfMemoryError:
            if workload.autocast_dtype is None:
                raise
        accuracy.free_memory(device)
        self.remarks.append("whether random numbers decide its results was looked at under autocast, for lack of memory")
        return self._moved(workload, state, max(limit, judgement.SEED_LIMIT_UNDER_AUTOCAST))

    def _rule(self, workload: Workload, device: torch.device) -> Rule:
        return accuracy.rule_for(self.measurement.accuracy_tolerance or 0.0, workload, self.task.precision, device)

    def _moved(self, workload: Workload, state: State, limit: float) -> Randomness:
        with self.headroom.turn(self.step_mib * (WIDER if self.measurement.autocast_dtype else 1.0)):
            first = {name: value.clone() for name, value in self._draw(workload, state, 0).items()}
        repeated, other = (judgement.movement(first, self._draw(workload, state, offset)) for offset in (0, 1))
        return judgement.randomness_of(other, repeated, limit)

    def _draw(self, workload: Workload, state: State, offset: int) -> accuracy.Results:
        """What one step from the initial state gives when the generators start from the seed plus ``offset``; until the next step."""
        state.restore(offset)
        found = dict(leaves(undropped(workload.step)(), "output"))
        if workload.training:
            found |= {f"gradient.{name}": judgement.gradient_of(one) for name, one in workload.module.named_parameters()}
        return {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}

    def _seconds(self, one_step: Callable[[], Any], device: torch.device) -> float:
        step.synchronize(device)
        began = time.perf_counter()
        one_step()
        step.synchronize(device)
        return time.perf_counter() - began

    def _compile(
        self, workload: Workload, state: State, device: torch.device, random: Randomness, *reliefs: Callable[[], bool]
    ) -> Callable[[], Any]:
        """The step, compiled; where random numbers decide the results it draws what eager draws, or it could not be verified.

        A call that lacks memory is made again. What has been compiled by then is not compiled anew.
        """
        same_random_numbers = random is Randomness.DECISIVE
        if same_random_numbers:
            self.remarks.append("the model draws random numbers: compiled with fallback_random, and timed so")
        compiled = compilation.compile_step(workload.step, self.task.compile, same_random_numbers=same_random_numbers)
        state.restore()
        with compilation.autotune_under(self.own.tuning):
            calls = compilation.first_calls(
                lambda: self.headroom.fitted(compiled, *reliefs),
                lambda: step.synchronize(device),
                environment.process_tree_cpu_s,
                self.channel.running_s,
                self.channel.off_device,
            )
        if not self.headroom.interrupted:
            self._note(compile_s=calls.compile_s, compile_cpu_s=calls.compile_cpu_s)
        self._note_compiler()
        compilation.require_graphs(self.task.compile)
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
        rule = self._rule(workload, device)
        time_s = self.task.deadlines.verify_s / 2
        if random is Randomness.NEGLIGIBLE:
            self.remarks.append("random numbers move its results by next to nothing: each arm drew its own")
        arguments: dict[str, Any] = {"iterations": iterations, "rule": rule, "device": device, "time_s": time_s, "random": random}
        arguments |= {"turn": partial(self.headroom.turn, WIDER * self._float32_mib()), "relief": self.headroom.wait}
        if self._share_of_threads() < torch.get_num_threads():
            compiled = threads.with_all(compiled)
        with compilation.autotune_under(self.own.tuning), self._beside_neighbours():  # a recompile autotunes, too
            verdict = self.headroom.fitted(partial(self._checked, workload, compiled, state, arguments), self.headroom.wait)
        self._note(
            accuracy=verdict.accuracy.value,
            accuracy_reason="; ".join(dict.fromkeys([*([verdict.reason] if verdict.reason else []), *self.remarks])) or None,
            accuracy_tensor=verdict.tensor,
            accuracy_margin=verdict.margin,
            eager_rmse=_finite(verdict.eager_rmse),
            compiled_rmse=_finite(verdict.compiled_rmse),
            deterministic=verdict.deterministic,
            reference=verdict.reference,
        )
        self._note_compiler()

    def _float32_mib(self) -> float:
        """The peak of a step in float32: the largest of the steps so far, which may all have been under autocast."""
        most_mib = self.headroom.peak.so_far() or 0.0
        return max(most_mib, FLOAT32_OVER_AUTOCAST * self.step_mib) if self.measurement.autocast_dtype else most_mib

    def _checked(self, workload: Workload, compiled: Callable[[], Any], state: State, arguments: dict[str, Any]) -> accuracy.Verdict:
        """The verdict. A failure while no reference fitted beside neighbours is none: it is a lack of memory."""
        verdict = accuracy.check(workload, compiled, state, **arguments)
        if verdict.accuracy is Accuracy.FAIL and verdict.blind and self.headroom.room.crowded():
            raise torch.OutOfMemoryError(f"{CROWDED_OUT}: {verdict.reason}")
        return verdict

    def _verify_again(
        self, workload: Workload, compiled: Callable[[], Any], device: torch.device, random: Randomness, eager_s: float
    ) -> None:
        """Judge the code that was compiled since the verdict and was timed, from the state that timing has left."""
        if self.measurement.accuracy != Accuracy.PASS:
            return
        self._enter(Phase.VERIFY)
        timed = compilation.compiled_code()
        self.remarks.append("compiled again in the time phase, and judged again")
        self._verify(workload, compiled, State(workload, self.task.seed), device, random, eager_s)
        self._enter(Phase.TIME)
        if self.measurement.accuracy == Accuracy.PASS and compilation.compiled_code() != timed:
            self._note(**_UNJUDGED, accuracy=Accuracy.SKIPPED.value, accuracy_reason="; ".join([NEVER_SETTLES, *self.remarks]))
            self._flag(Quality.RECOMPILED, NEVER_SETTLES)

    def _time(self, workload: Workload, compiled: Callable[[], Any], device: torch.device, eager_s: float) -> None:
        compilation.stop_compile_workers()
        sides = (
            Side(workload.step, partial(stance, "force_eager"), partial(stance, "force_eager")),
            Side(
                compiled,
                partial(stance, "default"),
                partial(stance, "fail_on_recompile"),
                compilation.compiler_activity,
                compilation.stop_compile_workers,
            ),
        )
        began_s = self.channel.running_s()
        # The allocator keeps what these steps took: it is not asked for while timing.
        eager_mib, compiled_mib = self.headroom.fitted(partial(self._peaks, sides, eager_s), self.headroom.wait)
        with measure.quiet_collector(), self.own.warming():
            machine = hardware.machine_for(device, self.measurement.gpu_uuid, lambda: self.own.busy)
            left_s = self.task.deadlines.time_s - (self.channel.running_s() - began_s)
            timing = self._measure(sides, machine, WARM_CUDA_S if device.type == "cuda" else WARM_CPU_S, left_s)
        self.samples, self.blocks = timing.samples, timing.blocks
        self._note(eager_peak_mib=eager_mib, compiled_peak_mib=compiled_mib, neighbours=self.own.neighbours)
        reason = {"quality_reason": "; ".join(timing.flags) or None, "room_waited_s": round(self.headroom.room.waited_s, 1)}
        self._note(machine={**self.measurement.machine, **machine.summary(), **self.own.summary(), **reason})
        self._note_compiler()
        self._note_timing(timing)

    def _peaks(self, sides: tuple[Side, Side], eager_s: float) -> tuple[float | None, float | None]:
        """The peak memory of each arm; None where to look would take the time of the measurement itself."""
        if PEAK_STEPS * eager_s > PEAK_SHARE * self.task.deadlines.time_s:
            return None, None
        with compilation.autotune_under(self.own.tuning):
            with self.headroom.turn(self.step_mib):
                eager_mib = self.headroom.peak.of_step(sides[0].step, sides[0].warm)
            return eager_mib, self.headroom.peak.of_step(sides[1].step, sides[1].warm)

    def _measure(self, sides: tuple[Side, Side], machine: Machine, warm_s: float, left_s: float) -> measure.Timing:
        """Eager against compiled, in the ``left_s`` of the phase; in an A/A task each against itself, in half the time."""
        share = len(sides) if self.task.aa else 1
        pairs = partial(
            measure.measure,
            machine=machine,
            spec=self.task.measure,
            seed=self.task.seed + self.process,
            process=self.process,
            deadline_s=left_s / share,
            warm_s=warm_s,
            alone=self.own.exclusive,
        )
        if not self.task.aa:
            return pairs(sides)
        return measure.against_itself(
            {arm: pairs((side, side), phase=phase) for side, (arm, phase) in zip(sides, AA_PHASES.items(), strict=True)}
        )

    def _note_timing(self, timing: measure.Timing) -> None:
        summary = timing.summary
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
            empty_step_us=round(timing.empty_us, 3),
            pairs=summary.pairs,
            eager_ms=summary.eager_ms,
            compiled_ms=summary.compiled_ms,
            eager_device_ms=summary.eager_device_ms,
            compiled_device_ms=summary.compiled_device_ms,
            eager_event_ms=summary.eager_event_ms,
            compiled_event_ms=summary.compiled_event_ms,
            launch_bound=summary.launch_bound,
        )

    def _note_compiler(self) -> None:
        """Counted anew after each phase: a recompile while verifying counts as well."""
        self._note(**dataclasses.asdict(compilation.report()))

    def found(self) -> Measurement:
        """What is known so far."""
        return replace(self.measurement, peak_mib=self.headroom.peak.so_far())

    def _result(self) -> WorkerResult:
        found = self.found()
        verdict: tuple[Status, FailureClass | None, str | None] = Status.PASS, None, None
        if found.accuracy == Accuracy.FAIL:
            verdict = Status.FAIL_ACCURACY, FailureClass.ACCURACY, found.accuracy_reason
        elif None in ((found.aa_eager, found.aa_compiled) if self.task.aa else (found.speedup,)):
            verdict = Status.INFRA_ERROR, FailureClass.DEVICE, f"no pair could be used: {found.machine['quality_reason']}"
        status, failure_class, error = verdict
        return WorkerResult(status, self.phase, failure_class, error, found, self.samples, self.blocks)

    def _enter(self, phase: Phase) -> None:
        self.phase = phase
        self.headroom.enter(phase)
        self.channel.phase(phase)

    def _flag(self, quality: Quality, reason: str) -> None:
        """Say of the timing that is done what was found out afterwards."""
        found, flag = self.measurement, f"{quality}: {reason}"
        earlier = found.machine.get("quality_reason")
        self._note(
            quality=measure.worst_quality([found.quality or Quality.OK, quality]).value,
            machine={**found.machine, "quality_reason": f"{flag}; {earlier}" if earlier else flag},
        )

    def _note(self, **found: Any) -> None:
        self.measurement = replace(self.measurement, **found)


def _give_back(device: torch.device) -> None:
    """Let neighbours have what this process needs no more."""
    if device.type == "cuda":
        accuracy.free_memory(device)
    heap.give_back()


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None

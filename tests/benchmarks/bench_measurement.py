"""What the measurement of a task is worth on a GPU: planted truths, another tool's answers, and the time that it takes.

``python -m tests.benchmarks.bench_measurement [--only a,b] [--json FILE]`` needs CUDA, takes about three minutes, and prints a table for
each part: (a) planted ratios, (b) what the host does, (c) agreement with Triton's do_bench, (d) time to stop, (e) how long a step feels
what went before it.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tasks import compilation, environment, estimator, measure, step
from tasks.compilation import stance
from tasks.hardware import HostMachine
from tasks.measure import Timing
from tasks.spec import CompileSpec, MeasureSpec, ModelSpec, PrecisionSpec, Samples
from tasks.stepper import Side
from tests.gpu import planted
from tests.gpu.planted import Step

Row = dict[str, Any]

SEED = 1337
DEADLINE_S = 120.0
WARM_S = 1.0

PRECISE = MeasureSpec(half_width=0.001, max_pairs=20, max_time_s=5.0, warmup_max_s=5.0)
RATIOS = (1.0, 1.01, 1.05, 1.5, 3.0)
LENGTHS_MS = (1.0, 10.0)
RATIO_LIMIT = 0.3  # percent

DELAY_LIMIT_MS = 0.02
KERNELS = (100, 500, 1000, 2000, 4000)

BENCH_LIMIT = 2.0  # percent
SIZE = 8192
FLOATS = 2**30
BENCH_MS = {"warmup": 200, "rep": 300}

FIXED_REPEATS = 30
STOP_LIMIT = 0.5
RULES = {
    "as shipped": MeasureSpec(),
    "the reference sweep's": MeasureSpec(block_iterations=1, min_pairs=7),
}


@dataclass(frozen=True, slots=True)
class Case:
    """A model whose eager step keeps the device busy throughout."""

    model: ModelSpec
    mode: str

    def __str__(self) -> str:
        return f"{self.model.suite}/{self.model.name}, {self.mode}"


CASES = (
    Case(ModelSpec("torchbench", "resnet50", batch_size=512), "inference"),
    Case(ModelSpec("timm", "vit_base_patch16_224", batch_size=256), "training"),
    Case(ModelSpec("timm", "mixer_b16_224", batch_size=1024), "inference"),
)

VISITED = Case(ModelSpec("huggingface", "RobertaForCausalLM", batch_size=16, options={"seq_len": 512}), "training")
VISITS, STEPS_PER_VISIT = 15, 5
THIRD = 2  # its place in a visit: where the second block begins, if blocks have one step
PAUSE_MS = 1.0
MIN_PAIRS = 7
SETTLED_LIMIT = 0.25  # percent


@dataclass(frozen=True, slots=True)
class Part:
    """One table. ``rows`` takes the device and gives a dict per row, the same keys in each."""

    title: str
    about: str
    rows: Callable[[torch.device], list[Row]]


def timed(sides: tuple[Side, Side], machine: HostMachine, spec: MeasureSpec, warm_s: float = WARM_S) -> Timing:
    return measure.measure(sides, machine, spec, seed=SEED, deadline_s=DEADLINE_S, warm_s=warm_s)


def percent(found: float | None, truth: float) -> float | None:
    return None if found is None else 100 * (found / truth - 1)


def quotient(over: float | None, under: float | None) -> float | None:
    return None if over is None or under is None else over / under


def difference(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other


# --- a ------------------------------------------------------------------------------------------------------------------------------


def planted_ratios(device: torch.device) -> list[Row]:
    machine = planted.fresh_machine(device)
    per_ms = planted.cycles_per_ms(machine)
    fixed_ms = planted.fixed_ms(machine, per_ms)
    return [_planted_ratio(device, per_ms, fixed_ms, length_ms, ratio) for length_ms in LENGTHS_MS for ratio in RATIOS]


def _planted_ratio(device: torch.device, per_ms: float, fixed_ms: float, length_ms: float, ratio: float) -> Row:
    sides = tuple(Side(planted.spin(ms * per_ms)) for ms in (ratio * length_ms, length_ms))
    timing = timed((sides[0], sides[1]), planted.fresh_machine(device), PRECISE, warm_s=0.5)
    found = timing.summary
    truth = (ratio * length_ms + fixed_ms) / (length_ms + fixed_ms)
    on_device = percent(quotient(timing.summary.eager_device_ms, timing.summary.compiled_device_ms), ratio)
    error = percent(found.speedup, truth)
    return {
        "spin, ms": length_ms,
        "ratio of spins": ratio,
        "truth": truth,
        "measured": found.speedup,
        "low": found.speedup_low,
        "high": found.speedup_high,
        "error, %": error,
        "error to ratio of spins, %": percent(found.speedup, ratio),
        "error of device time, %": on_device,
        "pairs": found.pairs,
        "fixed, us": 1000 * fixed_ms,
        "quality": timing.quality.value,
        "within": error is not None and abs(error) <= RATIO_LIMIT,
    }


# --- b ------------------------------------------------------------------------------------------------------------------------------


def host_delays(device: torch.device) -> list[Row]:
    machine = planted.fresh_machine(device)
    per_ms = planted.cycles_per_ms(machine)
    cases = (
        # what, length of the spin in ms, delay in ms, by how much the step gets longer for the host
        ("before the launch", 1.0, 0.2, 0.2),
        ("before the launch", 1.0, 2.0, 2.0),
        ("before the launch", 10.0, 2.0, 2.0),
        ("after the launch, while the device is at work", 2.0, 0.5, 0.0),
        ("after the launch, longer than the device", 0.05, 0.5, 0.45),
    )
    return [_host_delay(device, per_ms, *case) for case in cases]


def _host_delay(device: torch.device, per_ms: float, what: str, length_ms: float, delay_ms: float, expected_ms: float) -> Row:
    plain, wait = planted.spin(length_ms * per_ms), planted.busy_wait(delay_ms / 1000)
    delayed = (planted.before if what.startswith("before") else planted.after)(plain, wait)
    timing = timed((Side(delayed), Side(plain)), planted.fresh_machine(device), PRECISE, warm_s=0.5)
    host_ms = difference(timing.summary.eager_ms, timing.summary.compiled_ms)
    device_ms = difference(timing.summary.eager_device_ms, timing.summary.compiled_device_ms)
    close = host_ms is not None and abs(host_ms - expected_ms) <= DELAY_LIMIT_MS + 0.01 * expected_ms
    return {
        "the host waits": what,
        "spin, ms": length_ms,
        "wait, ms": delay_ms,
        "expected on the host's clock, ms": expected_ms,
        "host time, ms more": host_ms,
        "device time, ms more": device_ms,
        "device time, ms": timing.summary.compiled_device_ms,
        "within": close and device_ms is not None and abs(device_ms) <= DELAY_LIMIT_MS,
    }


def kernel_counts(device: torch.device) -> list[Row]:
    """Not a truth but a limit: how many launches fit into the queue behind which device time is taken."""
    return [_kernel_count(device, count) for count in KERNELS]


def _kernel_count(device: torch.device, count: int) -> Row:
    values, machine = torch.zeros(16, device=device), planted.fresh_machine(device)

    def launches() -> None:
        for _ in range(count):
            values.add_(1.0)

    planted.keep_busy(machine, launches)
    device_ms = machine.device_ms(launches)
    return {
        "kernels": count,
        "host time, ms": planted.host_ms(machine, launches),
        "device time, ms": device_ms,
        "device time, us per kernel": None if device_ms is None else 1000 * device_ms / count,
    }


# --- c ------------------------------------------------------------------------------------------------------------------------------


def do_bench_agreement(device: torch.device) -> list[Row]:
    return [_agreement(device, name, make) for name, make in _kernels(device).items()]


def _kernels(device: torch.device) -> dict[str, Callable[[], Step]]:
    """By name, what makes the step: one after the other, so that the tensors of one are gone when the next are made.

    All read or write far more than the cache holds, since do_bench empties it before each call. The products in float32 and float64
    keep the device busy below its power limit. Those in bfloat16 run at it, where the clock, and so the time, depends on what ran
    before; they are there to show by how much.
    """

    def product(make: Callable[..., torch.Tensor], dtype: torch.dtype) -> Step:
        one, other = (make(SIZE, SIZE, device=device, dtype=dtype) for _ in range(2))
        return partial(torch.mm, one, other, out=torch.empty_like(one))

    def elementwise() -> Step:
        values = torch.rand(FLOATS, device=device)
        return partial(torch.mul, values, 1.5, out=torch.empty_like(values))

    def reduction() -> Step:
        values = torch.rand(2**15, FLOATS // 2**15, device=device, dtype=torch.float64)
        return partial(torch.sum, values, dim=1, out=torch.empty(2**15, device=device, dtype=torch.float64))

    return {
        f"float32 product of {SIZE} x {SIZE}, without TF32": partial(product, torch.randn, torch.float32),
        f"float64 product of {SIZE} x {SIZE}": partial(product, torch.randn, torch.float64),
        f"bfloat16 product of {SIZE} x {SIZE}": partial(product, torch.randn, torch.bfloat16),
        f"bfloat16 product of {SIZE} x {SIZE}, zeros": partial(product, torch.zeros, torch.bfloat16),
        f"float32 product with a number, {FLOATS // 2**20} Mi elements": elementwise,
        f"float64 sum of rows, {FLOATS // 2**20} Mi elements": reduction,
    }


def _agreement(device: torch.device, name: str, make: Callable[[], Step]) -> Row:
    once, machine = make(), planted.fresh_machine(device)
    planted.keep_busy(machine, once)
    before_ms = _do_bench(once)
    timing = timed((Side(once), Side(once)), machine, MeasureSpec(half_width=0.002, max_pairs=20, max_time_s=4.0, warmup_max_s=5.0))
    theirs_ms = (before_ms + _do_bench(once)) / 2
    on_device, on_host = percent(timing.summary.eager_device_ms, theirs_ms), percent(timing.summary.eager_ms, theirs_ms)
    seen = machine.summary()
    return {
        "kernel": name,
        "do_bench, ms": theirs_ms,
        "device time, ms": timing.summary.eager_device_ms,
        "host time, ms": timing.summary.eager_ms,
        "device to do_bench, %": on_device,
        "host to do_bench, %": on_host,
        "SM clock, MHz": f"{seen.get('sm_clock_mhz_min')} to {seen.get('sm_clock_mhz_max')}",
        "at the power limit": seen.get("power_cap_share"),
        "within": all(error is not None and abs(error) <= BENCH_LIMIT for error in (on_device, on_host)),
    }


def _do_bench(once: Step) -> float:
    from triton import testing  # type: ignore[import-not-found, unused-ignore]

    return float(testing.do_bench(once, return_mode="median", **BENCH_MS))


# --- d ------------------------------------------------------------------------------------------------------------------------------


def time_to_stop(device: torch.device) -> list[Row]:
    return [row for case in CASES for row in _stopping(device, case)]


def _stopping(device: torch.device, case: Case) -> list[Row]:
    sides = compiled_sides(device, case)
    found = {rule: timed(sides, planted.fresh_machine(device), spec) for rule, spec in RULES.items()}
    fixed_s, fixed_half_width = _fixed_repeats(sides, planted.fresh_machine(device))
    rows = [_stopping_row(case, rule, timing, fixed_s, fixed_half_width) for rule, timing in found.items()]
    del sides
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return rows


def _stopping_row(case: Case, rule: str, timing: Timing, fixed_s: float, fixed_half_width: float | None) -> Row:
    found, pairs_s = timing.summary, _span_s(timing.samples, "timed")
    taken = 1 + max(timing.samples.pair)  # with those that were discarded
    share, of_pairs = pairs_s / fixed_s, taken / FIXED_REPEATS
    return {
        "model": str(case),
        "batch": case.model.batch_size,
        "blocks": rule,
        "eager, ms": found.eager_ms,
        "eager on the device, ms": timing.summary.eager_device_ms,
        "speedup": found.speedup,
        "half width, %": None if found.half_width is None else 100 * found.half_width,
        "pairs": taken,
        "iterations of an arm": timing.samples.phase.count("timed") // 2,
        "warm-up, s": _span_s(timing.samples, "warmup"),
        "pairs, s": pairs_s,
        "30 repeats, s": fixed_s,
        "their half width, %": None if fixed_half_width is None else 100 * fixed_half_width,
        "share of 30 repeats": share,
        "share of 30 pairs": of_pairs,
        "quality": timing.quality.value,
        "within": share < STOP_LIMIT,
    }


def compiled_sides(device: torch.device, case: Case) -> tuple[Side, Side]:
    """The two arms of a task on ``case`` in AMP, compiled and run in as a task does it."""
    from tasks.suites.loader import load

    workload = step.prepare(load(case.model, case.mode, device, SEED), case.mode, PrecisionSpec("amp"), "none", device)
    state = step.State(workload, SEED)
    for _ in range(3):
        workload.step()
    compiled = compilation.compile_step(workload.step, CompileSpec())
    state.restore()
    calls = compilation.first_calls(compiled, lambda: step.synchronize(device))
    state.restore()
    compilation.stop_compile_workers()
    say(f"{case}: compiled in {calls.compile_s:.0f} s")
    return (
        Side(workload.step, partial(stance, "force_eager"), partial(stance, "force_eager")),
        Side(compiled, partial(stance, "default"), partial(stance, "fail_on_recompile"), compilation.compiler_activity),
    )


def _fixed_repeats(sides: tuple[Side, Side], machine: HostMachine) -> tuple[float, float | None]:
    """Seconds that ``FIXED_REPEATS`` single iterations of each arm take, in turn and warm; the half width of ln(speedup) from them.

    Nothing but the iterations is in the seconds: no reading of the machine, and no change of the compiler's stance.
    """
    times_ns: tuple[list[int], list[int]] = ([], [])
    for _ in range(FIXED_REPEATS):
        for which, side in enumerate(sides):
            times_ns[which].extend(_steps(side, machine, 1))
    ratios = [math.log(eager / compiled) for eager, compiled in zip(*times_ns, strict=True)]
    return sum(map(sum, times_ns)) / 1e9, estimator.estimate(ratios).half_width


def _steps(side: Side, machine: HostMachine, count: int, ahead: Callable[[int], None] = lambda _: None) -> list[int]:
    """Nanoseconds of steps in a row, each between two synchronisations; the change of the compiler's stance is not in them.

    ``ahead`` is called with each step's place, from 0, before its clock is read.
    """
    times_ns = []
    with side.strict():
        machine.synchronize()
        for place in range(count):
            ahead(place)
            began_ns = machine.now_ns()
            side.step()
            machine.synchronize()
            times_ns.append(machine.now_ns() - began_ns)
    return times_ns


def _span_s(samples: Samples, phase: str) -> float:
    """From the first sample of ``phase`` to the end of the last."""
    rows = [row for row, its_phase in enumerate(samples.phase) if its_phase == phase]
    return (samples.started_ns[rows[-1]] + samples.host_ns[rows[-1]] - samples.started_ns[rows[0]]) / 1e9


# --- e ------------------------------------------------------------------------------------------------------------------------------


def after_effects(device: torch.device, case: Case = VISITED) -> list[Row]:
    """By what went before: a visit's first steps, relative to its last one."""
    sides, machine = compiled_sides(device, case), planted.fresh_machine(device)

    def other_arm(which: int) -> None:
        _steps(sides[1 - which], machine, 2)

    def reading(_: int) -> None:
        machine.border()

    visits = {
        "nothing": _Visit(),
        "a reading of the machine": _Visit((reading,)),
        "two steps of the other arm": _Visit((other_arm,)),
        "both, as in a measurement": _Visit((other_arm, reading)),
        "both, and the stopping rule before step 3": _Visit((other_arm, reading), _stopping_rule),
        f"nothing, and {PAUSE_MS} ms before step 3": _Visit((), _pause),
    }
    return [
        _after(str(case), arm, what, [visit.steps(sides[which], which, machine) for _ in range(VISITS)])
        for which, arm in enumerate(("eager", "compiled"))
        for what, visit in visits.items()
    ]


@dataclass(frozen=True, slots=True)
class _Visit:
    """What is done before a visit, given its arm, and before its third step, where a measurement's second block begins."""

    before: tuple[Callable[[int], None], ...] = ()
    before_third: Callable[[], None] = lambda: None

    def steps(self, side: Side, which: int, machine: HostMachine) -> list[int]:
        for act in self.before:
            act(which)
        return _steps(side, machine, STEPS_PER_VISIT, lambda place: self.before_third() if place == THIRD else None)


def _stopping_rule() -> None:
    ratios = np.linspace(0.29, 0.31, MIN_PAIRS)
    estimator.estimate_pairs(estimator.Pairs(ratios, np.zeros(len(ratios), dtype=np.int64)))


def _pause() -> None:
    """The device idles, and so does this thread but for the clock."""
    until_s = time.perf_counter() + PAUSE_MS / 1e3
    while time.perf_counter() < until_s:
        pass


def _after(case: str, arm: str, what: str, visits: list[list[int]]) -> Row:
    longer = [100 * statistics.median(math.log(visit[place] / visit[-1]) for visit in visits) for place in range(STEPS_PER_VISIT - 1)]
    return {
        "model": case,
        "arm": arm,
        "before the visit": what,
        "last step, ms": statistics.median(visit[-1] for visit in visits) / 1e6,
        **{f"step {place + 1}, % longer": value for place, value in enumerate(longer)},
        "within": abs(longer[1] - longer[2]) <= SETTLED_LIMIT,
    }


# --- all of it ------------------------------------------------------------------------------------------------------------------------

PARTS = {
    "a": (
        Part(
            "Planted ratios",
            "Two spins of the device of a known ratio through the engine. The truth on the host's clock is the ratio of the spins, each "
            f"with what it costs to launch it and to wait for it, measured apart (`fixed`). Within: {RATIO_LIMIT} % of the truth.",
            planted_ratios,
        ),
    ),
    "b": (
        Part(
            "What the host does",
            "The same spin with and without a wait of the host. Within: the host's clock sees it where a user waits for it, and the "
            f"device's time does not, to {1000 * DELAY_LIMIT_MS:.0f} us and 1 %.",
            host_delays,
        ),
        Part("How long a queue device time can be taken behind", "A step of so many short kernels; `none` is missing.", kernel_counts),
    ),
    "c": (
        Part(
            "Agreement with Triton's do_bench",
            f"Median of do_bench, before and after ours. Within: device time and host time both to {BENCH_LIMIT} %.",
            do_bench_agreement,
        ),
    ),
    "d": (
        Part(
            "Time to stop",
            f"Until the half width is 1 %, against {FIXED_REPEATS} single iterations of each arm, in turn; both without their warm-up. "
            f"The last share is against {FIXED_REPEATS} pairs of the same blocks. Within: under half of the {FIXED_REPEATS} repeats.",
            time_to_stop,
        ),
    ),
    "e": (
        Part(
            "How long a step feels what went before it",
            f"{VISITS} visits of {STEPS_PER_VISIT} steps to each arm: by how much a step is longer than the last of its visit (medians). A "
            f"measurement counts the second and the third. Within: those two are {SETTLED_LIMIT} % apart or less.",
            after_effects,
        ),
    ),
}


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def show(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "NO"
    return f"{value:.4g}" if isinstance(value, float) and abs(value) < 0.1 else f"{value:.4f}" if isinstance(value, float) else str(value)


def table(part: Part, rows: list[Row], took_s: float) -> str:
    heads = list(rows[0])
    lines = [f"## {part.title}", "", part.about, "", f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    lines += [f"| {' | '.join(show(row[head]) for head in heads)} |" for row in rows]
    return "\n".join([*lines, "", f"Took {took_s:.0f} s.", ""])


def about_machine(device: torch.device, arguments: list[str]) -> Row:
    return {
        "command": shlex.join(["python", "-m", "tests.benchmarks.bench_measurement", *arguments]),
        "versions": environment.versions(),
        "machine": environment.machine(device),
    }


def header(about: Row) -> str:
    versions = ", ".join(f"{name} {value}" for name, value in about["versions"].items() if value and name != "torch_git")
    machine = about["machine"]
    return f"`{about['command']}`\n\n{machine.get('gpu')}, {machine['cores']} processors ({machine['cpu']}); {versions}\n"


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default=",".join(PARTS), help="parts to run, as in a,c")
    parser.add_argument("--json", type=Path, help="leave all rows, unrounded, in this file")
    chosen = parser.parse_args(arguments)
    names = chosen.only.split(",")
    if unknown := sorted(set(names) - set(PARTS)):
        parser.error(f"no part {unknown[0]!r}: there are {', '.join(PARTS)}")
    if not torch.cuda.is_available():
        sys.exit(f"bench_measurement needs a CUDA device, and torch {torch.__version__} finds none")
    device = planted.cuda_device()
    about = about_machine(device, arguments)
    print(header(about), flush=True)
    found: dict[str, list[Row]] = {}
    for name in names:
        for part in PARTS[name]:
            began = time.perf_counter()
            found[part.title] = part.rows(device)
            print(table(part, found[part.title], time.perf_counter() - began), flush=True)
            if chosen.json:
                chosen.json.write_text(json.dumps(about | {"parts": found}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])

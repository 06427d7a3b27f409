"""What it is worth to keep what launches on the quickest processor: how much speedups scatter between measurements, with and without.

``python -m tests.benchmarks.bench_host_core [--device cuda] [--rounds 20] [--seconds 2]`` takes four times ``rounds * seconds``. Two
cases: both arms wait for their host, or only the eager one does, beside an arm that takes as long whatever the host does. Each is measured
once where the kernel puts it and once on the quickest processor (``tasks.quiet_core``) in every round, in random order, by the engine that
tasks are timed with.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from tasks import measure
from tasks.hardware import machine_for
from tasks.quiet_core import QuietCore
from tasks.spec import MeasureSpec
from tasks.stepper import Side

DEEP, SHALLOW, WIDTH, BATCH = 40, 20, 32, 8
FIXED_S = 0.004
DEADLINE_S, WARM_S = 120.0, 0.2
SEED = 1337


@dataclass(frozen=True, slots=True)
class Found:
    """One measurement: ln(speedup), its half width, ms of the eager arm, us of the processors' probe, and how often one was left."""

    log: float
    half_width: float
    eager_ms: float
    probe_us: float
    moves: int


def launches(depth: int, device: torch.device) -> Callable[[], object]:
    """A training step of a chain of layers so small that nothing but to launch them takes time."""
    model = nn.Sequential(*(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU()) for _ in range(depth))).to(device)
    batch = torch.randn(BATCH, WIDTH, device=device)

    def step() -> object:
        model.zero_grad(set_to_none=True)
        loss = model(batch).sum()
        loss.backward()
        return loss

    return step


def fixed() -> None:
    """Stands for an arm that the device bounds."""
    end_s = time.perf_counter() + FIXED_S
    while time.perf_counter() < end_s:
        pass


def once(sides: tuple[Side, Side], device: torch.device, seconds: float, quiet: bool, seed: int) -> Found:
    core = QuietCore(tuple(sorted(os.sched_getaffinity(0)))) if quiet else None
    spec = MeasureSpec(half_width=0.001, min_pairs=7, max_pairs=10_000, block_iterations=1, max_time_s=seconds, warmup_max_s=1.0)
    with core.kept() if core else nullcontext():
        machine = machine_for(device, None, lambda: None, core)
        timing = measure.measure(sides, machine, spec, seed=seed, deadline_s=DEADLINE_S, warm_s=WARM_S)
    found, probe_us = timing.summary, machine.summary()["host_probe_us"]
    if found.speedup is None or found.half_width is None or found.eager_ms is None:
        raise SystemExit(f"nothing was measured: {'; '.join(timing.flags)}")
    return Found(float(np.log(found.speedup)), found.half_width, found.eager_ms, float(str(probe_us)), core.moves if core else 0)


def tell(name: str, found: list[Found]) -> float:
    """Print a line for one way to measure; returns how much its speedups scatter, in percent."""
    scatter = 100 * statistics.stdev(one.log for one in found)
    half_width, eager_ms, probe_us = (
        statistics.median(getattr(one, column) for one in found) for column in ("half_width", "eager_ms", "probe_us")
    )
    extremes = [pick(one.eager_ms for one in found) for pick in (min, max)]
    print(
        f"  {name:<6} ln(speedup) scatters by {scatter:5.2f} %, half width {100 * half_width:5.2f} %; eager {eager_ms:.2f} ms "
        f"({extremes[0]:.2f} to {extremes[1]:.2f}); probe {probe_us:.0f} us; {statistics.mean(one.moves for one in found):.1f} moves"
    )
    return scatter


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=2.0)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    torch.set_num_threads(1)
    eager = Side(launches(DEEP, device))
    cases = {"both arms wait for the host": Side(launches(SHALLOW, device)), "the eager arm does": Side(fixed)}
    chance = random.Random(SEED)
    for name, compiled in cases.items():
        found: dict[bool, list[Found]] = {False: [], True: []}
        for number in range(arguments.rounds):
            for quiet in chance.sample((False, True), 2):
                found[quiet].append(once((eager, compiled), device, arguments.seconds, quiet, number))
        print(f"{name}, {arguments.rounds} measurements of {arguments.seconds:g} s each, {len(os.sched_getaffinity(0))} processors")
        any_core, quiet_core = tell("any", found[False]), tell("quiet", found[True])
        print(f"  scatter, quiet over any: {quiet_core / any_core:.2f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

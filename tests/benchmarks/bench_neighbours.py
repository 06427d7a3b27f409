"""What tasks on one device cost each other while none of them times, by what they do there, and what busy processors add to it.

``python -m tests.benchmarks.bench_neighbours [--device cuda] [--at-once 1,2,4,8] [--busy 0,12]`` takes a minute or two. Each line is one
kind of work: what it takes a process that has the device to itself and idle processors beside it, and how many times as long where several
do it at once, beside so many processes that keep a processor busy each. Who shares a device perfectly has 1.0, and who takes turns as many
as there are.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Barrier, Event

import torch
from torch import nn

LAUNCHES, PRODUCTS, ALLOCATIONS = 40_000, 60, 60
BLOCKS, BLOCK_BYTES = 24, 32 * 2**20
WAIT_S = 300.0

Work = Callable[[torch.device], Callable[[], None]]
"""Makes ready on a device, and returns what is timed."""


def launches(device: torch.device) -> Callable[[], None]:
    """Kernels of some microseconds: steps that wait for the host."""
    tensor = torch.ones(64, device=device)

    def run() -> None:
        for _ in range(LAUNCHES):
            tensor.add_(1.0)

    return run


def products(device: torch.device) -> Callable[[], None]:
    """Kernels of some milliseconds: steps that wait for the device."""
    side = 6144 if device.type == "cuda" else 512
    matrix = torch.ones(side, side, device=device)
    out = torch.empty_like(matrix)
    torch.mm(matrix, matrix, out=out)

    def run() -> None:
        for _ in range(PRODUCTS):
            torch.mm(matrix, matrix, out=out)

    return run


def allocations(device: torch.device) -> Callable[[], None]:
    """Memory that is taken from the driver and given back, as between phases."""

    def run() -> None:
        for _ in range(ALLOCATIONS):
            blocks = [torch.empty(BLOCK_BYTES, dtype=torch.uint8, device=device) for _ in range(BLOCKS)]
            del blocks
            if device.type == "cuda":
                torch.cuda.empty_cache()

    return run


def first_step(device: torch.device) -> Callable[[], None]:
    """A training step with libraries and kernels that this process has not used before, in float64 as well."""
    torch.ones(1, device=device)

    def run() -> None:
        for dtype in (torch.float32, torch.float64):
            layers = (nn.Conv2d(3, 64, 7, stride=2), nn.BatchNorm2d(64), nn.ReLU(), nn.Flatten(), nn.Linear(64 * 29 * 29, 10))
            model = nn.Sequential(*layers).to(device, dtype)
            model(torch.ones(8, 3, 64, 64, device=device, dtype=dtype)).sum().backward()

    return run


KINDS: dict[str, Work] = {work.__name__: work for work in (first_step, launches, products, allocations)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--at-once", default="1,2,4,8", type=_numbers, metavar="N,...")
    parser.add_argument("--busy", default="0,12", type=_numbers, metavar="N,...")
    given = parser.parse_args()
    print(f"{given.device}, torch {torch.__version__}; times as long as alone, median of the processes")
    at_once(1, given.device)  # the first process reads libraries from a cold disk
    alone = at_once(1, given.device)
    print("work         alone, s  busy  at once" + "".join(f"{count:>7}" for count in given.at_once))
    for busy in given.busy:
        with busy_processors(busy):
            found = [at_once(count, given.device) for count in given.at_once]
        for name, alone_s in alone.items():
            print(f"{name:<12} {alone_s:8.2f}  {busy:4}         " + "".join(f"{times[name] / alone_s:7.2f}" for times in found), flush=True)


def at_once(count: int, device: str) -> dict[str, float]:
    """Median seconds of ``count`` processes that do one kind of work after the other, each at the same time."""
    context = multiprocessing.get_context("spawn")
    together, found = context.Barrier(count), context.SimpleQueue()
    processes = [context.Process(target=_do, args=(device, together, found), daemon=True) for _ in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(WAIT_S)
        if process.exitcode != 0:
            raise RuntimeError(f"a process ended with {process.exitcode}")
    taken: list[dict[str, float]] = [found.get() for _ in processes]
    return {name: statistics.median(seconds[name] for seconds in taken) for name in KINDS}


@contextlib.contextmanager
def busy_processors(count: int) -> Iterator[None]:
    """So many processes that compute something, in Python as a compiler does."""
    context = multiprocessing.get_context("spawn")
    over = context.Event()
    processes = [context.Process(target=_compute, args=(over,), daemon=True) for _ in range(count)]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        over.set()
        for process in processes:
            process.join(WAIT_S)


def _do(device_name: str, together: Barrier, found: SimpleQueue[dict[str, float]]) -> None:
    torch.set_num_threads(1)
    device = torch.device(device_name)
    taken = {}
    for name, work in KINDS.items():
        run = work(device)
        _synchronize(device)
        together.wait(WAIT_S)
        began = time.perf_counter()
        run()
        _synchronize(device)
        taken[name] = time.perf_counter() - began
    found.put(taken)


def _compute(over: Event) -> None:
    while not over.is_set():
        {str(number): [number] * 10 for number in range(10_000)}


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


if __name__ == "__main__":
    main()

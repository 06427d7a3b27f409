"""``python -m tasks.suites.survey``: what models are, and whether they run here in eager mode. One JSON line per question and answer.

A question is ``{"describe": {MODE: MODEL, ...}}`` or ``{"check": [TASK, ...], "lock": PATH}``, with an encoded ``ModelSpec`` per mode and
with encoded ``TaskSpec`` that share model, mode and device and differ in precision. Before its answer, a check prints lines
``{"phase": NAME}``: ``build``, ``wait`` and the dtypes. Whatever models print goes to stderr, so that stdout holds nothing but these lines.

``describe`` builds with fake tensors, for no memory and next to no time, or for real where that fails; a check builds and steps for real.
Steps are taken under the lock, a file that all surveys of a machine share: importing and building overlap, and the times are of a device
left alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree

from tasks import failure, step
from tasks.processes import die_with_parent
from tasks.spec import ModelSpec, Phase, Status, TaskSpec, decode
from tasks.suites.benchmark import Benchmark, UnsupportedModelError
from tasks.suites.fake import fake_tensors
from tasks.suites.loader import load
from tasks.suites.torchvision_compat import DETECTION_FIDELITY

CPU = torch.device("cpu")
SEED = 1337  # what a manifest has unless it says otherwise
WARM_STEPS = 2
TIMED_S = 0.25  # step for this long, and at least once
MAX_STEPS = 50
_MIB = 2**20

Tell = Callable[[dict[str, Any]], None]


def main() -> int:
    die_with_parent(os.getppid())
    lines = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def tell(line: dict[str, Any]) -> None:
        lines.write(json.dumps(line) + "\n")
        lines.flush()

    for question in sys.stdin:
        tell(answer(json.loads(question), tell))
        gc.collect()
    return 0


def answer(question: dict[str, Any], tell: Tell) -> dict[str, Any]:
    """The answer to one question; ``tell`` is given the phases on the way there."""
    if "describe" in question:
        return {mode: describe(decode(ModelSpec, model), mode) for mode, model in question["describe"].items()}
    return check([decode(TaskSpec, task) for task in question["check"]], Path(question["lock"]), tell)


def describe(model: ModelSpec, mode: str) -> dict[str, Any]:
    """Parameters, source, fidelity, batch size and inputs; or a status and an error."""
    try:
        return _with_fake_tensors(model, mode) or facts(load(model, mode, CPU, SEED))
    except Exception as error:  # noqa: BLE001 - classified
        return _failed(error, Phase.BUILD)


def _with_fake_tensors(model: ModelSpec, mode: str) -> dict[str, Any] | None:
    """The facts, or None if the model cannot be built without real numbers."""
    try:
        with fake_tensors():
            return facts(load(model, mode, CPU, SEED))
    except UnsupportedModelError:
        raise
    except Exception:  # noqa: BLE001 - whatever it is, building for real decides
        return None


def facts(benchmark: Benchmark) -> dict[str, Any]:
    """What is true of the model wherever it is built."""
    lacking_here = (f"; {DETECTION_FIDELITY}", DETECTION_FIDELITY)
    fidelity = benchmark.fidelity
    for remark in lacking_here:
        fidelity = fidelity.removesuffix(remark) if fidelity else None
    return {
        "parameters": sum(parameter.numel() for parameter in benchmark.module.parameters()),
        "source": benchmark.source,
        "fidelity": fidelity or None,
        "batch_size": benchmark.batch_size,
        "inputs": step.shapes((benchmark.args, benchmark.kwargs)),
    }


def check(tasks: list[TaskSpec], lock: Path, tell: Tell) -> dict[str, Any]:
    """Facts, seconds to build, and under each dtype ``eager_ms`` and, on CUDA, ``peak_mib``; or a status and an error."""
    first = tasks[0]
    tell({"phase": Phase.BUILD.value})
    try:
        device = _device(first.resources.device)
        started = time.perf_counter()
        benchmark = load(first.model, first.mode, device, first.seed)
        found = facts(benchmark) | {"build_s": time.perf_counter() - started}
    except Exception as error:  # noqa: BLE001 - classified
        return _failed(error, Phase.BUILD)
    _load_libraries(device)
    tell({"phase": "wait"})
    with _alone(lock):
        for task in tasks:
            tell({"phase": task.precision.dtype})
            found[task.precision.dtype] = _stepped(benchmark, task, device)
    return found


def _stepped(benchmark: Benchmark, task: TaskSpec, device: torch.device) -> dict[str, Any]:
    """``eager_ms`` is the median over the steps taken after ``WARM_STEPS``; ``finite``: whether the results are."""
    benchmark.module.zero_grad(set_to_none=True)
    try:
        workload = step.prepare(benchmark, task.mode, task.precision, task.optimizer, device)
        step.seed_everything(task.seed)
        _reset_peak(device)
        for _ in range(WARM_STEPS):
            results = workload.step()
        finite = all(bool(torch.isfinite(leaf).all()) for leaf in pytree.tree_leaves(results) if _is_floating(leaf))
        del results
        times_ms = list(_timed(workload.step, device))
    except Exception as error:  # noqa: BLE001 - classified
        return _failed(error, Phase.EAGER)
    return {
        "status": Status.PASS.value,
        "eager_ms": statistics.median(times_ms),
        "steps": len(times_ms),
        "peak_mib": torch.cuda.max_memory_allocated(device) / _MIB if device.type == "cuda" else None,
        "finite": finite,
    }


def _timed(take_step: Callable[[], Any], device: torch.device) -> Iterator[float]:
    """Milliseconds of one step after the other, for ``TIMED_S`` or ``MAX_STEPS``."""
    end = time.perf_counter() + TIMED_S
    for _ in range(MAX_STEPS):
        step.synchronize(device)
        started = time.perf_counter()
        take_step()
        step.synchronize(device)
        yield (time.perf_counter() - started) * 1e3
        if time.perf_counter() > end:
            return


def _device(name: str) -> torch.device:
    if name != "cuda":
        return torch.device(name)
    failure.require_cuda()
    return torch.device("cuda", torch.cuda.current_device())


def _load_libraries(device: torch.device) -> None:
    """Load cuBLAS and cuDNN, which takes a good part of a second: not while others wait for the device."""
    if device.type != "cuda":
        return
    for dtype in (torch.float32, torch.float16):
        image = torch.ones(1, 8, 8, 8, device=device, dtype=dtype, requires_grad=True)
        weight = torch.ones(8, 8, 3, 3, device=device, dtype=dtype, requires_grad=True)
        product = torch.nn.functional.conv2d(image, weight).flatten(1) @ torch.ones(288, 8, device=device, dtype=dtype)
        torch.autograd.backward(product.sum())
    step.synchronize(device)


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def _failed(error: Exception, phase: Phase) -> dict[str, Any]:
    found = failure.classify(error, phase)
    return {"status": found.status.value, "error": found.message}


def _is_floating(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.is_floating_point()


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Hold the lock; the kernel lets go of it if this process dies."""
    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    sys.exit(main())

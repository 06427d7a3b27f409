"""Compiling a step, and what the compiler said about it: graphs, breaks, recompiles, time."""

from __future__ import annotations

import contextlib
import functools
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, cast

import torch

from tasks.draws import inductor_settings
from tasks.spec import CompileSpec
from tasks.stepper import RecompiledError

MAX_REASONS, MAX_REASON_CHARACTERS = 20, 200
MAX_FIRST_CALLS = 10
_METRICS_LIMIT = 4096  # frames; torch remembers 64 unless told otherwise

Context = Callable[[], AbstractContextManager[Any]]


class NothingCompiledError(RuntimeError):
    """The compiled step is the eager one."""


@dataclass(frozen=True, slots=True)
class FirstCalls:
    """What the first steps took: wall and CPU seconds in excess of steady steps, as far as the compiler was at work."""

    compile_s: float
    compile_cpu_s: float | None
    steady_s: float


@dataclass(frozen=True, slots=True)
class Report:
    """What Dynamo counted. Reasons are one line each, without repetition.

    A frame with a graph break in a loop cannot be resumed after it, and is then left to eager mode as a whole: torch.compile's own way of
    dealing with such code, and part of what is measured. ``fell_back`` tells of it as of an error that was suppressed.
    """

    graphs: int
    graph_breaks: int
    graph_break_reasons: tuple[str, ...]
    recompiles: int
    fell_back: bool  # a frame that could not be compiled runs in eager mode
    cache_hits: int  # graphs that Inductor or AOTAutograd did not have to compile
    cache_misses: int


def compile_step(step: Callable[[], Any], spec: CompileSpec, *, same_random_numbers: bool = False) -> Callable[[], Any]:
    """``torch.compile`` as ``spec`` says; nothing is compiled before the first call.

    A step that compiles anew too often fails then, unless ``spec`` lets it fall back to eager mode.

    The backward graph is compiled with the forward one, where this torch can: by default it is compiled when it is first called, and all
    that the forward pass saved for it lies on the device meanwhile. The code is the same.

    With ``same_random_numbers``, Inductor draws from torch's own generators, in eager's order, so that a model that needs them can be
    checked.
    """
    from torch import _dynamo as dynamo
    from torch._dynamo import utils
    from torch._functorch import config as functorch

    dynamo.reset()
    utils.counters.clear()
    if hasattr(utils, "set_compilation_metrics_limit"):
        utils.set_compilation_metrics_limit(_METRICS_LIMIT)
    utils.clear_compilation_metrics()
    dynamo.config.suppress_errors = spec.suppress_errors
    dynamo.config.fail_on_recompile_limit_hit = not spec.suppress_errors  # else the rest of the calls would run in eager mode, and be timed
    if hasattr(functorch, "force_non_lazy_backward_lowering"):
        functorch.force_non_lazy_backward_lowering = True
    if spec.backend == "inductor":
        from torch._inductor import config

        for name, value in inductor_settings(as_eager=same_random_numbers).items():
            setattr(config, name, value)
    compiled: Callable[[], Any] = torch.compile(
        step,
        backend=spec.backend,
        mode=spec.mode,
        dynamic=spec.dynamic,
        fullgraph=spec.fullgraph,
        options=cast("dict[str, Any]", spec.options) or None,
    )
    return compiled


def first_calls(
    compiled: Callable[[], Any],
    synchronize: Callable[[], None],
    cpu_s: Callable[[], float | None] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
    off_device: Context = contextlib.nullcontext,
) -> FirstCalls:
    """Step until the compiler has nothing more to do, for at most ``MAX_FIRST_CALLS``.

    ``cpu_s`` is the CPU time of this process and its compile workers; ``clock`` stands still while this process does. The first call, which
    compiles for nearly all of its time, is made inside ``off_device()``.
    """
    walls: list[float] = []
    cpus: list[float | None] = []
    while len(walls) < MAX_FIRST_CALLS:
        activity, cpu_before, began = compiler_activity(), cpu_s(), clock()
        with contextlib.nullcontext() if walls else off_device():
            compiled()
            synchronize()
        walls.append(clock() - began)
        cpus.append(_difference(cpu_s(), cpu_before))
        if len(walls) > 1 and compiler_activity() == activity:
            break
    steady_s, steady_cpu_s = walls[-1], cpus[-1]
    active_cpus = [cpu for cpu in cpus[:-1] if cpu is not None]
    compile_cpu_s = None if steady_cpu_s is None else max(0.0, sum(active_cpus) - len(active_cpus) * steady_cpu_s)
    return FirstCalls(max(0.0, sum(walls[:-1]) - (len(walls) - 1) * steady_s), compile_cpu_s, steady_s)


def compiler_activity() -> tuple[object, ...]:
    """Changes whenever Dynamo, AOTAutograd or Inductor did any work in this process, recording a CUDA graph included.

    It also does when CUDA's allocator had to start over.
    """
    from torch._dynamo.utils import counters

    inductor = counters["inductor"]
    retries = torch.cuda.memory_stats().get("num_alloc_retries", 0) if torch.cuda.is_available() else 0
    return (
        counters["frames"]["total"],
        counters["stats"]["unique_graphs"],
        counters["aot_autograd"]["total"],
        sum(count for name, count in inductor.items() if name.startswith(("benchmarking.", "fxgraph_cache_"))),
        int(retries),
        *_graph_trees(),
    )


def _graph_trees() -> tuple[object, ...]:
    """What Inductor's CUDA graphs have come to; nothing where there are none, or where this torch keeps them elsewhere."""
    trees: Any = sys.modules.get("torch._inductor.cudagraph_trees")  # there once Inductor uses them
    if not hasattr(trees, "get_manager") or not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return ()
    return graphs_recorded(trees.get_manager(torch.cuda.current_device(), create_if_none_exists=False))


def graphs_recorded(manager: Any) -> tuple[object, ...]:
    """How many functions a manager of CUDA graphs has warmed up, and what number its next recording will have. A replay changes neither."""
    if manager is None:
        return ()
    return len(getattr(manager, "warmed_up_functions", ())), repr(getattr(manager, "graph_counter", None))


def compiled_code() -> tuple[int, int]:
    """Changes whenever Dynamo has compiled something that was not there before."""
    from torch._dynamo.utils import counters

    return counters["frames"]["total"], counters["stats"]["unique_graphs"]


def report() -> Report:
    """What Dynamo has counted since ``compile_step``."""
    from torch._dynamo.utils import counters, get_compilation_metrics

    metrics = get_compilation_metrics()
    breaks: dict[str, int] = dict(counters["graph_break"])
    reasons = dict.fromkeys(_first_line(reason) for reason in breaks)
    return Report(
        graphs=counters["stats"]["unique_graphs"],
        graph_breaks=sum(breaks.values()),
        graph_break_reasons=tuple(reasons)[:MAX_REASONS],
        recompiles=len({str(one.compile_id).partition("_")[0] for one in metrics if _is_recompile(one.compile_id)}),
        fell_back=any(one.fail_type is not None for one in metrics),
        cache_hits=_cached("hit"),
        cache_misses=_cached("miss"),
    )


def require_graphs(spec: CompileSpec) -> None:
    """``NothingCompiledError`` if all that Dynamo saw was left to eager mode, unless ``spec`` allows for that."""
    from torch._dynamo.utils import counters

    found = report()  # its graphs may be empty ones
    if counters["stats"]["calls_captured"] == 0 and found.fell_back and not spec.suppress_errors:
        reasons = "; ".join(found.graph_break_reasons) or "no reason is known"
        raise NothingCompiledError(f"no part of the step was compiled, and all of it runs in eager mode: {reasons}")


def _cached(outcome: str) -> int:
    """A graph found by AOTAutograd is not looked for by Inductor."""
    from torch._dynamo.utils import counters

    return int(counters["aot_autograd"][f"autograd_cache_{outcome}"] + counters["inductor"][f"fxgraph_cache_{outcome}"])


def stop_compile_workers() -> None:
    """End the pool that compiled kernels: its processes would wake up while others are timed."""
    from torch._inductor import async_compile

    if hasattr(async_compile, "shutdown_compile_workers"):
        async_compile.shutdown_compile_workers()


@contextlib.contextmanager
def stance(name: str) -> Iterator[None]:
    """``torch.compiler.set_stance``; under ``fail_on_recompile`` a recompile becomes a ``RecompiledError``."""
    try:
        with torch.compiler.set_stance(name):
            yield
    except RuntimeError as error:
        if name == "fail_on_recompile" and "Detected recompile" in str(error):
            raise RecompiledError(_recompile_reason(str(error))) from error
        raise


@contextlib.contextmanager
def autotune_under(exclusive: Context) -> Iterator[None]:
    """Run the benchmarks of Inductor's autotuner on the GPU inside ``exclusive()``, so that no neighbour decides what wins.

    A kernel's candidates are compared inside one, where this torch has the method that compares them: what comes between two of them
    then neither waits for the device again nor lets it go.
    """
    from torch._inductor.runtime import benchmarking

    with contextlib.ExitStack() as undone:
        undone.enter_context(_whole_kernels_under(exclusive))
        if hasattr(benchmarking, "set_gpu_benchmark_lock_context"):
            undone.callback(benchmarking.set_gpu_benchmark_lock_context, benchmarking.set_gpu_benchmark_lock_context(exclusive))
        else:
            for kind in [kind for kind in vars(benchmarking).values() if _benchmarks_gpu(kind)]:
                undone.enter_context(_method_under(exclusive, kind, "benchmark_gpu"))
        yield


def _whole_kernels_under(exclusive: Context) -> AbstractContextManager[None]:
    from torch._inductor.runtime import triton_heuristics

    autotuner = getattr(triton_heuristics, "CachingAutotuner", None)
    if "autotune_to_one_config" not in vars(autotuner or object):
        return contextlib.nullcontext()
    return _method_under(exclusive, cast("type", autotuner), "autotune_to_one_config")


@contextlib.contextmanager
def _method_under(exclusive: Context, kind: type, name: str) -> Iterator[None]:
    original = kind.__dict__[name]
    setattr(kind, name, _inside(exclusive, original))
    try:
        yield
    finally:
        setattr(kind, name, original)


def _benchmarks_gpu(kind: object) -> bool:
    return isinstance(kind, type) and "benchmark_gpu" in kind.__dict__


def _inside(exclusive: Context, method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with exclusive():
            return method(*args, **kwargs)

    return wrapped


def _is_recompile(compile_id: str | None) -> bool:
    """Ids are ``frame/compile``, with ``_attempt`` behind it if Dynamo started over; the first compile of a frame is 0."""
    return compile_id is not None and compile_id.rpartition("/")[2].partition("_")[0] not in ("", "0")


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0][:MAX_REASON_CHARACTERS]


def _recompile_reason(message: str) -> str:
    guards = [line.strip(" -") for line in message.splitlines() if line.strip().startswith("- ")]
    where = _first_line(message.partition("filename: ")[2])
    return f"{guards[0] if guards else 'no guard named'} ({where})"[: 2 * MAX_REASON_CHARACTERS]


def _difference(after: float | None, before: float | None) -> float | None:
    return None if after is None or before is None else after - before

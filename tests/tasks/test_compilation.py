from __future__ import annotations

import contextlib
import itertools

import pytest
import torch
from torch._functorch.aot_autograd import make_boxed_func

from tasks import compilation
from tasks.channel import Channel
from tasks.compilation import autotune_under, compile_step, compiler_activity, first_calls, report, stance
from tasks.spec import CompileSpec
from tasks.stepper import RecompiledError

EAGER = CompileSpec(backend="eager")


@pytest.fixture(autouse=True)
def tidy():
    yield
    torch._dynamo.reset()
    torch._dynamo.config.suppress_errors = torch._dynamo.config.fail_on_recompile_limit_hit = False
    torch._functorch.config.force_non_lazy_backward_lowering = False
    if "torch._inductor.config" in __import__("sys").modules:
        torch._inductor.config.fallback_random = False
        torch._inductor.config.reorder_for_peak_memory = torch._inductor.config.reorder_for_locality = True


def squared(state):
    def step():
        return state["value"] ** 2

    return step


def breaking(state):
    def step():
        value = state["value"] + 1
        torch._dynamo.graph_break()
        value = value * 2
        torch._dynamo.graph_break()
        return value - 1

    return step


class TestCompileStep:
    def test_nothing_that_the_forward_pass_saves_lies_on_the_device_while_the_backward_pass_is_compiled(self):
        from torch._dynamo.backends.common import aot_autograd

        events, weight = [], torch.ones(3, requires_grad=True)

        def compiler(name):
            def compile_graph(graph, inputs):
                events.append(f"{name} compiled")
                return make_boxed_func(lambda *values: (events.append(f"{name} runs"), graph(*values))[1])

            return compile_graph

        def step():
            (weight.sin() ** 2).sum().backward()

        compile_step(step, CompileSpec(backend=aot_autograd(fw_compiler=compiler("forward"), bw_compiler=compiler("backward"))))()
        assert events == ["forward compiled", "backward compiled", "forward runs", "backward runs"]
        assert weight.grad is not None


class TestReport:
    def test_a_whole_graph(self):
        compiled = compile_step(squared({"value": torch.ones(3)}), EAGER)
        compiled()
        found = report()
        assert (found.graphs, found.graph_breaks, found.graph_break_reasons, found.recompiles, found.fell_back) == (1, 0, (), 0, False)

    def test_breaks_and_their_reasons(self):
        compile_step(breaking({"value": torch.ones(3)}), EAGER)()
        found = report()
        assert (found.graphs, found.graph_breaks) == (3, 2)
        assert found.graph_break_reasons == ("Call to `torch._dynamo.graph_break()`",)
        assert not any("\n" in reason or len(reason) > compilation.MAX_REASON_CHARACTERS for reason in found.graph_break_reasons)

    def test_recompiles(self):
        state = {"value": torch.ones(3)}
        compiled = compile_step(squared(state), EAGER)
        for size in (3, 4, 5):
            state["value"] = torch.ones(size)
            compiled()
        assert report().recompiles == 2

    def test_a_new_step_starts_from_nothing(self):
        compile_step(breaking({"value": torch.ones(3)}), EAGER)()
        compile_step(squared({"value": torch.ones(3)}), EAGER)
        assert (report().graphs, report().graph_breaks) == (0, 0)

    def test_a_failed_frame_fell_back(self):
        def unable(graph, inputs):
            raise NotImplementedError

        compile_step(squared({"value": torch.ones(3)}), CompileSpec(backend=unable, suppress_errors=True))()
        assert report().fell_back

    @pytest.mark.parametrize("may_fall_back", [True, False])
    @torch._dynamo.config.patch(recompile_limit=2)
    def test_too_many_recompiles_are_a_fall_back_too_or_an_error(self, may_fall_back):
        state = {"value": torch.ones(3)}
        compiled = compile_step(squared(state), CompileSpec(backend="eager", suppress_errors=may_fall_back))
        with contextlib.nullcontext() if may_fall_back else pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit):
            for size in range(3, 9):
                state["value"] = torch.ones(size)
                compiled()
        assert report().fell_back

    @pytest.mark.parametrize(
        ("compile_id", "expected"), [("0/0", False), ("3/1", True), ("3/0_1", False), ("3/2_1", True), ("!1/0/0", False), (None, False)]
    )
    def test_ids_of_recompiles(self, compile_id, expected):
        assert compilation._is_recompile(compile_id) is expected


class TestFirstCalls:
    def run(self, monkeypatch, calls, activity, cpu=None, halted=lambda: 0.0):
        """Calls that take so many seconds, and what the compiler's counters say after each; ``halted``: seconds that do not count."""
        clock, states, taken = {"now": 0.0}, iter([0, *activity]), iter(calls)
        current = {"state": next(states)}

        def compiled():
            clock["now"] += next(taken)
            current["state"] = next(states)

        monkeypatch.setattr(compilation, "compiler_activity", lambda: current["state"])
        return first_calls(compiled, lambda: None, cpu or (lambda: None), lambda: clock["now"] - halted())

    def test_compile_time_is_what_is_beyond_a_steady_step(self, monkeypatch):
        found = self.run(monkeypatch, [30.0, 0.5], [1, 1])
        assert (found.compile_s, found.steady_s, found.compile_cpu_s) == (29.5, 0.5, None)

    def test_later_compiles_count(self, monkeypatch):
        assert self.run(monkeypatch, [30.0, 8.0, 0.5], [1, 2, 2]).compile_s == 37.0

    def test_pauses_do_not(self, monkeypatch):
        halted = iter([0.0, 10.0, 10.0, 10.0])
        assert self.run(monkeypatch, [30.0, 0.5], [1, 1], halted=lambda: next(halted)).compile_s == 19.5

    def test_cpu_time_is_counted_likewise(self, monkeypatch):
        seconds = iter([1.0, 61.0, 61.0, 62.0])
        assert self.run(monkeypatch, [30.0, 0.5], [1, 1], cpu=lambda: next(seconds)).compile_cpu_s == 59.0

    def test_a_compiler_that_never_rests_is_left(self, monkeypatch):
        found = self.run(monkeypatch, [1.0] * 20, range(1, 21))
        assert found.compile_s == 0.0

    def test_the_real_compiler_rests_after_one_call(self):
        calls = []
        compiled = compile_step(squared({"value": torch.ones(3)}), EAGER)
        first_calls(lambda: calls.append(compiled()), lambda: None)
        assert len(calls) == 2


class TestActivity:
    def test_it_changes_with_a_compile_and_not_without(self):
        state = {"value": torch.ones(3)}
        compiled = compile_step(squared(state), EAGER)
        seen = [compiler_activity()]
        for size in (3, 3, 4):
            state["value"] = torch.ones(size)
            compiled()
            seen.append(compiler_activity())
        assert [one != other for one, other in itertools.pairwise(seen)] == [True, False, True]


class FakeManager:
    """What is read of Inductor's manager of CUDA graphs: each function is run once to warm up, then recorded, then replayed."""

    def __init__(self):
        self.warmed_up_functions, self.graph_counter, self.recorded = set(), itertools.count(0), set()

    def run(self, function):
        if function not in self.warmed_up_functions:
            self.warmed_up_functions.add(function)
        elif function not in self.recorded:
            next(self.graph_counter)
            self.recorded.add(function)


class TestCudaGraphs:
    def seen(self, manager, *functions):
        states = [compilation.graphs_recorded(manager)]
        for function in functions:
            manager.run(function)
            states.append(compilation.graphs_recorded(manager))
        return [one != other for one, other in itertools.pairwise(states)]

    def test_warming_up_and_recording_are_activity_and_replaying_is_not(self):
        assert self.seen(FakeManager(), 1, 1, 1, 1, 2, 2, 2) == [True, True, False, False, True, True, False]

    def test_a_manager_of_another_kind_tells_nothing(self):
        assert compilation.graphs_recorded(object()) == compilation.graphs_recorded(object())
        assert compilation.graphs_recorded(None) == ()

    def test_inductors_own_manager_has_what_is_read(self):
        """Were it renamed, recording would look like replaying."""
        import inspect

        from torch._inductor import cudagraph_trees

        source = inspect.getsource(cudagraph_trees.CUDAGraphTreeManager.__init__)
        assert "self.warmed_up_functions" in source
        assert "self.graph_counter = itertools.count(" in source
        assert list(inspect.signature(cudagraph_trees.get_manager).parameters) == ["device_index", "create_if_none_exists"]

    @pytest.mark.parametrize("initialized", [True, False])
    def test_they_are_part_of_the_compilers_activity(self, monkeypatch, initialized):
        from torch._inductor import cudagraph_trees

        manager = FakeManager()
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: initialized)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(cudagraph_trees, "get_manager", lambda index, create_if_none_exists: manager)
        before = compiler_activity()
        manager.run(1)
        assert (compiler_activity() != before) is initialized


class TestStances:
    def test_a_recompile_is_an_error_with_its_reason(self):
        state = {"value": torch.ones(3)}
        compiled = compile_step(squared(state), EAGER)
        compiled()
        with stance("fail_on_recompile"):
            compiled()
        state["value"] = torch.ones(4)
        with pytest.raises(RecompiledError, match="size mismatch at index 0"), stance("fail_on_recompile"):
            compiled()
        with stance("default"):
            compiled()

    def test_other_errors_stay_what_they_are(self):
        with pytest.raises(RuntimeError, match="another") as caught, stance("fail_on_recompile"):
            raise RuntimeError("another")
        assert type(caught.value) is RuntimeError

    def test_eager_is_eager_even_inside(self):
        ran = []

        def backend(graph, inputs):
            def run(*arguments):
                ran.append(True)
                return graph.forward(*arguments)

            return run

        compiled = torch.compile(squared({"value": torch.ones(3)}), backend=backend)
        with stance("force_eager"):
            compiled()
        assert not ran
        compiled()
        assert ran


class TestArguments:
    def test_they_reach_torch_compile(self, monkeypatch):
        seen = {}
        monkeypatch.setattr(torch, "compile", lambda step, **arguments: seen.update(arguments) or step)
        compile_step(lambda: None, CompileSpec("inductor", "max-autotune", None, True, {}, True))
        assert seen == {"backend": "inductor", "mode": "max-autotune", "dynamic": None, "fullgraph": True, "options": None}
        assert torch._dynamo.config.suppress_errors is True
        compile_step(lambda: None, CompileSpec(options={"max_autotune": True}))
        assert seen["options"] == {"max_autotune": True}
        assert torch._dynamo.config.suppress_errors is False

    @pytest.mark.parametrize("wanted", [True, False])
    def test_random_numbers_can_be_eagers(self, wanted):
        import torch._inductor.config

        torch._inductor.config.fallback_random = not wanted
        compile_step(lambda: None, CompileSpec(), same_random_numbers=wanted)
        assert torch._inductor.config.fallback_random is wanted
        assert torch._inductor.config.reorder_for_peak_memory is not wanted  # it moves draws past each other
        assert torch._inductor.config.reorder_for_locality is not wanted


class TestAutotuning:
    @pytest.mark.parametrize("has_hook", [True, False])
    def test_benchmarks_on_the_gpu_run_under_the_lease(self, monkeypatch, has_hook):
        from torch._inductor.runtime import benchmarking

        if not has_hook:
            monkeypatch.delattr(benchmarking, "set_gpu_benchmark_lock_context", raising=False)
        elif not hasattr(benchmarking, "set_gpu_benchmark_lock_context"):
            pytest.skip("this torch has no such hook")
        heard = []

        @contextlib.contextmanager
        def exclusive():
            heard.append("acquire")
            yield
            heard.append("release")

        class Benchmarker(benchmarking.Benchmarker):
            def benchmark_gpu(self, value):
                heard.append(value)
                return 1.0

        if has_hook:
            Benchmarker.benchmark_gpu = benchmarking.gpu_benchmark_lock(Benchmarker.benchmark_gpu)
        monkeypatch.setattr(benchmarking, "OursForTesting", Benchmarker, raising=False)
        with autotune_under(exclusive):
            assert Benchmarker().benchmark_gpu("inside") == 1.0
        Benchmarker().benchmark_gpu("after")
        assert heard == ["acquire", "inside", "release", "after"]

    def test_the_candidates_of_a_kernel_are_compared_in_one_go(self, monkeypatch):
        from torch._inductor.runtime import benchmarking, triton_heuristics

        owned = []

        class ReentrantChannel(Channel):
            def _send(self, message):
                owned.append(message["lease"])

        class Autotuner:
            def autotune_to_one_config(self):
                return [Benchmarker().benchmark_gpu() for _ in range(3)]

        class Benchmarker(benchmarking.Benchmarker):
            def benchmark_gpu(self):
                owned.append("benchmark")

        monkeypatch.setattr(triton_heuristics, "CachingAutotuner", Autotuner)
        monkeypatch.setattr(benchmarking, "OursForTesting", Benchmarker, raising=False)
        monkeypatch.delattr(benchmarking, "set_gpu_benchmark_lock_context", raising=False)
        with autotune_under(ReentrantChannel(None).exclusive):
            Autotuner().autotune_to_one_config()
        assert owned == ["time", *["benchmark"] * 3, "release"]

    def test_a_torch_without_that_method_is_left_alone(self, monkeypatch):
        from torch._inductor.runtime import triton_heuristics

        monkeypatch.setattr(triton_heuristics, "CachingAutotuner", type("Autotuner", (), {}))
        with autotune_under(contextlib.nullcontext):
            assert not hasattr(triton_heuristics.CachingAutotuner, "autotune_to_one_config")

    def test_this_torch_has_that_method(self):
        from torch._inductor.runtime import triton_heuristics

        original = triton_heuristics.CachingAutotuner.autotune_to_one_config
        with autotune_under(contextlib.nullcontext):
            assert triton_heuristics.CachingAutotuner.autotune_to_one_config is not original
        assert triton_heuristics.CachingAutotuner.autotune_to_one_config is original

    def test_it_is_undone_after_an_error(self):
        from torch._inductor.runtime import benchmarking

        before = {name: kind.__dict__["benchmark_gpu"] for name, kind in vars(benchmarking).items() if compilation._benchmarks_gpu(kind)}
        with pytest.raises(ValueError, match="stop"), autotune_under(contextlib.nullcontext):
            raise ValueError("stop")
        after = {name: kind.__dict__["benchmark_gpu"] for name, kind in vars(benchmarking).items() if compilation._benchmarks_gpu(kind)}
        assert before == after
        assert getattr(benchmarking, "_gpu_benchmark_lock_context", None) is None

    def test_the_pool_is_stopped(self, monkeypatch):
        from torch._inductor import async_compile

        stopped = []
        monkeypatch.setattr(async_compile, "shutdown_compile_workers", lambda: stopped.append(True))
        compilation.stop_compile_workers()
        assert stopped == [True]

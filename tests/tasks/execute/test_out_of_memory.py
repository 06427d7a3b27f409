"""Too little memory, on the device or beside neighbours: what makes room, what waits, what falls back."""

from __future__ import annotations

import contextlib
import dataclasses

import pytest
import torch

from tasks import compilation, execute, headroom
from tasks.spec import (
    FailureClass,
    Phase,
    PrecisionSpec,
    Status,
)
from tests.tasks.execute.harness import faulty, run


class TestOutOfMemory:
    """What does not fit beside the saved state is tried again without it on the device, and the row says so."""

    def crowded(self, monkeypatch, phase):
        """Once, in ``phase``, a step does not fit; the state that is saved meanwhile tells."""
        prepare, kept = execute.step.prepare, {"phase": None}

        def remember(*arguments):
            work = prepare(*arguments)

            def one_step():
                if kept["phase"] == phase and not kept["state"].on_host:
                    raise torch.OutOfMemoryError("no room")
                return work.step()

            return dataclasses.replace(work, step=one_step)

        original_init, original_enter = execute.State.__init__, execute._Execution._enter

        def init(state, workload, seed):
            original_init(state, workload, seed)
            kept["state"] = state

        def enter(execution, at):
            kept["phase"] = at.value
            original_enter(execution, at)

        monkeypatch.setattr(execute.step, "prepare", remember)
        monkeypatch.setattr(execute.State, "__init__", init)
        monkeypatch.setattr(execute._Execution, "_enter", enter)

    @pytest.mark.parametrize("phase", ["eager", "compile"])
    def test_the_saved_state_makes_room(self, monkeypatch, uncompiled, phase):
        self.crowded(monkeypatch, phase)
        result = run("mlp")
        found = result.measurement
        assert (result.status, found.accuracy, found.reference) == (Status.PASS, "pass", "float64, saved state on the host")
        assert f"moved to the host in phase {phase}" in found.accuracy_reason
        assert (found.compile_s is None) is (phase == "compile")

    @pytest.mark.parametrize("phase", ["build", "eager", "verify"])
    def test_what_a_neighbour_leaves_no_room_for_is_begun_again(self, monkeypatch, uncompiled, phase):
        waits, name = [], {"build": "_build", "eager": "_eager", "verify": "_checked"}[phase]
        original = getattr(execute._Execution, name)

        def crowded(execution, *arguments):
            if not waits:
                raise torch.OutOfMemoryError("no room")
            return original(execution, *arguments)

        monkeypatch.setattr(execute._Execution, name, crowded)
        monkeypatch.setattr(headroom.Room, "wait_for", lambda room, wanted_bytes: waits.append(True) or True)
        found = run("mlp").measurement
        assert (found.accuracy, found.reference, len(waits)) == ("pass", "float64", 1)
        assert found.accuracy_reason == f"phase {phase} lacked memory until neighbours had given some back"

    def test_the_steps_before_timing_wait_for_room_as_well(self, monkeypatch, uncompiled):
        waits, original = [], execute._Execution._peaks

        def crowded(execution, *arguments):
            if not waits:
                raise torch.OutOfMemoryError("no room")
            return original(execution, *arguments)

        monkeypatch.setattr(execute._Execution, "_peaks", crowded)
        monkeypatch.setattr(headroom.Room, "wait_for", lambda room, wanted_bytes: waits.append(True) or True)
        result = run("mlp")
        assert (result.status, len(waits)) == (Status.PASS, 1)

    def test_a_compiled_step_that_lacks_memory_again_waits_again(self, monkeypatch, uncompiled):
        """Wait, let the saved state go to the host, wait."""
        calls, waits = [], []

        def compile_step(step, spec, **more):
            def call():
                calls.append(spec)
                if len(calls) <= 3:
                    raise torch.OutOfMemoryError("no room")
                return step()

            return call

        monkeypatch.setattr(compilation, "compile_step", compile_step)
        monkeypatch.setattr(headroom.Room, "wait_for", lambda room, wanted_bytes: waits.append(True) or True)
        found = run("mlp").measurement
        assert (found.accuracy, len(waits), found.reference) == ("pass", 2, "float64, saved state on the host")

    @pytest.mark.parametrize("kind", [torch.OutOfMemoryError, RuntimeError])
    def test_a_compiled_step_that_lacks_memory_is_called_again_and_not_compiled_again(self, monkeypatch, uncompiled, kind):
        calls, original = [], compilation.compile_step

        def compile_step(step, spec, **more):
            compiled = original(step, spec, **more)

            def call():
                calls.append(spec)
                if len(calls) == 1:
                    raise kind("CUDA driver error: out of memory")
                return compiled()

            return call

        compiles = []
        monkeypatch.setattr(compilation, "compile_step", lambda *given, **more: compiles.append(1) or compile_step(*given, **more))
        monkeypatch.setattr(headroom.Room, "wait_for", lambda room, wanted_bytes: True)
        found = run("mlp").measurement
        assert (found.accuracy, len(compiles), found.compile_s) == ("pass", 1, None)
        assert found.accuracy_reason == "phase compile lacked memory until neighbours had given some back"

    def test_a_model_too_large_for_the_device_fails_where_it_failed(self, monkeypatch):
        def exhausted(execution, device):
            raise torch.OutOfMemoryError("no room")

        monkeypatch.setattr(execute._Execution, "_build", exhausted)
        result = run("mlp")
        assert (result.status, result.failure_class) == (Status.OOM, FailureClass.DEVICE_OOM)
        assert "exhausted" in result.error

    @pytest.mark.parametrize(
        "library",
        [
            "cusolver error: CUSOLVER_STATUS_INTERNAL_ERROR, when calling `cusolverDnCreate(handle)`",
            "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
        ],
    )
    def test_a_library_that_gets_no_memory_for_its_handle_lacks_memory(self, monkeypatch, library):
        """It says another thing, and would count as the model's failure, which is not tried again."""

        def without_memory(execution, device):
            raise RuntimeError(library)

        monkeypatch.setattr(execute._Execution, "_build", without_memory)
        result = run("mlp")
        assert (result.status, result.failure_class) == (Status.OOM, FailureClass.DEVICE_OOM)

    @pytest.mark.parametrize(("dtype", "factor"), [("float32", 2.0), ("amp", 3.0)])
    def test_a_reference_waits_for_what_float64_takes(self, monkeypatch, uncompiled, dtype, factor):
        """Twice the peak of a step in float32, which under autocast has not been seen."""
        wanted = []
        monkeypatch.setattr(headroom.Room, "turn", lambda room, size: wanted.append(size / 2**20) or contextlib.nullcontext())
        monkeypatch.setattr(headroom.PeakMemory, "so_far", lambda peak: 1000.0)
        monkeypatch.setattr(headroom.PeakMemory, "held_mib", lambda peak: 0.0)
        assert run("mlp", precision=PrecisionSpec(dtype)).status is Status.PASS
        assert factor * 1000.0 in wanted

    def test_a_reference_waits_for_neighbours_before_it_goes_to_the_hosts_processors(self, monkeypatch, uncompiled):
        """All ways to do with less memory, the chunks' too, lacked it while neighbours were near their peaks."""
        tries, waits, original = [], [], execute.accuracy.step.in_precision

        def in_precision(workload, dtype, place):
            tries.append(dtype)
            if not waits:
                raise torch.OutOfMemoryError("no room")
            return original(workload, dtype, place)

        monkeypatch.setattr(execute.accuracy, "_has_own_memory", lambda device: True)
        monkeypatch.setattr(execute.accuracy.step, "in_precision", in_precision)
        monkeypatch.setattr(headroom.Room, "wait_for", lambda room, wanted_bytes: waits.append(True) or True)
        found = run("mlp").measurement
        assert (found.accuracy, len(waits)) == ("pass", 1)
        assert found.reference.partition(" (")[0] == "float64, results and saved state on the host"
        assert found.accuracy_reason == "phase verify lacked memory until neighbours had given some back"

    @pytest.mark.parametrize(("crowded", "status"), [(True, Status.OOM), (False, Status.FAIL_ACCURACY)])
    def test_a_failure_that_a_reference_might_have_excused_is_none_beside_neighbours(self, monkeypatch, uncompiled, crowded, status):
        faulty(monkeypatch, lambda loss, module: module[0].weight.grad.mul_(1.5) is None or loss)
        monkeypatch.setattr(execute.accuracy.step, "in_precision", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("no room")))
        monkeypatch.setattr(headroom.Room, "crowded", lambda room: crowded)
        result = run("mlp")
        assert (result.status, result.phase) == (status, Phase.VERIFY if crowded else Phase.TIME)
        assert "values differ" in result.error

    def test_a_step_that_does_not_fit_at_all_is_no_pass(self, monkeypatch, uncompiled):
        monkeypatch.setattr(execute.accuracy, "_has_own_memory", lambda device: True)

        def exhausted():
            raise torch.OutOfMemoryError("no room")

        monkeypatch.setattr(compilation, "compile_step", lambda step, spec, **more: exhausted)
        monkeypatch.setattr(compilation, "first_calls", lambda compiled, *rest: compilation.FirstCalls(0.0, None, 0.0))
        result = run("mlp")
        assert (result.status, result.phase, result.failure_class) == (Status.OOM, Phase.VERIFY, FailureClass.DEVICE_OOM)
        assert result.measurement.accuracy is None

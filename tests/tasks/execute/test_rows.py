"""What a task that goes through all phases leaves in its row, and what little time costs."""

from __future__ import annotations

import pytest
import torch

from tasks import execute, headroom
from tasks.channel import Channel
from tasks.spec import (
    AccuracySpec,
    CompileSpec,
    DeadlineSpec,
    MeasureSpec,
    Phase,
    PrecisionSpec,
    Status,
    WorkerResult,
    decode,
    encode,
)
from tests.tasks.execute.harness import Listener, run, task


class TestRow:
    @pytest.mark.parametrize(("precision", "optimizer"), [("float32", "none"), ("amp", "none"), ("amp", "sgd"), ("float32", "adam")])
    def test_a_training_task_passes(self, precision, optimizer):
        result = run("mlp", precision=PrecisionSpec(precision), optimizer=optimizer)
        found = result.measurement
        assert (result.status, result.phase, result.failure_class, result.error) == (Status.PASS, Phase.TIME, None, None)
        assert (found.accuracy, found.deterministic, found.reference) == ("pass", True, "float64")
        assert 0 <= found.accuracy_margin <= 1
        assert found.speedup_low <= found.speedup <= found.speedup_high
        assert (found.pairs, found.graphs >= 1, found.recompiles, found.fell_back) == (7, True, 0, False)
        assert any("backward" in reason for reason in found.graph_break_reasons)
        assert (found.batch_size, found.parameters, found.input_shapes) == (16, 1540, "float32[16, 8]")
        assert found.autocast_dtype == (None if precision == "float32" else "bfloat16")
        assert found.versions["torch"] == torch.__version__
        assert found.machine["cores"] >= 1
        assert (found.eager_peak_mib, found.eager_device_ms, found.launch_bound) == (None, None, None)

    def test_an_inference_task_passes(self):
        result = run("convnet", mode="inference")
        assert (result.status, result.measurement.accuracy, result.measurement.graph_breaks) == (Status.PASS, "pass", 0)

    def test_each_arm_can_be_measured_against_itself(self):
        result = run("mlp", aa=True)
        found = result.measurement
        assert (result.status, found.speedup, found.speedup_of_medians, found.pairs) == (Status.PASS, None, None, 14)
        assert found.aa_eager_low <= found.aa_eager <= found.aa_eager_high
        assert found.aa_compiled_low <= found.aa_compiled <= found.aa_compiled_high
        assert {"aa_eager", "aa_compiled"} <= set(result.samples.phase)
        assert "timed" not in result.samples.phase

    def test_an_arm_against_itself_steps_that_arm_alone(self, monkeypatch, uncompiled):
        seen = []
        original = execute.measure.measure
        monkeypatch.setattr(execute.measure, "measure", lambda sides, **more: seen.append((sides, more)) or original(sides, **more))
        run("mlp", aa=True)
        assert [more["phase"] for _, more in seen] == ["aa_eager", "aa_compiled"]
        assert all(sides[0] is sides[1] for sides, _ in seen)
        assert seen[0][0][0] is not seen[1][0][0]
        first_s, second_s = (more["deadline_s"] for _, more in seen)
        assert first_s == second_s == pytest.approx(DeadlineSpec().time_s / 2, abs=1.0)

    def test_every_process_has_an_order_and_a_number_of_its_own(self, monkeypatch, uncompiled):
        seen = []
        original = execute.measure.measure
        monkeypatch.setattr(execute.measure, "measure", lambda sides, **more: seen.append(more["seed"]) or original(sides, **more))
        results = [execute.execute(task("mlp"), Channel(None), process) for process in (0, 1)]
        assert [set(result.samples.process) for result in results] == [{0}, {1}]
        assert seen[1] == seen[0] + 1

    def test_the_result_survives_its_file(self, uncompiled):
        result = run("mlp")
        assert decode(WorkerResult, encode(result)) == result

    def test_the_device_is_owned_for_the_timing_and_for_nothing_else(self, uncompiled):
        channel = Listener()
        run("mlp", channel)
        off_device = ["device leave", "device return"]
        assert channel.heard == ["build", "eager", "compile", *off_device, "verify", "time", "lease time", "lease release"]

    def test_what_is_timed_is_what_is_verified(self, monkeypatch, uncompiled):
        seen = {}
        original_check, original_measure = execute.accuracy.check, execute.measure.measure

        def check(workload, compiled, *rest, **more):
            seen["verified"] = compiled
            return original_check(workload, compiled, *rest, **more)

        def measure(sides, *rest, **more):
            seen["timed"] = sides[1].step
            return original_measure(sides, *rest, **more)

        monkeypatch.setattr(execute.accuracy, "check", check)
        monkeypatch.setattr(execute.measure, "measure", measure)
        assert run("mlp").status is Status.PASS
        assert seen["verified"] is seen["timed"]

    def test_a_verdict_can_be_switched_off(self, uncompiled):
        result = run("mlp", accuracy=AccuracySpec(enabled=False))
        assert (result.status, result.measurement.accuracy) == (Status.PASS, "skipped")
        assert "manifest" in result.measurement.accuracy_reason

    def test_a_tolerance_of_the_manifest_counts_before_any_other(self, uncompiled):
        assert run("mlp", accuracy=AccuracySpec(tolerance=0.25)).measurement.accuracy_tolerance == 0.25

    @pytest.mark.slow
    @pytest.mark.parametrize("precision", ["float32", "amp"])
    def test_inductor_passes(self, precision):
        result = run("convnet", compile=CompileSpec(), precision=PrecisionSpec(precision), measure=MeasureSpec(max_time_s=5.0))
        assert (result.status, result.measurement.accuracy) == (Status.PASS, "pass")
        assert result.measurement.compile_s > 1
        assert result.measurement.compile_cpu_s > 0

    @pytest.mark.slow
    def test_a_model_that_draws_random_numbers_is_compiled_so_that_it_can_be_checked(self):
        result = run("noisy", compile=CompileSpec())
        assert (result.status, result.measurement.accuracy) == (Status.PASS, "pass")
        assert "fallback_random" in result.measurement.accuracy_reason

    def test_its_heap_is_kept_while_it_works_and_given_back_between_phases(self, monkeypatch, uncompiled):
        seen, enter = [], execute._Execution._enter
        monkeypatch.setattr(execute.heap, "keep", lambda environment: seen.append("keep") or execute.heap.Heap.KEPT)
        monkeypatch.setattr(execute.heap, "give_back", lambda: seen.append("give back"))
        monkeypatch.setattr(execute._Execution, "_enter", lambda execution, phase: seen.append(phase.value) or enter(execution, phase))
        result = run("mlp")
        assert result.measurement.machine["heap"] == "kept"
        assert seen == ["keep", "build", "eager", "give back", "compile", "give back", "verify", "give back", "time"]


class TestTimeLeft:
    """A model that takes long is timed within the phase's deadline: what comes before the pairs counts, or is left out."""

    def peaks(self, monkeypatch, peak_s, eager_s=0.0):
        """What a measurement is given, and the peaks that it notes, when looking for one takes so long."""
        clock, given = {"now": 0.0}, {}

        def of_step(peak, step, context):
            clock["now"] += peak_s
            return 1.0

        monkeypatch.setattr(execute.Channel, "running_s", lambda channel: clock["now"])
        monkeypatch.setattr(headroom.PeakMemory, "of_step", of_step)
        monkeypatch.setattr(execute._Execution, "_seconds", lambda execution, *rest: eager_s)
        original = execute.measure.measure
        monkeypatch.setattr(execute.measure, "measure", lambda sides, **more: given.update(more) or original(sides, **more))
        found = run("mlp").measurement
        return given["deadline_s"], found.eager_peak_mib, found.compiled_peak_mib

    def test_looking_for_peaks_counts(self, monkeypatch, uncompiled):
        assert self.peaks(monkeypatch, peak_s=7.0) == (DeadlineSpec().time_s - 14.0, 1.0, 1.0)

    def test_there_are_none_of_a_step_that_takes_too_long(self, monkeypatch, uncompiled):
        assert self.peaks(monkeypatch, peak_s=60.0, eager_s=30.0) == (DeadlineSpec().time_s, None, None)


def test_little_time_to_verify_means_fewer_steps(uncompiled):
    result = run("mlp", deadlines=DeadlineSpec(verify_s=1e-6))
    assert "one step instead of several" in result.measurement.accuracy_reason


@pytest.mark.parametrize(("name", "drawn"), [("mlp", 0), ("noisy", 3)])
def test_what_random_numbers_move_is_looked_at_where_some_are_drawn(monkeypatch, uncompiled, name, drawn):
    """With the seed, with it again, and with another."""
    draws, draw = [], execute._Execution._draw
    monkeypatch.setattr(execute._Execution, "_draw", lambda *arguments: draws.append(arguments[-1]) or draw(*arguments))
    assert run(name).measurement.random_numbers == ("decisive" if drawn else "none")
    assert len(draws) == drawn


def test_a_slow_step_is_not_looked_at_for_random_numbers(uncompiled):
    result = run("mlp", deadlines=DeadlineSpec(eager_s=1e-6))
    assert "random numbers was not looked at" in result.measurement.accuracy_reason
    assert result.status is Status.PASS

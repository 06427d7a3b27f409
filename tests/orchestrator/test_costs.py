"""Costs from rows, and estimates where there are none."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.costs import BASE_MIB, CONTEXT_MIB, RECORDED_MARGIN, Cost, estimated, recorded
from orchestrator.store import Store
from tasks.spec import FailureClass, Measurement, ModelSpec, PrecisionSpec, Status, TaskSpec
from tests.orchestrator.stored import STARTED, a_run, a_task, failed, passed

TASKS = [a_task(number) for number in range(3)]


def spec(suite, name, mode="training"):
    return TaskSpec(f"{suite}/{name}/amp/{mode}/inductor", ModelSpec(suite, name), mode, "inductor", PrecisionSpec("amp"))


def test_a_recorded_cost_says_what_could_overlap_and_what_could_not(tmp_path):
    store = Store(str(tmp_path / "r"))
    phases = {"start": 6.0, "build": 1.0, "eager": 0.5, "compile": 40.0, "verify": 1.5, "time": 3.0, "write": 0.25}
    measured = replace(passed(TASKS[0]).measurement, eager_peak_mib=4000.0, compiled_peak_mib=3000.0)
    with a_run(store, TASKS) as run:
        run.append([(TASKS[0], replace(passed(TASKS[0]), phase_s=phases, measurement=measured))])

    (cost,) = recorded(store.root).values()

    assert (cost.shared_s, cost.exclusive_s) == pytest.approx((47.25, 5.0))
    assert cost.peak_mib == pytest.approx(4000.0 * RECORDED_MARGIN + CONTEXT_MIB)


def test_without_phases_the_wall_time_counts_and_without_a_peak_none_is_made_up(tmp_path):
    store = Store(str(tmp_path / "r"))
    outcome = replace(passed(TASKS[0]), phase_s={}, started=STARTED, ended=STARTED + 8, measurement=Measurement())
    with a_run(store, TASKS) as run:
        run.append([(TASKS[0], outcome)])

    assert recorded(store.root) == {TASKS[0].task_id: Cost(8.0)}


def test_the_newest_attempt_that_ran_counts(tmp_path):
    store = Store(str(tmp_path / "r"))
    for name, seconds, started in (("older", 5.0, STARTED - 10), ("newer", 7.0, STARTED)):
        with a_run(store, TASKS, name, started=started) as run:
            run.append([(TASKS[0], replace(passed(TASKS[0]), phase_s={"compile": seconds}))])
    with a_run(store, TASKS, "lost", started=STARTED + 10) as run:
        run.append([(TASKS[0], failed(TASKS[0], status=Status.INFRA_ERROR, failure_class=FailureClass.NODE_LOST))])

    assert recorded(store.root)[TASKS[0].task_id].shared_s == 7.0


def test_larger_models_are_expected_to_take_longer_and_to_need_more_memory():
    small, large = estimated(spec("huggingface", "DistilBertForMaskedLM")), estimated(spec("huggingface", "BartForConditionalGeneration"))

    assert large.shared_s > small.shared_s
    assert large.peak_mib > small.peak_mib
    assert estimated(spec("huggingface", "BartForConditionalGeneration", "inference")).peak_mib < large.peak_mib


def test_memory_grows_with_the_batch_and_shrinks_with_the_precision():
    spec_of = spec("timm", "resmlp_12_224")
    usual, twice = (estimated(replace(spec_of, model=replace(spec_of.model, batch_size=size))).peak_mib for size in (128, 256))
    float32 = estimated(replace(spec_of, precision=PrecisionSpec("float32"))).peak_mib

    assert estimated(spec_of).peak_mib == usual  # the batch that the catalogue knows
    assert twice - BASE_MIB == pytest.approx(2 * (usual - BASE_MIB), rel=0.2)
    assert float32 > usual


def test_published_compile_times_beat_the_size_of_a_model():
    assert estimated(spec("torchbench", "yolov3")).shared_s > 400


def test_a_model_that_nobody_knows_is_a_usual_one():
    assert estimated(spec("mine", "net")).shared_s == estimated(spec("yours", "other")).shared_s > 0

"""Costs from rows, and estimates where there are none."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator import costs, model_table
from orchestrator.costs import START_S, Cost, estimated, recorded
from orchestrator.store import Store
from tasks.spec import FailureClass, Measurement, ModelSpec, Phase, PrecisionSpec, ResourceSpec, Status, TaskSpec
from tests.orchestrator.stored import STARTED, a_run, a_task, failed, passed

TASKS = [a_task(number) for number in range(3)]
PHASES = {"start": 6.0, "build": 1.0, "eager": 0.5, "compile": 40.0, "verify": 1.5, "time": 3.0, "write": 0.25}


def spec(suite, name, mode="training", **resources):
    spec = TaskSpec(f"{suite}/{name}/amp/{mode}/inductor", ModelSpec(suite, name), mode, "inductor", PrecisionSpec("amp"))
    return replace(spec, resources=ResourceSpec(**resources))


def stored(tmp_path, *outcomes, run_id="run-1", started=STARTED):
    store = Store(str(tmp_path / "r"))
    with a_run(store, TASKS, run_id, started=started) as run:
        run.append([(TASKS[0], outcome) for outcome in outcomes])
    return store.root


def on(device, outcome, **fields):
    """``outcome`` on a GPU of that name, or on the CPU."""
    uuid = None if "CPU" in device else "GPU-1"
    return replace(outcome, measurement=replace(outcome.measurement, device=device, gpu_uuid=uuid), **fields)


def test_a_recorded_cost_says_what_could_overlap_and_what_could_not(tmp_path):
    root = stored(tmp_path, replace(passed(TASKS[0]), phase_s=PHASES, owned_s=3.5))

    (cost,) = recorded(root).values()

    assert (cost.shared_s, cost.exclusive_s) == pytest.approx((48.75, 3.5))


def test_on_a_gpu_it_says_what_needs_the_device_and_what_holds_it(tmp_path):
    phases = {"start": 1.0, "build": 2.0, "eager": 3.0, "compile": 40.0, "verify": 5.0, "time": 6.0, "write": 0.5}
    outcome = on("NVIDIA H200", passed(TASKS[0]), phase_s=phases, owned_s=6.5, tuned_s=2.5, warmed_s=1.5)
    outcome = replace(outcome, measurement=replace(outcome.measurement, machine={"room_waited_s": 4.0}))

    (cost,) = recorded(stored(tmp_path, outcome)).values()

    # Alone for 2.5 of the 6.0 that timing took, warm-up 1.5 of them; of what else used the device 4.0 were spent on waiting for memory.
    assert (cost.exclusive_s, cost.held_s, cost.device_s) == pytest.approx((2.5, 4.0, 8.0))
    assert cost.shared_s == pytest.approx(39.0)
    assert cost.total_s == pytest.approx(sum(phases.values()) - 4.0)


@pytest.mark.parametrize(("device", "threads", "shared_s"), [("NVIDIA H200", 4, 66.25), ("NVIDIA H200", 1, 46.25), ("Some CPU", 4, 49.25)])
def test_what_several_processes_compiled_counts_on_a_gpu_as_the_work_of_one(tmp_path, device, threads, shared_s):
    outcome = on(device, passed(TASKS[0]), phase_s=PHASES)
    outcome = replace(outcome, measurement=replace(outcome.measurement, compile_threads=threads, compile_cpu_s=60.0))
    outcome = replace(outcome, owned_s=3.0)

    (cost,) = recorded(stored(tmp_path, outcome)).values()

    assert cost.shared_s == pytest.approx(shared_s)


def test_what_it_waited_for_memory_is_no_cost_of_its_own(tmp_path):
    outcome = replace(passed(TASKS[0]), phase_s=PHASES, owned_s=3.5)
    outcome = replace(outcome, measurement=replace(outcome.measurement, machine={"room_waited_s": 10.5}))

    (cost,) = recorded(stored(tmp_path, outcome)).values()

    assert (cost.shared_s, cost.exclusive_s) == pytest.approx((38.25, 3.5))


def test_a_row_that_did_not_count_owned_seconds_was_alone_while_it_was_timed(tmp_path):
    (cost,) = recorded(stored(tmp_path, replace(passed(TASKS[0]), phase_s=PHASES))).values()

    assert (cost.shared_s, cost.exclusive_s) == pytest.approx((49.25, 3.0))


def test_the_cost_is_that_of_one_process_and_a_plan_has_as_many_as_the_task(tmp_path):
    outcome = passed(TASKS[0])
    outcome = replace(outcome, phase_s=PHASES, owned_s=3.0, measurement=replace(outcome.measurement, process_speedups=(1.5, 1.4, 1.6)))

    (cost,) = recorded(stored(tmp_path, outcome)).values()

    assert (cost.shared_s, cost.exclusive_s) == pytest.approx((49.25 / 3, 1.0))
    assert (cost.times(3).shared_s, cost.times(3).exclusive_s) == pytest.approx((49.25, 3.0))


def test_without_phases_the_wall_time_counts_and_without_a_peak_none_is_made_up(tmp_path):
    outcome = replace(passed(TASKS[0]), phase_s={}, started=STARTED, ended=STARTED + 8, measurement=Measurement())

    assert recorded(stored(tmp_path, outcome)) == {TASKS[0].task_id: Cost(8.0)}


@pytest.mark.parametrize(
    ("status", "failure", "phase", "counts"),
    [
        (Status.OOM, FailureClass.DEVICE_OOM, Phase.EAGER, False),
        (Status.FAIL_COMPILE, FailureClass.COMPILER, Phase.COMPILE, False),
        (Status.TIMEOUT, FailureClass.DEADLINE, Phase.TIME, True),
        (Status.FAIL_ACCURACY, FailureClass.ACCURACY, Phase.TIME, True),
    ],
)
def test_a_task_that_failed_early_does_not_look_short(tmp_path, status, failure, phase, counts):
    ended_early = replace(failed(TASKS[0], 1, status, failure), phase=phase, phase_s={"eager": 1.0}, ended=STARTED + 2)

    assert bool(recorded(stored(tmp_path, ended_early))) is counts


def test_rows_of_another_kind_of_device_say_nothing_and_those_of_the_same_gpu_count_first(tmp_path):
    stored(tmp_path, on("NVIDIA H200", passed(TASKS[0]), phase_s={"compile": 30.0}), run_id="a", started=STARTED - 30)
    stored(tmp_path, on("NVIDIA H100", passed(TASKS[0]), phase_s={"compile": 40.0}), run_id="b", started=STARTED - 20)
    root = stored(tmp_path, on("a CPU", passed(TASKS[0]), phase_s={"compile": 70.0}), run_id="c", started=STARTED - 10)

    def seconds(*asked):
        return [cost.shared_s for cost in recorded(root, *asked).values()]

    assert seconds("cpu") == [70.0]
    assert seconds("cuda") == [40.0]
    assert seconds("cuda", "NVIDIA H200") == [30.0]
    assert seconds("cuda", "NVIDIA B200") == [40.0]


def test_the_newest_attempt_that_ran_counts(tmp_path):
    store = Store(str(tmp_path / "r"))
    for name, seconds, started in (("older", 5.0, STARTED - 10), ("newer", 7.0, STARTED)):
        with a_run(store, TASKS, name, started=started) as run:
            run.append([(TASKS[0], replace(passed(TASKS[0]), phase_s={"compile": seconds}))])
    with a_run(store, TASKS, "lost", started=STARTED + 10) as run:
        run.append([(TASKS[0], failed(TASKS[0], status=Status.INFRA_ERROR, failure_class=FailureClass.NODE_LOST))])

    assert recorded(store.root)[TASKS[0].task_id].shared_s == 7.0


@pytest.fixture
def compiles(monkeypatch):
    """Instead of the table of compile seconds."""
    table = {"timm/lcnet_050": {"amp": 224.0, "float32": 100.0}, "timm/rexnet_100": {"float32": 100.0}}
    monkeypatch.setattr(costs, "_compiles", lambda: table)


def in_float32(task):
    return replace(task, precision=PrecisionSpec("float32"))


def test_compile_seconds_that_were_seen_beat_the_size_of_a_model(compiles):
    """In the task's dtype, or else carried over from the other one."""
    lcnet, rexnet = spec("timm", "lcnet_050"), spec("timm", "rexnet_100")
    assert estimated(lcnet).shared_s == pytest.approx(START_S["cpu"] + 224.0)
    assert estimated(in_float32(lcnet)).shared_s == pytest.approx(START_S["cpu"] + 100.0)
    assert estimated(in_float32(rexnet)).shared_s == pytest.approx(START_S["cpu"] + 100.0)
    assert estimated(rexnet).shared_s == pytest.approx(START_S["cpu"] + 112.0)


def test_the_table_has_models_that_the_suites_know():
    table = costs._compiles()
    known = {f"{row.suite}/{row.name}" for row in model_table.known()}
    assert len(table) > 100
    assert set(table) <= known
    assert {dtype for seen in table.values() for dtype in seen} == {"amp", "float32"}
    assert all(1 < seconds < 1000 for seen in table.values() for seconds in seen.values())


def test_larger_models_are_expected_to_take_longer(compiles):
    small, large = estimated(spec("huggingface", "DistilBertForMaskedLM")), estimated(spec("huggingface", "BartForConditionalGeneration"))

    assert large.shared_s > small.shared_s


def test_timing_is_expected_to_be_alone_and_warming_up_to_hold_a_gpu():
    quick = spec("timm", "lcnet_050", device="cuda", num_gpus=1.0)
    quick = replace(quick, measure=replace(quick.measure, max_time_s=3.0, warmup_max_s=3.0))
    cold = replace(quick, measure=replace(quick.measure, warmup_max_s=0.2))

    assert 3.0 < estimated(quick).exclusive_s < 4.0
    assert estimated(quick).held_s == pytest.approx(estimated(cold).held_s + 1.0)
    on_cpu = replace(quick, resources=replace(quick.resources, device="cpu", num_gpus=0.0))
    assert (estimated(on_cpu).exclusive_s, estimated(on_cpu).held_s, estimated(on_cpu).device_s) == (3.5, 0.0, 0.0)


def test_gpus_of_one_node_are_expected_to_be_in_each_others_way():
    """In what a host does; not in what the device does alone. Twice as many cost a quarter more, and a node of the CPU is one device."""
    task = spec("timm", "lcnet_050", device="cuda", num_gpus=1.0)
    alone, two, four = (estimated(task, gpus) for gpus in (1, 2, 4))

    assert alone == estimated(task)
    assert [two.shared_s, four.shared_s] == pytest.approx([1.25 * alone.shared_s, 1.5 * alone.shared_s])
    assert [two.device_s, four.device_s] == pytest.approx([1.25 * alone.device_s, 1.5 * alone.device_s])
    assert {(cost.exclusive_s, cost.held_s) for cost in (two, four)} == {(alone.exclusive_s, alone.held_s)}
    on_cpu = replace(task, resources=replace(task.resources, device="cpu", num_gpus=0.0))
    assert estimated(on_cpu, 4) == estimated(on_cpu)


def test_a_model_that_nobody_knows_is_a_usual_one():
    assert estimated(spec("mine", "net")).shared_s == estimated(spec("yours", "other")).shared_s > 0

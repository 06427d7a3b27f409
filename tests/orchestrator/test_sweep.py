"""The state machine, alone: single rules by hand, and whole runs through random orders of events with duplicates, delays and losses."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from orchestrator.errors import ExitCode
from orchestrator.events import (
    Begin,
    Cancel,
    ClusterLost,
    Drain,
    Ended,
    Finish,
    Force,
    Heartbeat,
    Launch,
    Lost,
    NodesChanged,
    PhaseStarted,
    Refused,
    RowsWritten,
    Started,
    StoreFailed,
    Tick,
    WriteRow,
)
from orchestrator.policy import Policy
from orchestrator.sweep import DEADLINE_MARGIN_S, SILENCE_S, IllegalTransition, State, Sweep, SweepTask
from tasks.spec import DeadlineSpec, FailureClass, Measurement, Outcome, Phase, Quality, Status

NODES = frozenset({"a", "b"})


def outcome(task_id, attempt, status=Status.PASS, failure=None, node="a", neighbours=None, quality=None):
    return Outcome(
        task_id, attempt, status, Phase.WRITE, failure, node=node, measurement=Measurement(neighbours=neighbours, quality=quality)
    )


def started(tasks=("t",), max_in_flight=8, policy=None, nodes=NODES, fitting=()):
    sweep = Sweep([task if isinstance(task, SweepTask) else SweepTask(task) for task in tasks], policy or Policy(), max_in_flight)
    sweep.handle(NodesChanged(0.0, nodes, fitting))
    return sweep, sweep.handle(Begin(0.0))


def test_a_task_goes_from_plan_to_durable_row():
    sweep, actions = started()
    assert actions == [Launch("t", 1)]
    assert sweep.handle(Started(1.0, "t", 1, "a")) == []
    assert sweep.handle(PhaseStarted(2.0, "t", 1, Phase.COMPILE)) == []
    assert sweep.active()[0].phase is Phase.COMPILE
    assert sweep.handle(Ended(3.0, "t", 1, outcome("t", 1))) == [WriteRow("t", outcome("t", 1))]
    assert not sweep.finished
    assert sweep.handle(RowsWritten(4.0, ("t",))) == [Finish(ExitCode.PASSED, "finished")]
    assert [entry.state for entry in sweep.story("t")][-1] is State.TERMINAL


def flagged(attempt, quality=Quality.CONTAMINATED, node="a"):
    return outcome("t", attempt, node=node, quality=quality.value)


@pytest.fixture
def remeasuring():
    """One task, whose first attempt passed on a machine that was not fit to measure."""
    sweep, _ = started(policy=Policy(infrastructure_retries=0, quality_retries=1))
    sweep.handle(Started(1.0, "t", 1, "a"))
    assert sweep.handle(Ended(2.0, "t", 1, flagged(1))) == []
    assert sweep.state("t") is State.RETRYING
    return sweep


def test_what_an_unfit_machine_measured_is_measured_again_elsewhere_and_the_last_attempt_counts(remeasuring):
    assert remeasuring.handle(Tick(12.0)) == [Launch("t", 2, frozenset({"a"}))]
    last = flagged(2, Quality.NOISY, "b")
    assert remeasuring.handle(Ended(20.0, "t", 2, last)) == [WriteRow("t", last)]


@pytest.mark.parametrize("quality", [Quality.OK, Quality.WIDE, Quality.RECOMPILED])
def test_what_the_machine_is_not_to_blame_for_is_not_measured_again(quality):
    sweep, _ = started(policy=Policy(quality_retries=1))
    assert sweep.handle(Ended(2.0, "t", 1, flagged(1, quality))) == [WriteRow("t", flagged(1, quality))]


def test_where_the_machinery_breaks_off_the_second_measurement_the_first_counts(remeasuring):
    remeasuring.handle(Tick(12.0))
    assert remeasuring.handle(Lost(20.0, "t", 2, FailureClass.WORKER_LOST, "killed")) == [WriteRow("t", flagged(1))]


def test_where_the_second_measurement_fails_of_itself_it_failed(remeasuring):
    remeasuring.handle(Tick(12.0))
    wrong = outcome("t", 2, Status.FAIL_ACCURACY, FailureClass.ACCURACY)
    assert remeasuring.handle(Ended(20.0, "t", 2, wrong)) == [WriteRow("t", wrong)]


def test_a_drain_takes_what_was_measured_before(remeasuring):
    assert remeasuring.handle(Drain(5.0)) == [WriteRow("t", flagged(1))]


def test_a_drain_takes_back_a_second_measurement_that_does_not_run_yet(remeasuring):
    remeasuring.handle(Tick(12.0))
    assert remeasuring.handle(Drain(13.0)) == [Cancel("t", 2), WriteRow("t", flagged(1))]


def test_no_more_in_flight_than_allowed_and_in_order():
    sweep, actions = started(("a", "b", "c"), max_in_flight=2)
    assert [action.task_id for action in actions] == ["a", "b"]
    actions = sweep.handle(Ended(1.0, "a", 1, outcome("a", 1)))
    assert [action.task_id for action in actions if isinstance(action, Launch)] == ["c"]


@pytest.mark.parametrize(
    ("statuses", "code"),
    [
        ([Status.PASS, Status.PASS], ExitCode.PASSED),
        ([Status.PASS, Status.FAIL_COMPILE], ExitCode.SOME_FAILED),
        ([Status.PASS, Status.UNSUPPORTED], ExitCode.SOME_FAILED),
        ([Status.FAIL_EAGER, Status.FAIL_EAGER], ExitCode.SOME_FAILED),
        ([Status.PASS, Status.INFRA_ERROR], ExitCode.INFRASTRUCTURE),
    ],
)
def test_the_exit_status_says_what_the_rows_say(statuses, code):
    classes = {
        Status.FAIL_COMPILE: FailureClass.COMPILER,
        Status.UNSUPPORTED: FailureClass.UNSUPPORTED,
        Status.FAIL_EAGER: FailureClass.MODEL,
    }
    sweep, _ = started([f"t{i}" for i in range(len(statuses))], policy=Policy(infrastructure_retries=0))
    for i, status in enumerate(statuses):
        failure = FailureClass.WORKER_LOST if status is Status.INFRA_ERROR else classes.get(status)
        sweep.handle(Ended(1.0, f"t{i}", 1, outcome(f"t{i}", 1, status, failure)))
    actions = sweep.handle(RowsWritten(2.0, tuple(f"t{i}" for i in range(len(statuses)))))
    assert actions == [Finish(code, "finished")]


def test_a_run_in_which_everything_is_excluded_has_measured_nothing():
    sweep, actions = started([SweepTask("t", skip="known bad")])
    assert isinstance(actions[0], WriteRow)
    assert actions[0].outcome.status is Status.SKIPPED
    assert actions[0].outcome.error == "known bad"
    assert sweep.handle(RowsWritten(1.0, ("t",))) == [Finish(ExitCode.SOME_FAILED, "finished")]


def test_excluded_tasks_do_not_spoil_a_run_that_passed():
    sweep, _ = started(["t", SweepTask("u", skip="known bad")])
    sweep.handle(Ended(1.0, "t", 1, outcome("t", 1)))
    assert sweep.handle(RowsWritten(2.0, ("t", "u"))) == [Finish(ExitCode.PASSED, "finished")]


def test_rows_of_an_earlier_driver_are_kept_and_not_run_again():
    sweep, actions = started([SweepTask("old", done=Status.PASS), "new"])
    assert actions == [Launch("new", 1)]
    sweep.handle(Ended(1.0, "new", 1, outcome("new", 1)))
    assert sweep.handle(RowsWritten(2.0, ("new",))) == [Finish(ExitCode.PASSED, "finished")]


def test_a_model_failure_is_final_and_an_infrastructure_failure_is_tried_again_elsewhere():
    sweep, _ = started(("m", "n"))
    actions = sweep.handle(Ended(1.0, "m", 1, outcome("m", 1, Status.CRASH, FailureClass.CRASH)))
    assert isinstance(actions[0], WriteRow)
    sweep.handle(Started(1.0, "n", 1, "a"))
    assert sweep.handle(Lost(2.0, "n", 1, FailureClass.NODE_LOST, "gone")) == []
    assert sweep.state("n") is State.RETRYING
    assert sweep.handle(Tick(100.0)) == [Launch("n", 2, frozenset({"a"}))]


def test_retries_end():
    sweep, _ = started(policy=Policy(infrastructure_retries=2))
    for attempt in (1, 2, 3):
        actions = sweep.handle(Lost(attempt * 100.0, "t", attempt, FailureClass.WORKER_LOST, "died"))
        if attempt < 3:
            assert actions == []
            assert [type(action) for action in sweep.handle(Tick(attempt * 100.0 + 50))] == [Launch]
    assert actions[0].outcome.status is Status.INFRA_ERROR
    assert actions[0].outcome.attempt == 3


def test_infrastructure_classes_share_one_budget():
    sweep, _ = started(policy=Policy(infrastructure_retries=1))
    sweep.handle(Lost(1.0, "t", 1, FailureClass.WORKER_LOST, "died"))
    sweep.handle(Tick(50.0))
    actions = sweep.handle(Lost(51.0, "t", 2, FailureClass.NODE_LOST, "gone"))
    assert isinstance(actions[0], WriteRow)


def test_out_of_memory_with_neighbours_means_once_more_alone():
    sweep, _ = started()
    oom = outcome("t", 1, Status.OOM, FailureClass.DEVICE_OOM, neighbours=3)
    assert sweep.handle(Ended(1.0, "t", 1, oom)) == []
    assert sweep.handle(Tick(2.0)) == [Launch("t", 2, alone=True)]
    again = outcome("t", 2, Status.OOM, FailureClass.DEVICE_OOM, neighbours=0)
    assert sweep.handle(Ended(3.0, "t", 2, again)) == [WriteRow("t", again)]


def test_out_of_memory_before_anything_is_known_of_neighbours_means_once_more_alone_too():
    sweep, _ = started((SweepTask("t", shares=True),))
    oom = outcome("t", 1, Status.OOM, FailureClass.DEVICE_OOM)
    assert sweep.handle(Ended(1.0, "t", 1, oom)) == []
    assert sweep.handle(Tick(2.0)) == [Launch("t", 2, alone=True)]
    again = outcome("t", 2, Status.OOM, FailureClass.DEVICE_OOM)
    assert sweep.handle(Ended(3.0, "t", 2, again)) == [WriteRow("t", again)]


def test_a_small_task_without_memory_asks_for_more_before_it_waits_for_an_empty_device():
    sweep, _ = started((SweepTask("t", shares=True, small=True),))
    for attempt in (1, 2):
        assert sweep.handle(Ended(float(attempt), "t", attempt, outcome("t", attempt, Status.OOM, FailureClass.DEVICE_OOM))) == []
        (launch,) = sweep.handle(Tick(attempt + 0.5))
        assert (launch.attempt, launch.roomy, launch.alone) == (attempt + 1, True, attempt == 2)
    last = outcome("t", 3, Status.OOM, FailureClass.DEVICE_OOM)
    assert sweep.handle(Ended(4.0, "t", 3, last)) == [WriteRow("t", last)]


def test_out_of_memory_alone_is_final():
    sweep, _ = started()
    oom = outcome("t", 1, Status.OOM, FailureClass.DEVICE_OOM, neighbours=0)
    assert sweep.handle(Ended(1.0, "t", 1, oom)) == [WriteRow("t", oom)]


def test_a_node_that_fails_two_tasks_gets_no_more_unless_it_is_the_last():
    sweep, _ = started(("t", "u", "v"), max_in_flight=2)
    for task_id in ("t", "u"):
        sweep.handle(Ended(1.0, task_id, 1, outcome(task_id, 1, Status.INFRA_ERROR, FailureClass.DEVICE)))
    assert sweep.quarantined == {"a"}
    assert all("a" in action.avoid for action in sweep.handle(Tick(500.0)) if isinstance(action, Launch))
    alone, _ = started(("t", "u"), nodes=frozenset({"a"}))
    for task_id in ("t", "u"):
        alone.handle(Ended(1.0, task_id, 1, outcome(task_id, 1, Status.INFRA_ERROR, FailureClass.DEVICE)))
    assert alone.quarantined == frozenset()
    assert [action.avoid for action in alone.handle(Tick(500.0))] == [frozenset(), frozenset()]


def test_a_node_that_leaves_takes_its_tasks_with_it_whatever_ray_says():
    sweep, _ = started()
    sweep.handle(Started(1.0, "t", 1, "a"))
    assert sweep.handle(NodesChanged(2.0, frozenset({"b"}))) == [Cancel("t", 1)]
    assert sweep.handle(Tick(100.0)) == [Launch("t", 2)]  # and nobody avoids a node that is not there


def test_a_node_that_cannot_run_the_task_is_no_elsewhere():
    sweep, _ = started(nodes=frozenset({"head", "w1"}), fitting=(frozenset({"w1"}),))
    sweep.handle(Ended(1.0, "t", 1, outcome("t", 1, Status.INFRA_ERROR, FailureClass.DEVICE, node="w1")))
    assert sweep.handle(Tick(100.0)) == [Launch("t", 2)]


def test_of_the_nodes_that_can_run_a_task_one_is_left_whatever_fails_on_them():
    workers = frozenset({"w1", "w2"})
    tasks = [SweepTask(name, request=number) for number, name in enumerate(("t", "u"))] + [SweepTask("only_w1", request=2)]
    fitting = (workers, workers, frozenset({"w1"}))
    sweep, _ = started(tasks, policy=Policy(infrastructure_retries=9), nodes=workers | {"head"}, fitting=fitting)
    for attempt, node in enumerate(("w1", "w2"), 1):
        for task_id in ("t", "u"):
            sweep.handle(Ended(100.0 * attempt, task_id, attempt, outcome(task_id, attempt, Status.INFRA_ERROR, FailureClass.DEVICE, node)))
        launches = sweep.handle(Tick(100.0 * attempt + 50))
        assert [action.avoid for action in launches] == [{"w1"}, {"w1"}]
    assert sweep.quarantined == {"w1"}
    sweep.handle(Lost(300.0, "only_w1", 1, FailureClass.WORKER_LOST, "died"))
    assert sweep.handle(Tick(350.0)) == [Launch("only_w1", 2)]


GPUS = {"a": 2, "b": 1}


def with_gpus(nodes=("a", "b"), tasks="tuvw"):
    sweep = Sweep([SweepTask(task_id) for task_id in tasks], Policy(infrastructure_retries=9), 8)
    sweep.handle(NodesChanged(0.0, frozenset(nodes), gpus={node: GPUS[node] for node in nodes}))
    sweep.handle(Begin(0.0))
    return sweep


def fail_on(sweep, at_s, task_id, attempt, node, gpu):
    sweep.handle(Started(at_s, task_id, attempt, node, (gpu,)))
    sweep.handle(Ended(at_s, task_id, attempt, outcome(task_id, attempt, Status.INFRA_ERROR, FailureClass.DEVICE, node)))
    return sweep.handle(Tick(at_s + 50.0))


def test_a_gpu_that_fails_two_tasks_is_refused_and_its_node_stays():
    sweep = with_gpus(nodes=("a",))
    fail_on(sweep, 1.0, "t", 1, "a", "0")
    fail_on(sweep, 100.0, "u", 1, "a", "1")
    assert sweep.quarantined == frozenset(), "one task each"
    (launch,) = fail_on(sweep, 200.0, "v", 1, "a", "0")
    assert launch == Launch("v", 2, frozenset(), False, frozenset({"a/0"}))
    fail_on(sweep, 300.0, "w", 1, "a", "1")
    assert sweep.quarantined == {"a/0"}, "the last GPU is never given up"


def test_a_node_whose_gpus_are_all_bad_gets_no_more_while_there_is_another():
    sweep = with_gpus()
    for number, (task_id, gpu) in enumerate(zip("tuvw", "0011", strict=True)):
        fail_on(sweep, 100.0 * number, task_id, 1, "a", gpu)
    assert sweep.quarantined == {"a", "a/0", "a/1"}


def test_an_attempt_that_refused_its_gpu_is_launched_again_and_it_is_no_failure():
    sweep = with_gpus(tasks="t")
    assert sweep.handle(Refused(1.0, "t", 1)) == [Launch("t", 2)]
    assert sweep.handle(Refused(1.0, "t", 1)) == []
    assert sweep.handle(Ended(2.0, "t", 2, outcome("t", 2)))[0] == WriteRow("t", outcome("t", 2))


def test_a_failure_that_is_known_of_no_gpu_counts_against_the_node():
    sweep = with_gpus()
    for task_id in "tu":
        sweep.handle(Ended(1.0, task_id, 1, outcome(task_id, 1, Status.INFRA_ERROR, FailureClass.DEVICE)))
    assert sweep.quarantined == {"a"}


def test_a_task_that_waited_in_vain_avoids_no_node_any_more():
    sweep, _ = started()
    sweep.handle(Ended(1.0, "t", 1, outcome("t", 1, Status.INFRA_ERROR, FailureClass.DEVICE)))
    assert sweep.handle(Tick(10.0)) == [Launch("t", 2, frozenset({"a"}))]
    assert sweep.handle(Tick(2000.0)) == [Cancel("t", 2)]
    assert sweep.handle(Tick(3000.0)) == [Launch("t", 3)]


def test_an_attempt_whose_last_places_leave_is_placed_anew():
    sweep, _ = started()
    sweep.handle(Ended(1.0, "t", 1, outcome("t", 1, Status.INFRA_ERROR, FailureClass.DEVICE)))
    assert sweep.handle(Tick(10.0)) == [Launch("t", 2, frozenset({"a"}))]
    assert sweep.handle(NodesChanged(11.0, frozenset({"a"}))) == [Cancel("t", 2), Launch("t", 3)]
    assert sweep.handle(Ended(12.0, "t", 2, outcome("t", 2))) == []


def test_the_start_of_an_attempt_is_its_own():
    sweep, _ = started()
    sweep.handle(Started(1.0, "t", 1, "a"))
    sweep.handle(Lost(2.0, "t", 1, FailureClass.WORKER_LOST, "died"))
    sweep.handle(Tick(100.0))
    assert sweep.active()[0].started_s == 0.0
    sweep.handle(Started(110.0, "t", 2, "a"))
    assert sweep.active()[0].started_s == 110.0


def test_what_an_event_would_give_up_is_known_before():
    sweep, _ = started(("t", "u"))
    sweep.handle(Started(1.0, "t", 1, "a"))
    sweep.handle(Started(1.0, "u", 1, "b"))
    sweep.handle(Heartbeat(100.0, "u", 1))
    assert sweep.gives_up(Tick(110.0)) == []
    assert sweep.gives_up(Tick(10.0 + SILENCE_S)) == [("t", 1)]
    assert sweep.gives_up(NodesChanged(2.0, frozenset({"a"}))) == [("u", 1)]
    assert sweep.gives_up(ClusterLost(2.0, "gone")) == sweep.gives_up(Force(2.0)) == [("t", 1), ("u", 1)]


def test_silence_is_loss():
    sweep, _ = started()
    sweep.handle(Started(1.0, "t", 1, "a"))
    sweep.handle(Heartbeat(50.0, "t", 1))
    assert sweep.handle(Tick(50.0 + SILENCE_S)) == []
    assert sweep.handle(Tick(50.1 + SILENCE_S)) == [Cancel("t", 1)]
    assert sweep.state("t") is State.RETRYING


def test_the_driver_has_a_deadline_of_its_own_that_leaves_out_paused_time():
    sweep, _ = started([SweepTask("t", DeadlineSpec(task_s=100.0))])
    sweep.handle(Started(0.0, "t", 1, "a"))
    limit_s = 100.0 + DEADLINE_MARGIN_S
    sweep.handle(Heartbeat(limit_s, "t", 1, paused_s=30.0))
    assert sweep.handle(Tick(limit_s + 29.0)) == []
    sweep.handle(Heartbeat(limit_s + 30.5, "t", 1, paused_s=30.0))
    actions = sweep.handle(Tick(limit_s + 31.0))
    assert actions[0] == Cancel("t", 1)
    assert actions[1].outcome.status is Status.TIMEOUT


def test_a_task_that_never_starts_although_nothing_else_runs_is_unscheduled():
    sweep, _ = started(("t", "u"), policy=Policy(infrastructure_retries=0))
    sweep.handle(Started(1.0, "u", 1, "a"))
    for at_s in range(0, 2000, 100):
        sweep.handle(Heartbeat(float(at_s), "u", 1))
        assert sweep.handle(Tick(float(at_s))) == []
    sweep.handle(Ended(2000.0, "u", 1, outcome("u", 1)))
    actions = sweep.handle(Tick(3000.0))
    assert actions[0] == Cancel("t", 1)
    assert actions[1].outcome.failure_class is FailureClass.UNSCHEDULED


def test_a_drain_launches_nothing_more_and_leaves_the_rest_for_a_resume():
    sweep, _ = started(("t", "u", "v"), max_in_flight=1)
    sweep.handle(Started(0.5, "t", 1, "a"))
    assert sweep.handle(Drain(1.0)) == []
    assert [type(action) for action in sweep.handle(Ended(2.0, "t", 1, outcome("t", 1)))] == [WriteRow]
    assert sweep.handle(RowsWritten(3.0, ("t",))) == [Finish(ExitCode.INTERRUPTED, "interrupted")]
    assert sweep.state("u") is State.QUEUED


def test_a_drain_takes_back_what_does_not_run_yet():
    sweep, _ = started(("t", "u", "v"))
    sweep.handle(Started(0.5, "t", 1, "a"))
    assert sweep.handle(Drain(1.0)) == [Cancel("u", 1), Cancel("v", 1)]
    assert [progress.task_id for progress in sweep.active()] == ["t"]
    assert sweep.handle(Started(1.5, "u", 1, "a")) == []  # it was on its way
    sweep.handle(Ended(2.0, "t", 1, outcome("t", 1)))
    assert sweep.handle(RowsWritten(3.0, ("t",))) == [Finish(ExitCode.INTERRUPTED, "interrupted")]
    assert {sweep.state("u"), sweep.state("v")} == {State.QUEUED}


def test_a_run_whose_time_is_up_drains():
    sweep = Sweep([SweepTask("t"), SweepTask("u")], Policy(), 8, until_s=100.0)
    sweep.handle(NodesChanged(0.0, NODES))
    sweep.handle(Begin(0.0))
    sweep.handle(Started(1.0, "t", 1, "a"))
    assert sweep.handle(Tick(99.0)) == []
    assert sweep.handle(Tick(100.0)) == [Cancel("u", 1)]
    sweep.handle(Ended(101.0, "t", 1, outcome("t", 1)))
    assert sweep.handle(RowsWritten(102.0, ("t",))) == [Finish(ExitCode.INTERRUPTED, "its time is up")]


def test_a_task_that_would_not_end_in_time_is_passed_by_shorter_ones_and_then_left():
    tasks = [SweepTask(name, expected_s=seconds) for name, seconds in (("long", 90.0), ("short", 20.0), ("medium", 60.0))]
    sweep = Sweep(tasks, Policy(), 1, until_s=100.0)
    sweep.handle(NodesChanged(0.0, NODES))
    assert sweep.handle(Begin(20.0)) == [Launch("short", 1)]
    assert sweep.handle(Ended(40.0, "short", 1, outcome("short", 1)))[1:] == [Launch("medium", 1)]
    sweep.handle(RowsWritten(41.0, ("short",)))
    sweep.handle(Ended(95.0, "medium", 1, outcome("medium", 1)))
    assert sweep.handle(RowsWritten(96.0, ("medium",))) == [Finish(ExitCode.INTERRUPTED, "its time is up")]
    assert sweep.state("long") is State.QUEUED


def test_a_failure_that_would_be_tried_again_gets_no_row_while_draining():
    sweep, _ = started()
    sweep.handle(Started(0.5, "t", 1, "a"))
    sweep.handle(Drain(1.0))
    actions = sweep.handle(Lost(2.0, "t", 1, FailureClass.NODE_LOST, "gone"))
    assert actions == [Finish(ExitCode.INTERRUPTED, "interrupted")]


def test_force_takes_everything_back():
    sweep, _ = started(("t", "u"))
    for task_id in ("t", "u"):
        sweep.handle(Started(0.5, task_id, 1, "a"))
    sweep.handle(Drain(1.0))
    assert sweep.handle(Force(2.0)) == [Cancel("t", 1), Cancel("u", 1), Finish(ExitCode.INTERRUPTED, "interrupted")]


def test_a_store_that_fails_stops_the_run_with_what_runs_drained():
    sweep, _ = started(("t", "u"), max_in_flight=1)
    assert sweep.handle(StoreFailed(1.0, "disk full")) == []
    actions = sweep.handle(Ended(2.0, "t", 1, outcome("t", 1)))
    assert actions[-1] == Finish(ExitCode.INFRASTRUCTURE, "disk full")


def test_a_cluster_that_is_gone_ends_the_run_once_what_had_finished_is_written():
    sweep, _ = started(("t", "u", "v"), max_in_flight=2)
    sweep.handle(Ended(1.0, "t", 1, outcome("t", 1)))
    assert sweep.handle(ClusterLost(2.0, "the head is gone")) == []
    assert sweep.handle(RowsWritten(3.0, ("t",))) == [Finish(ExitCode.INFRASTRUCTURE, "the head is gone")]
    assert [sweep.state(task_id) for task_id in "tuv"] == [State.TERMINAL, State.QUEUED, State.QUEUED]


def test_late_and_repeated_events_change_nothing():
    sweep, _ = started()
    sweep.handle(Lost(1.0, "t", 1, FailureClass.WORKER_LOST, "died"))
    sweep.handle(Tick(100.0))
    before = sweep.state("t")
    assert sweep.handle(Ended(101.0, "t", 1, outcome("t", 1))) == []
    assert sweep.state("t") is before
    sweep.handle(Ended(102.0, "t", 2, outcome("t", 2)))
    assert sweep.handle(Ended(103.0, "t", 2, outcome("t", 2))) == []
    assert "ignored" in sweep.story("t")[-1].what


def test_impossible_events_raise_with_the_story():
    sweep, _ = started()
    with pytest.raises(IllegalTransition, match="no such task"):
        sweep.handle(Started(1.0, "nobody", 1, "a"))
    with pytest.raises(IllegalTransition, match=r"(?s)never launched.*launched: attempt 1"):
        sweep.handle(Started(1.0, "t", 7, "a"))
    with pytest.raises(IllegalTransition, match="a row was written"):
        sweep.handle(RowsWritten(1.0, ("t",)))


# --- whole runs in random order ---------------------------------------------------------------------------------------------------


ALL_NODES = frozenset({"a", "b", "head"})
PLACES = (frozenset({"a", "b"}), frozenset({"b"}))  # by request; nothing runs on the head
OWN_VERDICTS = {FailureClass.NODE_LOST, FailureClass.UNSCHEDULED, FailureClass.DEADLINE, FailureClass.EXCLUDED}


@dataclass
class World:
    """A cluster that loses, repeats and delays, and a store that may fail."""

    rng: random.Random
    sweep: Sweep
    tasks: dict[str, SweepTask]
    max_in_flight: int
    now_s: float = 0.0
    nodes: frozenset = ALL_NODES
    pending: list = field(default_factory=list)  # events under way, in no particular order
    in_flight: set = field(default_factory=set)
    rows: dict = field(default_factory=dict)
    unwritten: list = field(default_factory=list)
    finish: Finish | None = None
    stopped: bool = False
    reported: dict = field(default_factory=dict)  # attempt -> what was said of its end
    passed: set = field(default_factory=set)  # tasks of which a passed attempt was reported while it was on
    flagged: set = field(default_factory=set)  # those of which only such were that a machine was not fit to measure

    def nodes_changed(self):
        return NodesChanged(self.now_s, self.nodes, tuple(places & self.nodes for places in PLACES))

    def carry_out(self, actions):
        for action in actions:
            assert self.finish is None, "an action after the end"
            if isinstance(action, Launch):
                assert not self.stopped, "launched while draining"
                assert action.task_id not in self.rows, "a task with a row was launched again"
                assert action.task_id not in self.passed, "a task that passed was launched again"
                assert self.tasks[action.task_id].done is None, "a task that an earlier driver decided was launched again"
                assert action.task_id not in {task_id for task_id, _ in self.in_flight}, "launched twice at once"
                places = PLACES[self.tasks[action.task_id].request] & self.nodes
                assert not places or places - action.avoid, "launched where nothing can run it"
                self.in_flight.add((action.task_id, action.attempt))
                assert len(self.in_flight) <= self.max_in_flight
                self.plan_attempt(action)
            elif isinstance(action, Cancel):
                self.in_flight.discard((action.task_id, action.attempt))
            elif isinstance(action, WriteRow):
                assert action.task_id not in self.rows, "two rows for one task"
                self.check_row(action)
                self.rows[action.task_id] = action.outcome
                self.unwritten.append(action.task_id)
                self.in_flight = {key for key in self.in_flight if key[0] != action.task_id}
            else:
                self.finish = action

    def check_row(self, action):
        """A row says what was reported of its attempt, or what the driver itself may conclude."""
        said = self.reported.get((action.task_id, action.outcome.attempt), [])
        if action.here:
            assert action.outcome.status is not Status.PASS
            assert action.outcome.failure_class in OWN_VERDICTS | {failure for failure in said if isinstance(failure, FailureClass)}
        else:
            assert action.outcome in said, "a row that nobody reported"

    def plan_attempt(self, launch):
        rng, key = self.rng, (launch.task_id, launch.attempt)
        places = PLACES[self.tasks[launch.task_id].request]
        node = rng.choice(sorted(places - launch.avoid) or sorted(places))
        events = [
            lambda t: Started(t, *key, node),
            lambda t: PhaseStarted(t, *key, rng.choice(list(Phase))),
            lambda t: Heartbeat(t, *key, rng.random()),
        ]
        fate = rng.random()
        if fate < 0.6:
            status, failure = rng.choice(
                [
                    (Status.PASS, None),
                    (Status.PASS, None),
                    (Status.FAIL_RUN, FailureClass.COMPILER),
                    (Status.OOM, FailureClass.DEVICE_OOM),
                    (Status.INFRA_ERROR, FailureClass.DEVICE),
                ]
            )
            quality = rng.choice([None, None, Quality.WIDE, Quality.DRIFT]) if status is Status.PASS else None
            result = outcome(*key, status, failure, node, rng.choice([None, 0, 2]), quality)
            events.append(lambda t: Ended(t, *key, result))
        elif fate < 0.85:
            failure = rng.choice([FailureClass.WORKER_LOST, FailureClass.NODE_LOST, FailureClass.HOST_OOM])
            events.append(lambda t: Lost(t, *key, failure, "lost"))
        # otherwise: silence, which only the driver's deadlines end
        events = [event for event in events if rng.random() > 0.1]  # some get lost
        events += [event for event in events if rng.random() < 0.2]  # some come twice
        rng.shuffle(events)  # and in any order
        self.pending += events

    def step(self):
        rng = self.rng
        self.now_s += rng.random() * 5
        choice = rng.random()
        if self.pending and choice < 0.6:
            event = self.pending.pop(rng.randrange(len(self.pending)))(self.now_s)
        elif self.unwritten and choice < 0.75:
            count = rng.randint(1, len(self.unwritten))
            event, self.unwritten = RowsWritten(self.now_s, tuple(self.unwritten[:count])), self.unwritten[count:]
        elif choice < 0.77:
            self.nodes = frozenset(rng.sample(sorted(ALL_NODES), rng.randint(1, 3)))
            event = self.nodes_changed()
        elif choice < 0.771:
            self.stopped, event = (
                True,
                rng.choice([Drain(self.now_s), Force(self.now_s), StoreFailed(self.now_s, "disk full"), ClusterLost(self.now_s, "gone")]),
            )
        else:
            self.now_s += rng.choice([0.0, 10.0, 200.0])
            event = Tick(self.now_s)
        if isinstance(event, (Ended, Lost)):
            self.note_end(event)
        elif isinstance(event, ClusterLost):
            self.in_flight.clear()
        self.carry_out(self.sweep.handle(event))

    def note_end(self, event):
        key = (event.task_id, event.attempt)
        said = event.outcome if isinstance(event, Ended) else event.failure_class
        self.reported.setdefault(key, []).append(said)
        if key in self.in_flight and isinstance(event, Ended) and said.status is Status.PASS:
            (self.flagged if said.measurement.quality is Quality.DRIFT else self.passed).add(event.task_id)
        self.in_flight.discard(key)

    def exit_code(self):
        """What the rows say, those of an earlier driver included."""
        statuses = [row.status for row in self.rows.values()] + [task.done for task in self.tasks.values() if task.done]
        if Status.INFRA_ERROR in statuses:
            return ExitCode.INFRASTRUCTURE
        return ExitCode.PASSED if Status.PASS in statuses and set(statuses) <= {Status.PASS, Status.SKIPPED} else ExitCode.SOME_FAILED


def a_random_task(rng, task_id):
    skip = "bad" if rng.random() < 0.1 else None
    done = rng.choice([Status.PASS, Status.CRASH, Status.SKIPPED]) if rng.random() < 0.1 else None
    first_attempt = 3 if rng.random() < 0.1 else 1
    return SweepTask(task_id, DeadlineSpec(task_s=100.0), skip, done, first_attempt, rng.random() < 0.5, rng.randrange(len(PLACES)))


def play(seed):
    rng = random.Random(seed)
    tasks = {task_id: a_random_task(rng, task_id) for task_id in (f"t{i}" for i in range(rng.randint(1, 4)))}
    max_in_flight = rng.randint(1, 3)
    sweep = Sweep(tasks.values(), Policy(rng.randint(0, 2), rng.randint(0, 2)), max_in_flight, unscheduled_s=300.0)
    world = World(rng, sweep, tasks, max_in_flight)
    world.carry_out(sweep.handle(world.nodes_changed()))
    world.carry_out(sweep.handle(Begin(0.0)))
    for _ in range(3000):
        if world.finish is not None:
            break
        world.step()
    assert world.finish is not None, f"seed {seed} never ends"
    open_tasks = {task_id for task_id, task in tasks.items() if task.done is None}
    assert all(world.rows[task_id].status is Status.PASS for task_id in world.passed), f"seed {seed}: a pass was lost"
    unlucky = {task_id for task_id, row in world.rows.items() if row.status is Status.INFRA_ERROR}
    assert not unlucky & world.flagged, f"seed {seed}: a measurement was lost to the machinery"
    if not world.stopped:
        assert set(world.rows) == open_tasks, f"seed {seed}: rows lack, or are too many"
        assert world.finish == Finish(world.exit_code(), "finished"), f"seed {seed}"
    elif set(world.rows) != open_tasks:
        assert world.finish.exit_code in (ExitCode.INTERRUPTED, ExitCode.INFRASTRUCTURE)
    late = [event(world.now_s) for event in world.pending]
    assert all(sweep.handle(event) == [] for event in late), "an event after the end did something"


def test_random_orders_end_with_one_row_per_task():
    for seed in range(10_000):
        play(seed)


@pytest.mark.slow
def test_a_hundred_thousand_random_orders_end_with_one_row_per_task():
    for seed in range(100_000):
        play(1_000_000 + seed)

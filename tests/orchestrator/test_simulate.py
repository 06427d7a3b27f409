"""The forecast: what no schedule can beat, what no device can hold, and small cases that can be worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.costs import Cost
from orchestrator.errors import UsageError
from orchestrator.plan import PlannedTask, Reason, side_by_side
from orchestrator.sharing import Sharing
from orchestrator.simulate import Fleet, forecast
from tasks.spec import ResourceSpec
from tests.orchestrator.fakes import task


def planned(number, shared_s, exclusive_s=0.0, gpus=1.0, cpus=1.0, device="cuda", *, device_s=0.0, held_s=0.0, **others):
    resources = ResourceSpec(device, cpus, gpus if device == "cuda" else 0.0, **others)
    spec = task(f"pass.{number}", resources=resources)
    return PlannedTask(spec, Reason.NEW, None, Cost(shared_s, exclusive_s, None, device_s, held_s))


def together(*costs, sharing=2, **resources):
    return [planned(number, *cost, gpus=Sharing(sharing).gpu_share(None), **resources) for number, cost in enumerate(costs)]


def spans(found):
    return {span.task_id.split("/")[1].removeprefix("pass."): (span.began_s, span.ended_s) for span in found.spans}


def test_one_after_the_other_on_a_device_of_its_own():
    found = forecast([planned(0, 5.0, 1.0), planned(1, 3.0, 1.0)], Fleet(1, 8))

    assert spans(found) == {"0": (0.0, 6.0), "1": (6.0, 10.0)}
    assert (found.makespan_s, found.bound_s, found.slots, found.device_hours) == (10.0, 10.0, 1, 10 / 3600)


def test_who_times_stops_the_neighbours():
    found = forecast(together((4.0, 2.0), (10.0, 1.0)), Fleet(1, 8))

    assert spans(found) == {"0": (0.0, 6.0), "1": (0.0, 13.0)}
    assert found.bound_s == 11.0


def test_the_bound_counts_places_and_memory_each_for_themselves():
    small, large = (planned(number, 10.0, 0.0, gpus, cpus=1.0) for number, gpus in enumerate((0.01, 0.6)))
    found = forecast([large, small], Fleet(1, 2))

    assert (found.makespan_s, found.bound_s, found.slots) == (10.0, 10.0, 2)


def test_a_node_s_gpus_are_filled_one_after_the_other_and_nodes_side_by_side():
    tasks = together((4.0, 2.0), (4.0, 2.0), (9.0, 0.0), (9.0, 0.0))

    assert [span.device for span in sorted(forecast(tasks, Fleet(2, 8, per_node=2)).spans, key=lambda span: span.task_id)] == [0, 0, 1, 1]
    assert [span.device for span in sorted(forecast(tasks, Fleet(2, 8)).spans, key=lambda span: span.task_id)] == [0, 1, 0, 1]


def test_two_who_want_to_time_at_once_take_turns():
    assert spans(forecast(together((4.0, 2.0), (4.0, 2.0)), Fleet(1, 8))) == {"0": (0.0, 6.0), "1": (0.0, 8.0)}


def test_who_holds_the_device_stops_only_those_that_use_it():
    holder = planned(0, 0.0, gpus=0.25, held_s=4.0)
    user, compiling = planned(1, 0.0, gpus=0.25, device_s=2.0), planned(2, 5.0, gpus=0.25)

    assert spans(forecast([holder, user, compiling], Fleet(1, 8))) == {"0": (0.0, 4.0), "1": (0.0, 6.0), "2": (0.0, 5.0)}


def test_a_task_uses_the_device_before_and_after_it_compiles_and_tunes_in_between():
    one = planned(0, 8.0, 1.0, gpus=0.5, device_s=2.0, held_s=5.0)
    assert forecast([one], Fleet(1, 8)).makespan_s == 16.0
    # The other's device seconds are first and last: it stands still for what the first one holds meanwhile, 0.75 s of tuning and no more.
    other = planned(1, 2.0, gpus=0.5, device_s=2.0)
    assert spans(forecast([one, other], Fleet(1, 8)))["1"] == (0.0, pytest.approx(4.75))


def test_two_who_want_to_hold_it_take_turns():
    tasks = [planned(number, 0.0, gpus=0.5, held_s=3.0) for number in range(2)]
    assert forecast(tasks, Fleet(1, 8)).makespan_s == pytest.approx(6.0)


def test_who_comes_while_a_neighbour_times_waits():
    found = forecast(together((4.0, 3.0), (4.0, 0.0), (1.0, 0.0)), Fleet(1, 8))

    assert spans(found) == {"0": (0.0, 7.0), "1": (0.0, 7.0), "2": (7.0, 8.0)}


def test_more_workers_than_cores_compile_slower():
    assert forecast(together((6.0,), (6.0,), (6.0,), sharing=3, cpus=0.5), Fleet(1, 2)).makespan_s == pytest.approx(9.0)


def test_a_large_task_waits_until_enough_is_free_and_smaller_ones_pass_it():
    tasks = [planned(0, 5.0, gpus=0.5), planned(1, 4.0, gpus=1.0), planned(2, 3.0, gpus=0.5)]

    assert spans(forecast(tasks, Fleet(1, 8), max_in_flight=3)) == {"0": (0.0, 5.0), "1": (5.0, 9.0), "2": (0.0, 3.0)}


def test_a_task_with_several_gpus_has_them_all():
    tasks = [planned(0, 5.0, 1.0, gpus=2.0, cpus=4.0, compile_threads=1), planned(1, 4.0)]

    assert spans(forecast(tasks, Fleet(2, 2), max_in_flight=4)) == {"0": (0.0, 6.0), "1": (6.0, 10.0)}


def test_helpers_do_half_of_a_compile_and_need_cores():
    helped = [planned(number, 8.0, gpus=0.25, compile_helpers=3) for number in range(2)]

    assert forecast(helped[:1], Fleet(1, 8)).makespan_s == forecast(helped[:1], Fleet(1, 8)).bound_s == 5.0
    assert forecast(helped, Fleet(1, 8)).makespan_s == 5.0
    # Each keeps 1.6 cores busy: all there is to do is 16 seconds of one.
    assert forecast(helped, Fleet(1, 2)).makespan_s == forecast(helped, Fleet(1, 2)).bound_s == 8.0


def test_the_longest_with_helpers_are_dealt_out_over_the_gpus_of_each_node():
    tasks = [planned(number, 20.0 - number, gpus=0.5, compile_helpers=1) for number in range(10)]
    nodes, per_node = 2, 2
    ordered = side_by_side(tasks, Sharing(2, 8.0), nodes * per_node, per_node)

    devices = [set() for _ in range(nodes * per_node)]
    for span in forecast(ordered, Fleet(nodes * per_node, 8, per_node)).spans:
        if span.began_s == 0:
            devices[span.device].add(int(span.task_id.split(".")[1].split("/")[0]))
    assert devices == [{0, 4}, {2, 6}, {1, 5}, {3, 7}]
    assert ordered[8:] == tasks[8:]
    plain = [replace(entry, spec=replace(entry.spec, resources=replace(entry.spec.resources, compile_helpers=0))) for entry in tasks]
    assert side_by_side(plain, Sharing(2, 8.0), nodes * per_node, per_node) == plain


def test_nodes_without_a_gpu_are_shared_by_cores():
    tasks = [planned(number, 4.0, 1.0, device="cpu") for number in range(2)]

    assert forecast(tasks, Fleet(1, 2)).makespan_s == 6.0
    assert (
        forecast([replace(one, spec=replace(one.spec, resources=ResourceSpec("cpu", 2.0))) for one in tasks], Fleet(1, 2)).makespan_s == 10
    )


def test_what_no_device_can_hold_is_refused():
    with pytest.raises(UsageError, match="asks for 1 device"):
        forecast([planned(0, 1.0, cpus=8.0)], Fleet(4, 4))
    with pytest.raises(UsageError, match="asks for 2 device"):
        forecast([planned(0, 1.0, gpus=2.0)], Fleet(1, 4))


def test_nothing_to_do_takes_no_time():
    for nothing in ([], [planned(0, 0.0)]):
        found = forecast(nothing, Fleet(1, 4))
        assert (found.makespan_s, found.efficiency, len(found.spans)) == (0.0, 1.0, len(nothing))


seconds = st.floats(0.01, 500)
some = st.floats(0, 60)
costs = st.lists(st.tuples(seconds, some, some, some, st.sampled_from([0.0, 0.3, 0.5, 1.0])), min_size=1, max_size=40)


@given(costs, st.integers(1, 5), st.integers(1, 24), st.sampled_from([1.0, 2.0, 7.5, 16.0]))
def test_no_run_beats_the_bound_overfills_a_device_or_differs_from_itself(costs, devices, tasks, cores):
    sharing = Sharing(tasks, cores)
    plan = [
        planned(*(number, shared_s, exclusive_s, max(share, sharing.gpu_share(None)), sharing.cpus(1.0)), device_s=device_s, held_s=held_s)
        for number, (shared_s, exclusive_s, device_s, held_s, share) in enumerate(costs)
    ]

    found = forecast(plan, Fleet(devices, cores))

    assert found == forecast(plan, Fleet(devices, cores))
    assert len(found.spans) == len(plan)
    assert found.makespan_s >= found.bound_s * (1 - 1e-9)
    cost = {task.spec.task_id: task for task in plan}
    for span in found.spans:
        there = [other for other in found.spans if other.device == span.device and other.began_s <= span.began_s < other.ended_s]
        assert len(there) <= tasks
        assert sum(cost[other.task_id].spec.resources.num_gpus for other in there) <= 1 + 1e-6
        assert span.ended_s - span.began_s >= cost[span.task_id].cost_s * (1 - 1e-9)
    assert max(len([o for o in found.spans if o.began_s <= span.began_s < o.ended_s]) for span in found.spans) <= found.slots


@given(st.lists(seconds, min_size=1, max_size=30), st.integers(1, 6))
def test_no_device_stands_idle_while_a_task_waits(lengths, devices):
    found = forecast([planned(number, length) for number, length in enumerate(lengths)], Fleet(devices, 4))

    graham_s = sum(lengths) / devices + max(lengths) * (1 - 1 / devices)  # Graham 1966, for any list
    assert found.makespan_s <= graham_s * (1 + 1e-9)

"""How many share a device, and what each asks for."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.sharing import (
    HELD_OF_PEAK,
    HELD_SHARE,
    MAX_SHARING,
    MAX_SHARING_BLIND,
    ROOMIER_LEAST,
    USABLE_MEMORY,
    Machine,
    Sharing,
    roomier,
    work_out,
)

H200 = Machine(cores=16, gpus=1, memory_mib=128 * 1024, gpu_mib=143_771)


@pytest.mark.parametrize(
    ("machine", "tasks"),
    [
        (H200, 16),
        (dataclasses.replace(H200, cores=8), 8),
        (dataclasses.replace(H200, cores=1), 1),
        (dataclasses.replace(H200, cores=128, gpus=8, memory_mib=2**20), 16),
        (dataclasses.replace(H200, cores=256, memory_mib=2**20), MAX_SHARING),
        (dataclasses.replace(H200, memory_mib=16 * 1024), 5),
        (dataclasses.replace(H200, gpu_mib=None), MAX_SHARING_BLIND),
    ],
)
def test_cores_and_host_memory_decide_on_a_gpu_node(machine, tasks):
    assert work_out("auto", "cuda", [machine], None).tasks == tasks


@pytest.mark.parametrize(("cores", "tasks"), [(1, 1), (2, 2), (4, 3), (16, 12)])
def test_cores_decide_on_a_node_without_gpu(cores, tasks):
    sharing = work_out("auto", "cpu", [Machine(cores, memory_mib=64 * 1024)], None)

    assert sharing.tasks == tasks
    assert tasks == 1 or sharing.cpus(2.0) * tasks <= cores


def test_the_poorest_node_decides_and_nodes_without_a_gpu_do_not():
    nodes = [H200, dataclasses.replace(H200, cores=8, gpu_mib=80_000), Machine(cores=1)]

    sharing = work_out("auto", "cuda", nodes, None)

    assert (sharing.tasks, sharing.cores, sharing.gpu_mib) == (8, 8, 80_000)


@pytest.mark.parametrize(("nodes", "to_run", "tasks"), [(1, 40, 16), (1, 17, 9), (2, 17, 5), (1, 1, 1), (1, None, 16)])
def test_no_gpu_of_a_node_gets_all_there_is_while_another_has_none(nodes, to_run, tasks):
    machine = dataclasses.replace(H200, cores=32, gpus=2, memory_mib=2**20)

    assert work_out("auto", "cuda", nodes * [machine], None, to_run).tasks == tasks
    assert work_out("auto", "cuda", [H200], None, 3).tasks == 16  # one GPU for each node: Ray spreads tasks over nodes
    assert work_out(7, "cuda", [machine], None, 3).tasks == 7


def test_cores_that_the_manifest_asks_for_are_counted():
    assert work_out("auto", "cuda", [H200], 3.0).tasks == 5


def test_a_number_is_taken_as_it_is_and_cores_do_not_stand_in_its_way():
    sharing = work_out(32, "cuda", [H200], None)

    assert (sharing.tasks, sharing.cpus(1.0), sharing.gpu_share(None)) == (32, 0.5, 0.0312)
    assert work_out(1, "cuda", [H200], None).cpus(1.0) == 1.0


def test_without_neighbours_a_task_has_the_whole_device():
    assert Sharing(1, 16, 143_771).gpu_share(1000.0) == 1.0


@given(st.integers(1, 64), st.floats(1, 256), st.integers(1000, 200_000), st.floats(1, 1e6), st.none() | st.floats(0, 1))
def test_as_many_as_are_allowed_fit_and_never_more_than_memory_has(tasks, cores, gpu_mib, peak_mib, held_part):
    sharing, held_mib = Sharing(tasks, cores, gpu_mib), None if held_part is None else held_part * peak_mib
    share, cpus = sharing.gpu_share(peak_mib, held_mib), sharing.cpus(1.0)
    usable_mib, holds_mib = USABLE_MEMORY * gpu_mib, HELD_OF_PEAK * peak_mib if held_mib is None else held_mib

    assert 0 < share <= 1
    at_once = int(1 / share + 1e-9)
    assert at_once <= tasks or share == Sharing(tasks).gpu_share(None)
    assert at_once == 1 or at_once * holds_mib <= HELD_SHARE * usable_mib * 1.001
    assert share == 1 or tasks == 1 or peak_mib + (1 - share) * HELD_SHARE * usable_mib <= usable_mib * 1.001
    assert sharing.gpu_share(0.0) * tasks <= 1.0
    assert tasks == 1 or cpus * tasks <= cores + 1e-6


def test_it_is_what_tasks_hold_and_not_their_peaks_that_must_fit_together():
    sharing = Sharing(16, 16.0, 80_000)  # of which 38000 may be held
    assert sharing.gpu_share(11_000.0, 1100.0) == 0.0625
    assert sharing.gpu_share(14_000.0, 11_400.0) == pytest.approx(0.3, abs=0.001)
    assert sharing.gpu_share(57_000.0, 1100.0) == pytest.approx(0.5)  # beside 19000 of others
    assert sharing.gpu_share(31_000.0, 1000.0) == pytest.approx(10_000 / 76_000, abs=0.001)  # 1000, and for 0.3 of its time 30000 more


def test_a_task_that_ran_out_of_memory_asks_for_several_times_its_share():
    assert (roomier(0.1), roomier(0.5)) == (pytest.approx(0.3), 1.0)
    assert roomier(0.02) == roomier(0.03) == ROOMIER_LEAST > 0.1


@pytest.mark.parametrize(
    ("machines", "num_cpus", "decide"),
    [
        ([H200], None, True),
        ([H200, dataclasses.replace(H200, cores=8)], None, True),
        ([dataclasses.replace(H200, cores=8)], 2.0, True),
        ([dataclasses.replace(H200, gpus=2)], None, False),  # Ray fills a node's first GPU before it takes the second
        ([dataclasses.replace(H200, memory_mib=16 * 1024)], None, False),
        ([dataclasses.replace(H200, cores=64)], None, False),
    ],
)
def test_small_tasks_leave_memory_to_large_ones_where_cores_keep_a_device_from_filling_up(machines, num_cpus, decide):
    sharing = work_out("auto", "cuda", machines, num_cpus)
    small, large = sharing.gpu_share(2000.0, 800.0), sharing.gpu_share(20_000.0, 9000.0)

    assert sharing.cores_decide is decide
    assert (small < 1 / sharing.tasks - 0.001) is decide
    assert large > 0.1
    places = sharing.cores / sharing.cpus(num_cpus or 1.0)
    assert not decide or int(places) == sharing.tasks
    assert work_out(16, "cuda", machines, num_cpus).cores_decide is False

"""GPUs by UUID, and the cores that go with each."""

from __future__ import annotations

import os

import pytest

from tasks import devices
from tasks.devices import by_place, cores_of, device_of, share_of_cores, uuid_of, visible
from tasks.spec import Attempt, ResourceSpec
from tasks.supervisor import Started, supervise
from tests.tasks.processes_fixtures import toy

UUIDS = ("GPU-aa11", "GPU-bb22", "GPU-bb33", "GPU-cc44")
CUDA = ResourceSpec(device="cuda", num_gpus=0.5)


@pytest.fixture
def node(monkeypatch):
    """A node with four GPUs and ten cores, whose Ray may use what ``variable`` says."""

    def of(variable=None):
        monkeypatch.setattr(devices, "_uuids", lambda: UUIDS)
        monkeypatch.setattr(devices, "_cores_by_place", lambda: tuple(range(10)))
        monkeypatch.setattr(devices, "_parents_environment", lambda: {} if variable is None else {"CUDA_VISIBLE_DEVICES": variable})

    return of


def test_a_device_is_the_gpu_itself_however_it_is_called_or_the_cpu(node):
    node()
    names = {device_of(toy("pass", resources=CUDA), Attempt("r", 1, gpu_ids=(name,))) for name in ("2", "GPU-bb33", "GPU-bb3")}
    assert names == {"GPU-bb33"}
    assert device_of(toy("pass", resources=CUDA), Attempt("r", 1, gpu_ids=("0", "3"))) == "GPU-aa11,GPU-cc44"
    assert device_of(toy("pass"), Attempt("r", 1, gpu_ids=("3",))) == "cpu"


def test_where_nobody_knows_the_gpus_they_are_what_they_are_called(monkeypatch):
    monkeypatch.setattr(devices, "_uuids", tuple)
    assert device_of(toy("pass", resources=CUDA), Attempt("r", 1, gpu_ids=("3",))) == "3"
    assert device_of(toy("pass", resources=CUDA), Attempt("r", 1, gpu_ids=("MIG-1",))) == "MIG-1"


@pytest.mark.parametrize(
    ("name", "uuid"), [("0", "GPU-aa11"), ("4", None), ("GPU-bb", None), ("GPU-bb2", "GPU-bb22"), ("MIG-x", None), ("-1", None)]
)
def test_numbers_and_beginnings_are_names(name, uuid):
    assert uuid_of(name, UUIDS) == uuid


@pytest.mark.parametrize(
    ("variable", "found"),
    [
        (None, list(UUIDS)),
        ("", []),
        ("3,0", ["GPU-cc44", "GPU-aa11"]),
        ("1,-1,2", ["GPU-bb22"]),
        ("GPU-cc44, 0", ["GPU-cc44", "GPU-aa11"]),
    ],
)
def test_what_a_node_may_use(variable, found):
    assert visible(UUIDS, variable) == found


@pytest.mark.parametrize(
    ("variable", "gpu_ids", "cores"),
    [
        (None, ("0",), (0, 1)),
        (None, ("3",), (6, 7)),  # all parts are equal: 8 and 9 are nobody's
        (None, ("1", "3"), (2, 3, 6, 7)),
        ("2,3", ("2",), (0, 1, 2, 3, 4)),
        ("2,3", ("3",), (5, 6, 7, 8, 9)),
        ("2", ("2",), ()),
        ("2,3", ("0",), ()),
        (None, ("MIG-1",), ()),
    ],
)
def test_each_gpu_of_a_node_has_its_part_of_the_cores(node, variable, gpu_ids, cores):
    node(variable)
    assert cores_of(toy("pass", resources=CUDA), Attempt("r", 1, gpu_ids=gpu_ids)) == cores
    assert cores_of(toy("pass"), Attempt("r", 1, gpu_ids=gpu_ids)) == ()


def test_fewer_cores_than_gpus_are_everybodys():
    assert share_of_cores(["GPU-aa11"], UUIDS, [0, 1, 2]) == ()


def test_threads_of_one_core_and_cores_of_one_processor_stay_together(tmp_path):
    for core in range(8):  # two processors with two cores each, whose second threads are 4 to 7
        folder = tmp_path / f"cpu{core}" / "topology"
        folder.mkdir(parents=True)
        (folder / "physical_package_id").write_text(f"{core % 2}\n")
        (folder / "core_id").write_text(f"{core % 4 // 2}\n")
    assert by_place(range(8), tmp_path) == [0, 4, 2, 6, 1, 5, 3, 7]
    assert by_place([3, 1, 2], tmp_path / "none") == [1, 2, 3]


def test_a_worker_and_all_that_it_starts_keep_to_their_cores(monkeypatch, node_directory):
    core = min(os.sched_getaffinity(0))
    monkeypatch.setattr("tasks.supervisor.cores_of", lambda task, attempt: (core,))
    seen = None
    for event in supervise(toy("slow_pass", seconds=0.5), Attempt("run", 1)):
        if isinstance(event, Started):
            seen = os.sched_getaffinity(event.pid)
    assert seen == {core}
    assert event.outcome.environment["cores"] == str(core)

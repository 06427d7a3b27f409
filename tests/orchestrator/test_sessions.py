"""Sessions of a run: what each driver found, expected and took, and which resumes belong to a run."""

from __future__ import annotations

import dataclasses

import pytest

from orchestrator.costs import Cost
from orchestrator.errors import UsageError
from orchestrator.nodes import NodeInfo
from orchestrator.plan import PlannedTask as CostedTask
from orchestrator.plan import Reason
from orchestrator.record import PlannedTask, RunState, Session, read_record, record_bytes
from orchestrator.sessions import Site, device_hours, facts, gpu_name, outlook, replanned, require_same_gpu, took
from orchestrator.sharing import Sharing
from tasks.probe import Gpu, NodeProbe
from tasks.spec import ResourceSpec
from tests.orchestrator.fakes import task
from tests.orchestrator.stored import a_record

GPU_NODE = NodeInfo("g", "1", 16.0, 2.0, 1e6)
SITE = Site("cuda", (GPU_NODE,), "H200", Sharing(8, 8.0, 140_000), None)


def record(*sessions):
    return dataclasses.replace(a_record(), sessions=sessions)


def costed(number, seconds, share=0.125):
    return CostedTask(task(f"pass.{number}", resources=ResourceSpec("cuda", 1.0, share)), Reason.NEW, None, Cost(seconds))


def test_what_a_driver_expects_is_the_forecast_for_its_site():
    expected = outlook([costed(0, 10.0), costed(1, 30.0)], SITE)

    assert expected.makespan_s == 30.0
    assert sorted(expected.task_s.values()) == [10.0, 30.0]


@pytest.mark.parametrize(
    ("left", "site"),
    [
        ([], SITE),
        ([costed(0, 1.0)], dataclasses.replace(SITE, sharing=Sharing())),
        ([costed(0, 1.0)], dataclasses.replace(SITE, nodes=())),
        ([costed(0, 1.0, share=3.0)], SITE),
    ],
    ids=["nothing left", "nobody knows the cores", "no node", "more than the fleet has"],
)
def test_where_nothing_can_be_said_nothing_is(left, site):
    assert outlook(left, site).makespan_s is None


def test_a_session_says_what_there_was():
    session = SITE.session(5.0, "abc", 2, outlook([costed(0, 10.0)], SITE))

    assert session == Session(5.0, None, 1, 2, "H200", 8, "abc", 2, 10.0)
    assert dataclasses.replace(SITE, device="cpu").devices == 1


def test_sessions_survive_the_file_and_end_with_the_state():
    running = record(Session(1.0, 50.0, complete=False), Session(100.0))

    ended = running.came_to(RunState.FINISHED, 0, 130.0)

    assert read_record(record_bytes(ended), "run.json") == ended
    assert [(session.ended, session.complete) for session in ended.sessions] == [(50.0, False), (130.0, True)]
    again = ended.came_to(RunState.RUNNING, None, 200.0)
    assert (again.sessions, again.ended) == (ended.sessions, None)
    assert again.came_to(RunState.INTERRUPTED, 130, 210.0).sessions == ended.sessions  # no session of its own had begun
    assert not running.came_to(RunState.INTERRUPTED, 130, 110.0).sessions[1].complete


def test_held_hours_are_those_of_all_sessions_and_devices_and_of_killed_drivers_as_far_as_known():
    one, killed, last = (Session(0.0, 3600.0, devices=2), Session(7200.0, None, devices=1), Session(9000.0, 12_600.0, devices=1))

    assert device_hours(record()) is None
    rows_ended = [1800.0, 7200.0 + 900.0, 7200.0 + 450.0, 12_000.0]
    assert device_hours(record(one, killed, last), rows_ended) == pytest.approx(2 + 0.25 + 1)
    assert device_hours(record(one, killed), rows_ended[:3]) == pytest.approx(2 + 0.25)
    assert device_hours(record(one, killed, last)) == pytest.approx(2 + 0 + 1)
    assert device_hours(record(killed)) == 0.0


@pytest.mark.parametrize(
    ("session", "words"),
    [
        (Session(0.0), None),
        (Session(0.0, 60.0), "took 60 s"),
        (Session(0.0, 3960.0, forecast_s=3600.0, complete=True), "took 1.10 h; the forecast was 1.00 h (+10%)"),
        (Session(0.0, 1800.0, forecast_s=3600.0), "took 0.50 h"),
    ],
)
def test_forecast_and_truth_are_compared_where_all_was_done(session, words):
    assert took(session) == words


def test_readers_are_told_of_every_session():
    done = Session(0.0, 3960.0, 1, 1, "NVIDIA H200", 16, "abc", 326, 3600.0, True)

    assert facts(record(done)) == {
        "held": "1.10 GPU hours in 1 session",
        "session 1": "1 x NVIDIA H200, 16 sharing each, 326 tasks to do; took 1.10 h; the forecast was 1.00 h (+10%)",
    }
    two = facts(record(Session(0.0, devices=1, tasks=3), Session(360.0, 720.0, devices=1)), rows_ended=[360.0 - 1e-6])
    assert two["held"] == "0.20 node hours in 2 sessions"
    assert "killed" in two["session 1"]
    assert facts(record()) == {}


def test_a_resume_on_other_gpus_is_refused():
    earlier = record(Session(0.0, 1.0, gpu="NVIDIA H200"), Session(2.0, 3.0, gpu=None))

    with pytest.raises(UsageError, match=r"measured on NVIDIA H200, and here is NVIDIA H100.*--run-id"):
        require_same_gpu(earlier, "NVIDIA H100")
    require_same_gpu(earlier, "NVIDIA H200")
    require_same_gpu(earlier, None)
    require_same_gpu(record(), "NVIDIA H100")


def test_the_gpus_model_is_what_the_nodes_say():
    def node(*names):
        return NodeProbe("h", "3.12", "abc", 16, gpus=tuple(Gpu(name, "GPU-1", 90, 80_000) for name in names))

    assert gpu_name([node("H200", "H200"), "no answer", node()]) == "H200"
    assert gpu_name([node("H200"), node("H100")]) == "H100, H200"
    assert gpu_name([node(), "no answer"]) is None


def test_a_resume_has_the_order_and_the_shares_of_the_cluster_that_it_finds():
    stored = [PlannedTask(task(f"pass.{number}", digest=str(number), resources=ResourceSpec("cuda", 1.0, 0.5))) for number in range(2)]
    fresh = [dataclasses.replace(entry, task=dataclasses.replace(entry.task, resources=ResourceSpec("cuda", 1.0, 0.1))) for entry in stored]

    assert replanned(stored, fresh[::-1]) == tuple(fresh[::-1])
    other = dataclasses.replace(fresh[0], task=dataclasses.replace(fresh[0].task, digest="another"))
    assert replanned(stored, [other, fresh[1]]) == tuple(stored)
    assert replanned(stored, fresh[:1]) == tuple(stored)

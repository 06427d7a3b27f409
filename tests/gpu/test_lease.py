"""A neighbour on the same GPU, and what a timing under the lease sees of it: nothing."""

from __future__ import annotations

import contextlib
import dataclasses
import time

import pytest
import torch

from tasks import lease
from tasks.cuda_queue import CudaQueue
from tasks.environment import gpu_uuid
from tasks.idle import LIMIT_S
from tasks.lease import Lease
from tasks.spec import AccuracySpec, Attempt, MeasureSpec, Phase, Status
from tasks.supervisor import PhaseStarted, supervise
from tests.gpu.planted import host_ms, keep_busy
from tests.gpu.test_execute import factory, run_in_worker
from tests.tasks.processes_fixtures import states_below, wait_until

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]

TOLERANCE = 0.02
DISTURBED = 1.2  # at least; two processes that are always ready share the device about evenly
FLOATS = 2**28
WARM_S, STEPS = 1.0, 100


@contextlib.contextmanager
def neighbour(device, tmp_path):
    """A worker under a guardian that keeps the GPU busy, for two minutes or until the block ends."""
    ready = tmp_path / "ready"
    busy = factory("busy")
    busy = dataclasses.replace(busy, model=dataclasses.replace(busy.model, options={"seconds": 120.0, "ready": str(ready)}))
    events = supervise(busy, Attempt("run", 2, gpu_ids=(gpu_uuid(device),)))
    try:
        for event in events:
            if isinstance(event, PhaseStarted) and event.phase is Phase.BUILD:
                break
        wait_until(ready.exists, "the neighbour at work")
        yield
    finally:
        events.close()


class Granted:
    """A tree without processes, of a guardian whose worker is this very process."""

    grant = None

    def pause(self):
        raise AssertionError("nobody else wants to time")

    def resume(self):
        pass

    def granted(self, grant):
        self.grant = grant


@contextlib.contextmanager
def owned(device):
    """Own the device as a guardian does for its worker."""
    tree = Granted()
    own = Lease(gpu_uuid(device), lease.SHARED_MEMORY, tree)
    try:
        wait_until(own.try_join, "the right to run")
        own.acquire()
        give_up = time.monotonic() + 30
        while tree.grant is None:
            assert time.monotonic() < give_up
            own.attend()
            time.sleep(lease.POLL_S)
        yield tree.grant
        own.release()
    finally:
        own.leave()


def typical_ms(machine, values):
    """A step bound by memory, whose clock does not move; it takes longer than the device gives one process before it turns to another."""

    def step():
        for _ in range(8):
            torch.mul(values, 1.000001, out=values)

    keep_busy(machine, step, WARM_S)
    return host_ms(machine, step, STEPS)


def step_ms(machine, values):
    """One step, with nothing before it."""
    machine.synchronize()
    began = time.perf_counter()
    for _ in range(8):
        torch.mul(values, 1.000001, out=values)
    machine.synchronize()
    return 1000 * (time.perf_counter() - began)


def test_a_timing_under_the_lease_sees_nothing_of_a_busy_neighbour(machine, device, node_directory, tmp_path):
    values = torch.rand(FLOATS, device=device)
    alone_before = typical_ms(machine, values)
    with neighbour(device, tmp_path):
        disturbed = typical_ms(machine, values)
        with owned(device) as grant:
            leased = typical_ms(machine, values)
            states = set(states_below(node_directory).values())
        wait_until(lambda: set(states_below(node_directory).values()) - {"T"}, "the neighbour running again")
        again_disturbed = typical_ms(machine, values)
    alone = (alone_before + typical_ms(machine, values)) / 2
    print(f"alone {alone:.4f} ms, disturbed {disturbed / alone:.3f} and {again_disturbed / alone:.3f}, leased {leased / alone:.4f}")
    assert grant.neighbours == 1
    assert states == {"T"}
    assert min(disturbed, again_disturbed) > DISTURBED * alone
    assert leased / alone == pytest.approx(1.0, abs=TOLERANCE)


def test_what_a_stopped_neighbour_has_queued_is_waited_for(machine, device, node_directory, tmp_path):
    values = torch.rand(FLOATS, device=device)
    alone = typical_ms(machine, values)
    queue = CudaQueue(device)
    queue.wait_until_idle(LIMIT_S)  # the first spin loads its kernel
    with neighbour(device, tmp_path):
        for _ in range(5):
            with owned(device):
                quiet = queue.wait_until_idle(LIMIT_S)
                at_once = step_ms(machine, values)
            print(f"idle after {1000 * quiet.waited_s:.1f} ms; then {at_once / alone:.3f} of a step alone")
            assert quiet.idle
            assert at_once / alone == pytest.approx(1.0, abs=5 * TOLERANCE)
            time.sleep(0.2)  # the neighbour fills its queue


def test_a_row_is_the_same_beside_a_busy_neighbour(device, node_directory, tmp_path):
    timed = factory(
        "streaming",
        mode="inference",
        measure=MeasureSpec(half_width=0.005, max_pairs=20, max_time_s=5.0, warmup_max_s=10.0),
        accuracy=AccuracySpec(enabled=False),
    )
    alone = run_in_worker(timed, device)
    with neighbour(device, tmp_path):
        beside = run_in_worker(timed, device)
    assert (alone.status, beside.status) == (Status.PASS, Status.PASS), (alone.error, beside.error)
    one, other = alone.measurement, beside.measurement
    print(f"alone {one.eager_ms:.4f} ms, beside a neighbour {other.eager_ms / one.eager_ms:.4f}, {other.machine['quality_reason']}")
    assert (one.neighbours, other.neighbours) == (0, 1)
    assert other.quality != "contaminated", other.machine["quality_reason"]
    for name in ("eager_ms", "compiled_ms"):
        assert getattr(other, name) / getattr(one, name) == pytest.approx(1.0, abs=TOLERANCE)
    assert other.speedup == pytest.approx(one.speedup, rel=TOLERANCE)

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import time

import pytest
import torch

from tasks.cuda_queue import CudaQueue
from tasks.environment import gpu_uuid
from tasks.idle import LIMIT_S
from tasks.memory import PeakMemory
from tasks.nvml import Nvml
from tests.gpu.planted import ASSUMED_CYCLES_PER_MS, before, busy_wait, cycles_per_ms, host_ms, keep_busy, spin

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]

MIB = 2**20

SPINNING = """
import torch
while True:
    torch.cuda._sleep(20_000_000)
    torch.cuda.synchronize()
    print("busy", flush=True)
"""


@pytest.fixture
def gpu(device):
    pytest.importorskip("pynvml", reason="needs NVML: pip install nvidia-ml-py")
    found = Nvml.open(gpu_uuid(device), os.getpid())
    assert found is not None, "NVML does not know the GPU that torch uses"
    return found


def few_kernels(count, device):
    values = torch.zeros(16, device=device)

    def step():
        for _ in range(count):
            values.add_(1.0)

    return step


@contextlib.contextmanager
def spinning():
    """Another process that keeps the GPU busy."""
    with subprocess.Popen([sys.executable, "-c", SPINNING], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "busy\n"
            yield
        finally:
            process.kill()


class TestIdle:
    def test_an_idle_device_is_recognised_within_milliseconds(self, device):
        queue = CudaQueue(device)
        queue.wait_until_idle(LIMIT_S)  # the first spin loads its kernel
        found = [queue.wait_until_idle(LIMIT_S) for _ in range(20)]
        assert all(quiet.idle for quiet in found)
        assert statistics.median(quiet.waited_s for quiet in found) < 0.01

    def test_what_this_process_has_queued_is_waited_for_first(self, machine, device):
        queue = CudaQueue(device)
        queue.wait_until_idle(LIMIT_S)
        spin(200 * cycles_per_ms(machine))()
        assert queue.wait_until_idle(LIMIT_S).idle

    def test_another_process_at_work_is_noticed(self, device):
        queue = CudaQueue(device)
        with spinning():
            quiet = queue.wait_until_idle(0.5)
        assert not quiet.idle
        assert 0.5 <= quiet.waited_s < 2.0


class TestDeviceTime:
    def test_it_is_that_of_the_planted_spin(self, machine):
        per_ms = cycles_per_ms(machine)
        found = [machine.device_ms(spin(ms * per_ms)) for ms in (0.5, 5.0, 50.0)]
        assert found == [pytest.approx(ms, rel=0.01, abs=0.02) for ms in (0.5, 5.0, 50.0)]

    def test_it_agrees_with_the_clock_of_the_host(self, machine):
        step = spin(50 * cycles_per_ms(machine))
        assert machine.device_ms(step) == pytest.approx(host_ms(machine, step, 5), rel=0.01)

    def test_what_the_host_does_meanwhile_is_not_in_it(self, machine):
        step = spin(2 * cycles_per_ms(machine))
        delayed = before(step, lambda: time.sleep(0.005))
        assert host_ms(machine, delayed) >= host_ms(machine, step) + 4.9
        assert machine.device_ms(delayed) == pytest.approx(machine.device_ms(step), rel=0.01, abs=0.02)

    def test_it_is_missing_where_a_step_waits_for_the_device(self, machine):
        assert machine.device_ms(before(machine.synchronize, spin(ASSUMED_CYCLES_PER_MS))) is None

    def test_launches_are_not_in_it(self, machine, device):
        step = few_kernels(300, device)
        assert 0 < machine.device_ms(step) < 0.9 * host_ms(machine, step)

    def test_a_span_has_what_the_host_does_before_the_kernel_and_in_between(self, machine, device):
        step = spin(2 * cycles_per_ms(machine))
        alone_ms, delayed_ms = (machine.event_ms(one) for one in (step, before(step, busy_wait(0.003))))
        assert alone_ms == pytest.approx(2.0, rel=0.05, abs=0.05)
        assert delayed_ms - alone_ms == pytest.approx(3.0, rel=0.05, abs=0.1)
        assert machine.event_ms(few_kernels(300, device)) > machine.device_ms(few_kernels(300, device))

    def test_a_step_too_long_for_the_queue_has_none_or_the_right_one(self, machine, device):
        short, long = (machine.device_ms(few_kernels(count, device)) for count in (300, 3000))
        assert long is None or long == pytest.approx(10 * short, rel=0.15)


class TestClock:
    def test_it_does_not_move_while_the_device_is_busy(self, machine):
        readings = [machine.clock_mhz() for _ in range(5)]
        assert 200 < min(readings) <= max(readings) < 4000
        assert max(readings) <= 1.02 * min(readings)

    def test_it_agrees_with_nvml(self, machine, gpu):
        torch.cuda._sleep(500 * ASSUMED_CYCLES_PER_MS)
        time.sleep(0.3)
        told = gpu.read().clock_mhz
        machine.synchronize()
        assert machine.clock_mhz() == pytest.approx(told, rel=0.05)


class TestNvml:
    def test_readings_have_sane_units(self, machine, gpu):
        torch.cuda._sleep(500 * ASSUMED_CYCLES_PER_MS)
        time.sleep(0.3)
        first, second = gpu.read(), gpu.read()
        machine.synchronize()
        assert 200 < first.clock_mhz < 4000
        assert 10 < first.temperature_c < 110
        assert 10 < first.power_w < 2000
        assert first.slowdown_ns, "no counter of slow-downs can be read"
        assert all(0 <= then <= second.slowdown_ns[name] for name, then in first.slowdown_ns.items())
        assert first.power_cap_ns is None or 0 <= first.power_cap_ns <= second.power_cap_ns

    def test_a_gpu_that_is_not_there_has_none(self, gpu):
        assert Nvml.open("GPU-00000000-0000-0000-0000-000000000000", os.getpid()) is None

    def test_this_process_is_no_other(self, machine, gpu):
        since_us = time.time_ns() // 1000
        keep_busy(machine, spin(10 * ASSUMED_CYCLES_PER_MS), 2.0)
        assert os.getpid() not in gpu.others_busy(since_us)

    def test_another_process_at_work_is_seen(self, machine, gpu, device):
        import pynvml

        with subprocess.Popen([sys.executable, "-c", SPINNING], stdout=subprocess.PIPE, text=True) as neighbour:
            try:
                assert neighbour.stdout.readline() == "busy\n"
                since_us = time.time_ns() // 1000
                keep_busy(machine, spin(10 * ASSUMED_CYCLES_PER_MS), 4.0)
                others = gpu.others_busy(since_us)
                handle = pynvml.nvmlDeviceGetHandleByUUID(gpu_uuid(device))
                listed = {entry.pid for entry in gpu._ask(pynvml.nvmlDeviceGetProcessUtilization, since_us) or ()}
                running = {process.pid for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle)}
            finally:
                neighbour.kill()
        if os.getpid() not in listed:
            pytest.skip(f"NVML does not list this process: utilisation of {sorted(listed)}, running {sorted(running)}")
        assert neighbour.pid in others


class TestMachine:
    def test_a_quiet_pair_has_no_fault(self, machine):
        machine.mark()
        keep_busy(machine, spin(10 * ASSUMED_CYCLES_PER_MS))
        assert machine.fault() is None

    def test_the_row_gets_clocks_temperature_and_power(self, machine, gpu):
        machine.mark()
        keep_busy(machine, spin(10 * ASSUMED_CYCLES_PER_MS))
        machine.fault()
        found = machine.summary()
        assert 200 < found["sm_clock_mhz_min"] <= found["sm_clock_mhz_max"] < 4000
        assert 10 < found["gpu_temperature_c_max"] < 110
        assert 10 < found["gpu_power_w_max"] < 2000

    def test_the_peak_is_what_a_step_holds_at_most(self, device):
        held = torch.empty(64 * MIB, dtype=torch.uint8, device=device)

        def step():
            torch.empty(256 * MIB, dtype=torch.uint8, device=device)

        already_mib = torch.cuda.memory_allocated(device) / MIB
        assert PeakMemory(device).of_step(step, contextlib.nullcontext) == pytest.approx(already_mib + 256, abs=1)
        assert already_mib >= held.numel() / MIB

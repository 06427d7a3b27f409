from __future__ import annotations

import dataclasses

import torch

from orchestrator.report.environment import OBSERVED, differences, environment_of
from orchestrator.report.synthetic import synthetic_run, true_logs
from tasks import environment, hardware
from tasks.channel import Channel
from tasks.cuda_queue import CudaQueue
from tasks.nvml import GpuReading
from tasks.ownership import Ownership

ROWS = synthetic_run(true_logs({"toy": 3}), run_id="r").rows


def on(rows, **machine):
    return [dataclasses.replace(row, machine=machine) for row in rows]


def test_a_busier_or_warmer_machine_is_the_same_environment():
    base, new = on(ROWS, cpu="a", load_average=0.1, gpu_temperature_c_max=40), on(ROWS, cpu="a", load_average=9.0, gpu_temperature_c_max=70)
    assert differences(base, new) == ()
    assert not {f"machine.{name}" for name in OBSERVED} & {fact.name for fact in environment_of(base)}


def test_another_processor_is_another_environment():
    assert differences(on(ROWS, cpu="a"), on(ROWS, cpu="b")) == (("machine.cpu", "a", "b"),)


def test_all_that_is_read_while_measuring_is_left_out():
    reading = GpuReading(
        **{
            field.name: 1
            for field in dataclasses.fields(GpuReading)
            if field.name in ("clock_mhz", "temperature_c", "power_w", "power_cap_ns")
        }
    )
    machine = hardware.HostMachine()
    machine.mark()
    read = machine.summary().keys() | hardware._summary([reading, reading], 1.0).keys()
    read |= Ownership(Channel(None), CudaQueue(torch.device("cuda"))).summary().keys()
    assert read <= OBSERVED
    assert OBSERVED - read == {"load_average", "quality_reason", "room_waited_s"}
    assert "load_average" in environment.machine(torch.device("cpu"))

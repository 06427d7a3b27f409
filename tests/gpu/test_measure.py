from __future__ import annotations

import pytest
import torch

from tasks import measure
from tasks.spec import MeasureSpec, Quality
from tasks.stepper import Side
from tests.gpu.planted import before, busy_wait, cycles_per_ms, fixed_ms, fresh_machine, spin
from tests.gpu.test_hardware import few_kernels

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]

SPEC = MeasureSpec(half_width=0.002, max_pairs=20, max_time_s=5.0, warmup_max_s=5.0)


def timed(device, first, second, spec=SPEC):
    """The first step as the eager arm and the second as the compiled one."""
    return measure.measure((Side(first), Side(second)), fresh_machine(device), spec, seed=1, deadline_s=60.0, warm_s=0.5)


@pytest.mark.parametrize("ratio", [1.0, 1.05])
def test_a_planted_ratio_is_found(ratio, machine, device):
    per_ms = cycles_per_ms(machine)
    fixed = fixed_ms(machine, per_ms)
    timing = timed(device, spin(5 * ratio * per_ms), spin(5 * per_ms))
    assert timing.summary.speedup == pytest.approx((5 * ratio + fixed) / (5 + fixed), rel=0.003)
    assert timing.summary.eager_device_ms / timing.summary.compiled_device_ms == pytest.approx(ratio, rel=0.003)
    assert timing.quality is Quality.OK, timing.flags
    assert {"warmup", "timed", "event", "device"} == set(timing.samples.phase)


def test_what_the_host_does_counts_on_its_clock_and_not_on_the_devices(machine, device):
    step = spin(2 * cycles_per_ms(machine))
    timing = timed(device, before(step, busy_wait(0.002)), step)
    summary = timing.summary
    assert summary.eager_ms - summary.compiled_ms == pytest.approx(2.0, rel=0.03)
    assert timing.summary.eager_device_ms == pytest.approx(timing.summary.compiled_device_ms, rel=0.01)
    assert timing.summary.eager_device_ms == pytest.approx(2.0, rel=0.02)


def test_a_step_of_many_launches_keeps_the_device_waiting(machine, device):
    step = few_kernels(300, device)
    timing = timed(device, step, step, MeasureSpec(max_time_s=2.0, max_pairs=8, warmup_max_s=5.0))
    assert timing.summary.eager_device_ms < 0.9 * timing.summary.eager_ms

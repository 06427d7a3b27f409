from __future__ import annotations

from dataclasses import fields, replace

import pytest

from tasks.estimator import summarise
from tasks.merge import merge
from tasks.spec import FailureClass, Measurement, Phase, Samples, Status, WorkerResult
from tests.orchestrator.stored import some_samples


def result(seed=0, ratio=1.5, status=Status.PASS, error=None, **found):
    samples = some_samples(seed, ratio=ratio)
    summary = summarise(samples)
    numbers = {field.name: getattr(summary, field.name) for field in fields(Measurement) if hasattr(summary, field.name)}
    given = {"accuracy": "pass", "quality": "ok"} | found
    return WorkerResult(status, Phase.TIME, None, error, Measurement(**numbers | given), samples)


def test_the_numbers_are_those_of_all_samples_together():
    merged = merge([result(1, 1.4), result(2, 1.5), result(3, 1.6)])
    again = summarise(merged.samples)
    assert set(merged.samples.process) == {0, 1, 2}
    assert (merged.measurement.speedup, merged.measurement.speedup_low) == (again.speedup, again.speedup_low)
    assert merged.measurement.process_speedups == pytest.approx((1.4, 1.5, 1.6), rel=0.03)
    assert merged.measurement.pairs == 36


def test_the_verdict_is_the_worst_one_with_all_that_belongs_to_it():
    good = result(accuracy_margin=0.9, accuracy_tensor="a", compile_s=9.0)
    failed = replace(
        result(status=Status.FAIL_ACCURACY, error="wrong", accuracy="fail", accuracy_margin=-1.0, accuracy_tensor="b", compile_s=1.0),
        failure_class=FailureClass.ACCURACY,
    )
    merged = merge([good, failed, good])
    assert (merged.status, merged.failure_class, merged.error) == (Status.FAIL_ACCURACY, FailureClass.ACCURACY, "process 2: wrong")
    assert (merged.measurement.accuracy, merged.measurement.accuracy_tensor) == ("fail", "b")
    narrow = merge([good, result(accuracy_margin=0.1, accuracy_tensor="c")])
    assert (narrow.status, narrow.measurement.accuracy_tensor, narrow.error) == (Status.PASS, "c", None)


def test_what_warns_is_the_worst_and_what_describes_is_the_first():
    one = result(quality="wide", compile_s=9.0, recompiles=0, fell_back=False, deterministic=True, eager_peak_mib=5.0)
    two = result(quality="contaminated", compile_s=1.0, recompiles=2, fell_back=True, deterministic=False, eager_peak_mib=None)
    found = merge([one, two]).measurement
    assert (found.quality, found.compile_s, found.recompiles, found.fell_back) == ("contaminated", 9.0, 2, True)
    assert (found.deterministic, found.eager_peak_mib, found.neighbours) == (False, 5.0, None)


def test_the_machine_is_described_by_its_extremes():
    one = {
        "cores": 2,
        "room_waited_s": 1.5,
        "sm_clock_mhz_min": 100,
        "gpu_power_w_max": 300,
        "cpu_wait_share": 0.1,
        "page_faults_per_s": 3,
        "quality_reason": None,
    }
    two = {
        "cores": 2,
        "room_waited_s": 2.0,
        "sm_clock_mhz_min": 90,
        "gpu_power_w_max": 200,
        "cpu_wait_share": None,
        "page_faults_per_s": 7,
        "quality_reason": "wide: w",
    }
    assert merge([result(machine=one), result(machine=two)]).measurement.machine == {
        "cores": 2,
        "sm_clock_mhz_min": 90,
        "room_waited_s": 3.5,
        "gpu_power_w_max": 300,
        "cpu_wait_share": 0.1,
        "page_faults_per_s": 7,
        "quality_reason": "process 2: wide: w",
    }


def test_device_time_is_the_median_of_the_processes_and_tells_what_is_launch_bound():
    parts = [with_device_times(result(), device_ms) for device_ms in (1.0, 1.49, 1.5)]
    found = merge(parts).measurement
    assert (found.eager_device_ms, found.compiled_device_ms, found.launch_bound) == (1.49, None, False)
    assert merge(parts[:1] * 2).measurement.launch_bound is True


def with_device_times(one, *times_ms):
    """``one`` with so many samples of the device's own time of an eager iteration."""
    columns = {field.name: list(getattr(one.samples, field.name)) for field in fields(one.samples)}
    for time_ms in times_ms:
        for name, column in columns.items():
            column.append(
                {"phase": "device", "pair": -1, "block": -1, "order": -1, "arm": "eager", "device_ms": time_ms}.get(name, column[0])
            )
    return replace(one, samples=Samples(**{name: tuple(column) for name, column in columns.items()}))


def test_a_process_without_a_measurement_is_a_bug():
    with pytest.raises(ValueError, match="process 2 ended as crash"):
        merge([result(), result(status=Status.CRASH)])

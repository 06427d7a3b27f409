"""The list of GPUs without NVML: against a stand-in for the driver library, and on a machine without one."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
import uuid
from dataclasses import dataclass, field

import pytest

from tasks import cuda_driver, probe

UUID = uuid.UUID("12345678-1234-5678-1234-567812345678")


@dataclass
class Driver:
    """What libcuda's functions do to their arguments."""

    devices: int = 1
    init: int = 0
    broken: int = 0
    asked: list = field(default_factory=list)

    def cuInit(self, flags):  # noqa: N802 - CUDA's names
        return self.init

    def cuDeviceGetCount(self, count):  # noqa: N802
        count._obj.value = self.devices
        return 0

    def cuDeviceGetName(self, name, size, device):  # noqa: N802
        assert size == len(name)
        name.value = b"NVIDIA H200"
        return self.broken

    def cuDeviceGetUuid(self, identity, device):  # noqa: N802
        ctypes.memmove(identity, UUID.bytes, 16)
        return 0

    def cuDeviceTotalMem_v2(self, memory, device):  # noqa: N802
        memory._obj.value = (141 + device) * 2**30
        return 0

    def cuDeviceGetAttribute(self, value, attribute, device):  # noqa: N802
        value._obj.value = {75: 9, 76: 0}[attribute]
        return 0


def test_every_device_is_listed_with_what_planning_needs():
    first, second = cuda_driver.listed(Driver(2))

    assert probe.Gpu(**first) == probe.Gpu("NVIDIA H200", f"GPU-{UUID}", 90, 141 * 1024)
    assert second["memory_mib"] == 142 * 1024


def test_without_a_device_or_with_a_driver_that_does_not_start_there_is_nothing():
    assert list(cuda_driver.listed(Driver(0))) == []
    assert list(cuda_driver.listed(Driver(init=100))) == []


def test_a_driver_that_fails_for_a_device_says_so():
    with pytest.raises(OSError, match="errors"):
        list(cuda_driver.listed(Driver(broken=1)))


def test_it_runs_as_a_process_with_the_standard_library_only(monkeypatch):
    monkeypatch.setattr(cuda_driver, "LIBRARY", "libthere-is-none.so")
    assert cuda_driver.main() == 1

    done = subprocess.run([sys.executable, "-IS", cuda_driver.__file__], capture_output=True, text=True)
    assert done.returncode == 1 or isinstance(json.loads(done.stdout), list)


def test_it_is_asked_where_nvml_says_nothing(monkeypatch, tmp_path):
    gpu = {"name": "NVIDIA H200", "uuid": "GPU-1", "capability": 90, "memory_mib": 143_771}
    monkeypatch.setattr(cuda_driver, "gpus", lambda: [gpu])
    monkeypatch.setattr(probe, "_gpus", lambda: (None, ()))
    monkeypatch.setattr(probe, "DRIVER", tmp_path)

    assert probe.probe().gpus == (probe.Gpu(**gpu),)
    monkeypatch.setattr(probe, "DRIVER", tmp_path / "missing")
    assert probe.probe().gpus == ()

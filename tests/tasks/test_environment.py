from __future__ import annotations

import json
import os
import subprocess
import sys
import types

import pytest
import torch

from tasks import environment, hardware
from tasks.hardware import CudaMachine, HostMachine, read_host, share
from tasks.nvml import GpuReading, Nvml
from tasks.probe import cpu_model
from tasks.spec import Measurement, decode, encode
from tasks.stepper import Border

CPU = torch.device("cpu")


class TestOnce:
    def test_versions_name_what_moves_numbers(self):
        found = environment.versions()
        assert found["torch"] == torch.__version__
        assert found["python"].count(".") == 2
        assert {"triton", "transformers", "timm", "torchvision", "numpy", "cuda"} <= found.keys()

    def test_what_is_not_installed_is_none(self, monkeypatch):
        monkeypatch.setattr(environment, "LIBRARIES", ("no-such-package",))
        assert environment.versions()["no-such-package"] is None

    def test_the_machine_is_described_in_scalars(self):
        found = environment.machine(CPU)
        assert found["affinity_cores"] == len(os.sched_getaffinity(0))
        assert found["memory_mib"] > 100
        row = Measurement(machine=found, versions=environment.versions())
        assert decode(Measurement, json.loads(json.dumps(encode(row)))) == row

    def test_the_cpu_has_no_uuid(self):
        assert environment.gpu_uuid(CPU) is None

    @pytest.mark.parametrize(("uuid", "expected"), [("12-34", "GPU-12-34"), ("GPU-12-34", "GPU-12-34"), ("MIG-5", "MIG-5")])
    def test_uuids_are_written_as_nvml_does(self, monkeypatch, uuid, expected):
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: types.SimpleNamespace(uuid=uuid))
        assert environment.gpu_uuid(torch.device("cuda")) == expected

    @pytest.mark.parametrize(("numbers", "expected"), [([], ""), ([3], "3"), ([0, 1, 2, 8], "0-2,8"), ([1, 3, 4], "1,3-4")])
    def test_ranges(self, numbers, expected):
        assert environment._ranges(numbers) == expected

    def test_the_processors_name_comes_from_the_kernel(self, tmp_path):
        cpuinfo = tmp_path / "cpuinfo"
        cpuinfo.write_text("processor : 0\nmodel name\t: Fast One 3000\nmodel name\t: Other\n")
        assert cpu_model(cpuinfo) == "Fast One 3000"
        assert cpu_model(tmp_path / "none")


def stat(path, pid, parent, *ticks):
    folder = path / str(pid)
    folder.mkdir()
    fields = ["S", parent, *[0] * 9, *ticks, *[0] * 20]
    (folder / "stat").write_text(f"{pid} (na) me) {' '.join(map(str, fields))}")


class TestProcessTree:
    def test_descendants_and_the_dead_are_counted(self, tmp_path):
        stat(tmp_path, 10, 1, 100, 20, 5, 5)
        stat(tmp_path, 11, 10, 50, 0, 0, 0)
        stat(tmp_path, 12, 11, 0, 30, 0, 0)
        stat(tmp_path, 13, 1, 1000, 0, 0, 0)
        (tmp_path / "sys").mkdir()
        assert environment.process_tree_cpu_s(10, tmp_path) == 210 / os.sysconf("SC_CLK_TCK")

    def test_a_real_child_counts(self):
        before = environment.process_tree_cpu_s()
        subprocess.run([sys.executable, "-c", "sum(range(6_000_000))"], check=True)
        assert environment.process_tree_cpu_s() > before

    def test_there_may_be_no_proc(self, tmp_path):
        assert environment.process_tree_cpu_s(10, tmp_path / "none") is None


def proc(path, pressure_us=0, steal_ticks=0, wait_ns=0):
    """A directory like /proc with two processors."""
    files = {
        "pressure/cpu": f"some avg10=0.00 avg60=0.00 avg300=0.00 total={pressure_us}\nfull avg10=0.00 total=0\n",
        "stat": f"cpu  1 2 3 4 5 6 7 {steal_ticks} 0 0\ncpu0 1 2\ncpu1 1 2\nintr 5\n",
        f"self/task/{hardware.threading.get_native_id()}/schedstat": f"100 {wait_ns} 3\n",
    }
    for name, text in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(text)
    return path


@pytest.fixture
def seconds(monkeypatch):
    """A monotonic clock to be set by hand."""
    clock = types.SimpleNamespace(now=100.0)
    monkeypatch.setattr(hardware.time, "monotonic", lambda: clock.now)
    return clock


class TestHost:
    def test_counters_become_shares_of_the_time(self, tmp_path, seconds):
        first = read_host(proc(tmp_path))
        seconds.now += 10
        second = read_host(proc(tmp_path, pressure_us=2_000_000, steal_ticks=200, wait_ns=500_000_000))
        found = [share(first, second, name) for name in ("pressure_s", "steal_s", "wait_s")]
        assert found == pytest.approx([0.2, 0.1, 0.05])  # 2 s of steal over two processors are 1 s each

    def test_page_faults_are_counted_by_the_second(self, tmp_path, seconds, monkeypatch):
        counts = iter([1000, 1000, 6000])
        monkeypatch.setattr(hardware.resource, "getrusage", lambda who: types.SimpleNamespace(ru_minflt=next(counts)))
        machine = HostMachine(tmp_path)
        machine.begin()
        seconds.now += 10
        machine.fault()
        assert machine.summary()["page_faults_per_s"] == 500

    def test_how_fast_the_processor_is_is_looked_at_as_visits_begin(self, tmp_path, monkeypatch):
        probes = iter([900_000, 64_000, 111_000, 66_000])
        monkeypatch.setattr(hardware.host_speed, "probe_ns", lambda: next(probes))
        machine = HostMachine(tmp_path)
        machine.mark()
        machine.begin()  # what was before counts no more
        for _ in range(3):
            machine.mark()
        found = machine.summary()
        assert (found["host_probe_us"], found["host_probe_us_max"]) == (66.0, 111.0)

    def test_what_is_not_there_is_none(self, tmp_path, seconds):
        reading = read_host(tmp_path)
        assert (reading.pressure_s, reading.steal_s, reading.wait_s) == (None, None, None)
        machine = HostMachine(tmp_path)
        seconds.now += 1
        assert machine.fault() is None
        assert machine.contaminated() is None
        assert {name for name, value in machine.summary().items() if value is not None} == {"page_faults_per_s"}

    @pytest.mark.parametrize(
        ("counters", "reason"),
        [
            ({}, None),
            ({"steal_ticks": 300}, "hypervisor gave 15%"),
            ({"wait_ns": 2_000_000_000}, "waited for a processor for 20%"),
            ({"wait_ns": 500_000_000, "steal_ticks": 50, "pressure_us": 9_000_000}, None),
        ],
    )
    def test_lost_processors_contaminate(self, tmp_path, seconds, counters, reason):
        machine = HostMachine(proc(tmp_path))
        seconds.now += 10
        proc(tmp_path, **counters)
        machine.mark()
        assert machine.fault() is None  # the processors' state spoils no single pair
        found = machine.contaminated()
        assert (reason in found) if reason else found is None

    def test_this_machine_can_be_read(self):
        machine = HostMachine()
        machine.mark()
        assert machine.now_ns() < machine.now_ns()
        assert machine.clock_mhz() is None
        assert machine.device_ms(lambda: None) is None


class FakeGpu:
    def __init__(self, *readings, others=()):
        self.readings = iter(readings)
        self.others = others

    def sees_processes(self):
        return bool(self.others)

    def read(self):
        return next(self.readings)

    def others_busy(self, since_us):
        return self.others


def reading(thermal=0, brake=0, **more):
    return GpuReading({"hardware thermal": thermal, "power brake": brake}, **more)


class TestCuda:
    def machine(self, tmp_path, *readings, others=()):
        return CudaMachine(torch.device("cuda"), FakeGpu(reading(), *readings, others=others), proc(tmp_path))

    @pytest.mark.parametrize(
        ("before", "after", "fault"),
        [
            (reading(), reading(), None),
            (reading(5, 7), reading(5, 7), None),
            (reading(), reading(thermal=1), "the GPU throttled: hardware thermal"),
            (reading(), reading(1, 1), "the GPU throttled: hardware thermal, power brake"),
            (reading(), reading(power_cap_ns=10**9), None),  # the power limit is the steady state of large products
            (GpuReading(), GpuReading(), None),
        ],
    )
    def test_a_slow_down_of_the_hardware_spoils_the_pair(self, tmp_path, before, after, fault):
        machine = self.machine(tmp_path, before, after)
        machine.mark()
        assert machine.fault() == fault

    def test_a_slow_down_spoils_one_pair_only(self, tmp_path):
        machine = self.machine(tmp_path, reading(), reading(thermal=9), reading(thermal=9), reading(thermal=9))
        found = []
        for _ in range(2):
            machine.mark()
            found.append(machine.fault() is not None)
        assert found == [True, False]

    def test_others_at_work_spoil_it_too(self, tmp_path):
        machine = self.machine(tmp_path, reading(), reading(), others=(77, 78))
        machine.mark()
        assert machine.fault() == "other processes used the GPU: 77, 78"

    def test_without_nvml_nothing_is_known(self, tmp_path):
        machine = CudaMachine(torch.device("cuda"), None, proc(tmp_path))
        machine.mark()
        assert machine.fault() is None
        assert not {name for name in machine.summary() if "gpu" in name or "clock" in name} - {"gpu_others_visible"}
        assert machine.summary()["gpu_others_visible"] is False

    def test_a_gpu_that_was_busy_from_the_start_makes_the_row_contaminated(self, tmp_path):
        busy = CudaMachine(torch.device("cuda"), None, proc(tmp_path), busy=lambda: "the GPU was not idle")
        assert busy.contaminated() == "the GPU was not idle"
        assert CudaMachine(torch.device("cuda"), None, proc(tmp_path)).contaminated() is None

    def test_a_border_says_how_the_gpu_is_and_what_it_counted_since_the_last(self, tmp_path, seconds):
        marked, one, two = (
            reading(thermal=thermal, brake=1, clock_mhz=mhz, power_w=300.0, energy_mj=energy, power_cap_ns=ns, clock_reasons=reasons)
            for thermal, mhz, energy, ns, reasons in ((0, 1900, 50, 0, ""), (5, 1800, 70, 9, "hw_thermal"), (5, 1850, 75, 9, ""))
        )
        machine = self.machine(tmp_path, marked, one, two, others=(77, 78))
        machine.mark()
        proc(tmp_path, pressure_us=500_000, wait_ns=250_000_000)
        first, second = machine.border(), machine.border()
        assert (first.sm_clock_mhz, first.energy_mj, first.power_cap_ns, first.slowdown_ns) == (1800, 20, 9, 5)
        assert (first.clock_reasons, first.other_processes, first.cpu_pressure_s, first.cpu_wait_s) == ("hw_thermal", "77,78", 0.5, 0.25)
        assert (second.sm_clock_mhz, second.energy_mj, second.power_cap_ns, second.slowdown_ns, second.cpu_wait_s) == (1850, 5, 0, 0, 0.0)
        assert machine.fault() == "the GPU throttled: hardware thermal"  # over the pair, borders or not

    def test_the_reading_at_a_border_is_that_of_the_pair_and_of_the_next_ones_beginning(self, tmp_path, monkeypatch):
        readings = [reading(), *(reading(thermal=thermal) for thermal in (0, 0, 3, 3))]
        machine = self.machine(tmp_path, *readings)
        monkeypatch.setattr(hardware.time, "sleep", lambda seconds: None)
        found = []
        for _ in range(2):
            machine.mark()
            machine.border()
            machine.border()
            found.append(machine.fault())
        assert found == [None, "the GPU throttled: hardware thermal"]
        machine.sleep(0.1)
        with pytest.raises(StopIteration):  # who has slept reads anew
            machine.mark()

    def test_a_border_without_nvml_knows_the_host_and_the_clock(self, tmp_path, monkeypatch):
        machine = CudaMachine(torch.device("cuda"), None, proc(tmp_path))
        monkeypatch.setattr(machine, "_spin_ms", lambda cycles: 0.3 + cycles / 1.5e6)
        machine.mark()
        assert machine.border() == Border(sm_clock_mhz=pytest.approx(1500), cpu_pressure_s=0.0, cpu_steal_s=0.0, cpu_wait_s=0.0)

    @pytest.mark.parametrize("others", [(), (77,)])
    def test_the_row_says_whether_others_can_be_seen(self, tmp_path, others):
        assert self.machine(tmp_path, others=others).summary()["gpu_others_visible"] is bool(others)

    def test_the_row_says_how_the_gpu_was(self, tmp_path, seconds):
        readings = [
            reading(clock_mhz=mhz, temperature_c=50, power_w=watts, power_cap_ns=ns)
            for mhz, watts, ns in ((1900, 300, 0), (1800, 690, 4e9))
        ]
        machine = self.machine(tmp_path, *readings)
        machine.mark()
        seconds.now += 10
        machine.fault()
        found = machine.summary()
        assert (found["sm_clock_mhz_min"], found["sm_clock_mhz_max"], found["gpu_power_w_max"]) == (1800, 1900, 690)
        assert found["power_cap_share"] == pytest.approx(0.4)

    def test_the_clock_is_what_a_spin_takes(self, tmp_path, monkeypatch):
        machine = self.machine(tmp_path)
        monkeypatch.setattr(machine, "_spin_ms", lambda cycles: 0.3 + cycles / 1.98e6)
        assert machine.clock_mhz() == pytest.approx(1980)
        monkeypatch.setattr(machine, "_spin_ms", lambda cycles: 0.3)
        assert machine.clock_mhz() is None

    @pytest.mark.parametrize("span_ms", [7.0, None])
    def test_device_time_is_taken_behind_a_spin_twice_as_long_as_the_launch_and_tried_once(self, tmp_path, monkeypatch, span_ms):
        machine, spins = self.machine(tmp_path), []
        ticks = iter([10.0, 10.1])
        monkeypatch.setattr(machine, "synchronize", lambda: None)
        monkeypatch.setattr(hardware.time, "perf_counter", lambda: next(ticks))
        monkeypatch.setattr(machine, "_queued_span_ms", lambda step, spin_s: spins.append(spin_s) or span_ms)
        assert machine.device_ms(lambda: None) == span_ms
        assert spins == [pytest.approx(0.2, abs=0.001)]

    def test_a_step_that_takes_long_to_launch_has_no_device_time(self, tmp_path, monkeypatch):
        machine = self.machine(tmp_path)
        ticks = iter([0.0, 60.0])
        monkeypatch.setattr(machine, "synchronize", lambda: None)
        monkeypatch.setattr(hardware.time, "perf_counter", lambda: next(ticks))
        assert machine.device_ms(lambda: None) is None


class FakeNvml:
    """The parts of pynvml that are used; every function fails that is not given."""

    NVML_CLOCK_SM = 1
    NVML_CLOCK_MEM = 2
    NVML_TEMPERATURE_GPU = 0
    NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_THERM_SLOWDOWN = 270
    NVML_FI_DEV_PERF_POLICY_POWER = 74

    class NVMLError(Exception):
        pass

    def __init__(self, **answers):
        self.answers = answers

    def nvmlDeviceGetHandleByUUID(self, uuid):  # noqa: N802
        return f"handle of {uuid}"

    def nvmlDeviceGetFieldValues(self, handle, numbers):  # noqa: N802
        values = [self.answers.get(number) for number in numbers]
        return [types.SimpleNamespace(nvmlReturn=int(value is None), value=types.SimpleNamespace(ullVal=value)) for value in values]

    def __getattr__(self, name):
        def call(handle, *arguments):
            assert handle == "handle of GPU-1"
            if name not in self.answers:
                raise self.NVMLError
            return self.answers[name]

        return call


class TestNvml:
    def test_a_reading(self):
        answers = {"nvmlDeviceGetPowerUsage": 650_000, "nvmlDeviceGetClockInfo": 1980, "nvmlDeviceGetTemperature": 61}
        answers |= {"nvmlDeviceGetTotalEnergyConsumption": 12, "nvmlDeviceGetCurrentClocksEventReasons": 0x4 | 0x80}
        nvml = FakeNvml(**answers)
        nvml.answers |= {270: 5, 74: 9}
        assert Nvml(nvml, "GPU-1", 42).read() == GpuReading(
            {"hardware thermal": 5}, 9, 1980, 61, 650.0, 1980, 12, "sw_power_cap,hw_power_brake"
        )

    def test_the_reasons_for_a_clock_have_an_older_name_and_may_be_none(self):
        class Older(FakeNvml):
            nvmlDeviceGetCurrentClocksEventReasons = None  # noqa: N815

        assert Nvml(Older(nvmlDeviceGetCurrentClocksThrottleReasons=0x20), "GPU-1", 42).read().clock_reasons == "sw_thermal"
        assert Nvml(FakeNvml(nvmlDeviceGetCurrentClocksEventReasons=0), "GPU-1", 42).read().clock_reasons == ""

    def test_what_the_driver_does_not_tell_is_none(self):
        assert Nvml(FakeNvml(), "GPU-1", 42).read() == GpuReading()

    def test_other_processes_are_those_at_work_since_then(self):
        def entry(pid, busy, at_us):
            return types.SimpleNamespace(pid=pid, smUtil=busy, timeStamp=at_us)

        def others(*entries, listed=()):
            running = [types.SimpleNamespace(pid=pid) for pid in listed]
            nvml = FakeNvml(nvmlDeviceGetProcessUtilization=entries, nvmlDeviceGetComputeRunningProcesses=running)
            return Nvml(nvml, "GPU-1", 42).others_busy(1000)

        assert others(entry(42, 90, 2000), entry(7, 30, 2000)) == (7,)
        assert others(entry(42, 90, 2000), entry(7, 0, 2000), entry(8, 50, 900)) == ()
        assert others(entry(7, 30, 2000)) == ()  # we are not on the list: the numbers are another namespace's
        assert others(entry(7, 30, 2000), listed=(7, 8)) == ()
        assert others(entry(7, 30, 2000), listed=(7, 8, 42)) == (7,)  # we are, and were idle; 8 is idle, too
        assert others() == ()

    def test_it_may_not_see_processes_by_their_numbers(self):
        entries = {pid: FakeNvml(nvmlDeviceGetComputeRunningProcesses=[types.SimpleNamespace(pid=pid)]) for pid in (42, 9)}
        assert [Nvml(nvml, "GPU-1", 42).sees_processes() for nvml in entries.values()] == [True, False]
        assert Nvml(FakeNvml(), "GPU-1", 42).sees_processes() is False

    def test_it_need_not_be_there(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "pynvml", None)
        assert Nvml.open("GPU-1", 42) is None

    def test_nor_need_a_driver(self, monkeypatch):
        fake = types.SimpleNamespace(NVMLError=FakeNvml.NVMLError, nvmlInit=_fails)
        monkeypatch.setitem(sys.modules, "pynvml", fake)
        assert Nvml.open("GPU-1", 42) is None


def _fails():
    raise FakeNvml.NVMLError


def test_the_machine_fits_the_device():
    assert type(hardware.machine_for(CPU, None, "a neighbour that does not stop")) is HostMachine

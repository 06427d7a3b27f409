"""What a task ran on: versions, processors, GPU. Read once per task; what changes meanwhile is ``tasks.hardware``'s."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Iterator
from pathlib import Path

import torch

from tasks.launch import WORKER_START
from tasks.probe import cpu_model
from tasks.spec import Scalar

LIBRARIES = ("torch", "triton", "torchvision", "transformers", "timm", "numpy")
_MIB = 2**20


def versions() -> dict[str, str | None]:
    """Of everything that can move a number; None for what is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    found |= {name: _installed(name) for name in LIBRARIES}
    found["torch"] = str(torch.__version__)
    found["torch_git"] = getattr(torch.version, "git_version", None)
    found["cuda"] = torch.version.cuda
    if torch.cuda.is_available():
        found["cudnn"] = str(torch.backends.cudnn.version())  # type: ignore[no-untyped-call]
        found["driver"] = _driver()
    return found


def machine(device: torch.device) -> dict[str, Scalar]:
    """Processors, memory and, on CUDA, the GPU."""
    affinity = os.sched_getaffinity(0)
    found: dict[str, Scalar] = {
        "cpu": cpu_model(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "affinity_cores": len(affinity),
        "affinity": _ranges(sorted(affinity)),
        "memory_mib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // _MIB,
        "interop_threads": torch.get_num_interop_threads(),
        "load_average": os.getloadavg()[0],
        "governor": _read(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")),
        "turbo_disabled": _read(Path("/sys/devices/system/cpu/intel_pstate/no_turbo")),
        "smt": _read(Path("/sys/devices/system/cpu/smt/active")),
        "kernel": platform.release(),
        "worker_start": os.environ.get(WORKER_START),
    }
    return found | (_gpu(device) if device.type == "cuda" else {})


def gpu_uuid(device: torch.device) -> str | None:
    """As NVML writes it, ``GPU-...``; None on the CPU."""
    if device.type != "cuda":
        return None
    uuid = str(torch.cuda.get_device_properties(device).uuid)
    return uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"


def process_tree_cpu_s(root: int | None = None, proc: Path = Path("/proc")) -> float | None:
    """CPU seconds used so far by process ``root`` (None: this one), its descendants and those of them that have ended.

    None where there is no /proc.
    """
    try:
        stats = {pid: (parent, ticks) for pid, parent, ticks in _processes(proc)}
    except FileNotFoundError:
        return None
    top = os.getpid() if root is None else root
    family = {top}
    while more := {pid for pid, (parent, _) in stats.items() if parent in family} - family:
        family |= more
    return sum(stats[pid][1] for pid in family if pid in stats) / os.sysconf("SC_CLK_TCK")


def _processes(proc: Path) -> Iterator[tuple[int, int, int]]:
    """Process number, parent, and clock ticks of itself and of its children that were waited for: fields 4 and 14 to 17 of stat."""
    for entry in proc.iterdir():
        text = _read(entry / "stat") if entry.name.isdigit() else None
        if text:
            fields = text.rpartition(")")[2].split()  # the name before it may hold anything
            yield int(entry.name), int(fields[1]), sum(int(field) for field in fields[11:15])


def _gpu(device: torch.device) -> dict[str, Scalar]:
    properties = torch.cuda.get_device_properties(device)
    return {
        "gpu": properties.name,
        "gpu_capability": f"{properties.major}.{properties.minor}",
        "gpu_memory_mib": properties.total_memory // _MIB,
        "gpu_multiprocessors": properties.multi_processor_count,
    }


def _driver() -> str | None:
    """From the kernel module, which needs no NVML."""
    text = _read(Path("/sys/module/nvidia/version")) or ""
    if text:
        return text
    words = (_read(Path("/proc/driver/nvidia/version")) or "").split()
    return next((word for word in words if word[0].isdigit() and word.count(".") >= 1), None)


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def _ranges(numbers: list[int]) -> str:
    """``0-3,8`` for 0, 1, 2, 3, 8."""
    groups: list[list[int]] = []
    for number in numbers:
        if groups and number == groups[-1][-1] + 1:
            groups[-1].append(number)
        else:
            groups.append([number])
    return ",".join(str(group[0]) if len(group) == 1 else f"{group[0]}-{group[-1]}" for group in groups)

"""What a node has: library versions and devices, without importing torch. Standard library and, if there, NVML.

Preflight asks every node once. Importing torch for this would take seconds and, in a Ray worker, stay there for ever; its version file
and the packages' metadata say as much.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from tasks import cuda_driver

DRIVER = Path("/dev/nvidiactl")
LIBRARIES = ("torch", "triton", "torchvision", "transformers", "timm", "numpy", "ray")


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU as NVML sees it; ``capability`` is the compute capability times ten, 90 for 9.0."""

    name: str
    uuid: str
    capability: int
    memory_mib: int


@dataclass(frozen=True, slots=True)
class NodeProbe:
    """One node. ``torch_cuda`` is the CUDA version that torch was built for; None: a CPU build, or no torch."""

    host: str
    python: str
    code_version: str
    cores: int
    versions: dict[str, str | None] = field(default_factory=dict)
    torch_cuda: str | None = None
    gpus: tuple[Gpu, ...] = ()
    driver: str | None = None
    compiler: str | None = None  # the C++ compiler that Inductor needs for the CPU
    processor: str = ""


def probe() -> NodeProbe:
    """Look at this machine."""
    driver, gpus = _gpus()
    if not gpus and DRIVER.exists():
        gpus = tuple(Gpu(**gpu) for gpu in cuda_driver.gpus())
    return NodeProbe(
        host=socket.gethostname(),
        python=platform.python_version(),
        code_version=code_version(),
        cores=len(os.sched_getaffinity(0)),
        versions={name: _version(name) for name in LIBRARIES},
        torch_cuda=_torch_cuda(),
        gpus=gpus,
        driver=driver,
        compiler=_compiler(),
        processor=cpu_model(),
    )


def cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name, from a file like /proc/cpuinfo."""
    lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines() if cpuinfo.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model")))
    return next(names, "") or platform.processor() or platform.machine()


@cache
def code_version() -> str:
    """A digest of the worker side's source files: two nodes with the same one run the same code."""
    root = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _torch_cuda() -> str | None:
    found = importlib.util.find_spec("torch")
    if found is None or not found.origin:
        return None
    version_file = Path(found.origin).with_name("version.py")
    match = re.search(r"^cuda\s*(?::[^=]+)?=\s*'([^']+)'", version_file.read_text(encoding="utf-8"), re.MULTILINE)
    return match.group(1) if match else None


def _compiler() -> str | None:
    from shutil import which

    return os.environ.get("CXX") or next((path for name in ("g++", "clang++") if (path := which(name))), None)


def _gpus() -> tuple[str | None, tuple[Gpu, ...]]:
    try:
        import pynvml
    except ModuleNotFoundError:
        return None, ()
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:  # no driver: a machine without an NVIDIA GPU
        return None, ()
    try:
        return str(pynvml.nvmlSystemGetDriverVersion()), tuple(_nvml_gpus(pynvml))
    finally:
        pynvml.nvmlShutdown()


def _nvml_gpus(pynvml: object) -> Iterator[Gpu]:
    from typing import Any, cast

    nvml = cast("Any", pynvml)
    for index in range(nvml.nvmlDeviceGetCount()):
        device = nvml.nvmlDeviceGetHandleByIndex(index)
        major, minor = nvml.nvmlDeviceGetCudaComputeCapability(device)
        yield Gpu(
            name=str(nvml.nvmlDeviceGetName(device)),
            uuid=str(nvml.nvmlDeviceGetUUID(device)),
            capability=10 * int(major) + int(minor),
            memory_mib=int(nvml.nvmlDeviceGetMemoryInfo(device).total) // 2**20,
        )

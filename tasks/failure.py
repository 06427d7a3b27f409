"""From an exception to a status, a failure class and one readable message. The traceback goes to stderr, and so to the log."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from tasks.spec import FailureClass, Phase, Status
from tasks.suites.benchmark import UnsupportedModelError
from tasks.verdict import DISK_FULL

MAX_MESSAGE_CHARACTERS = 2000
_BY_PHASE = {
    Phase.START: (Status.INFRA_ERROR, FailureClass.DEVICE),
    Phase.BUILD: (Status.FAIL_EAGER, FailureClass.MODEL),
    Phase.EAGER: (Status.FAIL_EAGER, FailureClass.MODEL),
    Phase.COMPILE: (Status.FAIL_COMPILE, FailureClass.COMPILER),
}
_DEVICE_OOM = (
    *("CUDA out of memory", "CUDA error: out of memory", "CUDA driver error: out of memory", "Triton Error [CUDA]: out of memory"),
    *("CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED"),
    "when calling `cublasCreate(handle)`",  # these two blame themselves: NOT_INITIALIZED, INTERNAL_ERROR
    "when calling `cusolverDnCreate(handle)`",
    "CUDA-capable device(s) is/are busy or unavailable",  # a process that starts on a device without a few hundred MiB for it
)
_HOST_OOM = ("DefaultCPUAllocator", "Cannot allocate memory")
_DEVICE_LOST = (
    "uncorrectable ECC",
    "GPU is lost",
    "has fallen off the bus",
    "unspecified launch failure",
    "CUDA driver version is insufficient",
)
_UNINTERESTING = ("/torch/", "/contextlib.py", "/functools.py")


class NoDeviceError(Exception):
    """The task wants a CUDA device and this process sees none."""


@dataclass(frozen=True, slots=True)
class Failure:
    """How a task failed."""

    status: Status
    failure_class: FailureClass
    message: str


def classify(error: Exception, phase: Phase) -> Failure:
    """Say what ``error`` in ``phase`` means, and print its traceback."""
    traceback.print_exception(error)
    chain = list(_chain(error))
    text = _text_of(chain)
    message = _message(chain)
    if lacks_memory(error):
        return Failure(Status.OOM, FailureClass.DEVICE_OOM, message)
    if any(isinstance(one, MemoryError) for one in chain) or any(sign in text for sign in _HOST_OOM):
        return Failure(Status.OOM, FailureClass.HOST_OOM, message)
    if any(isinstance(one, OSError) and one.errno in DISK_FULL for one in chain):
        return Failure(Status.INFRA_ERROR, FailureClass.DISK_FULL, message)
    if isinstance(error, UnsupportedModelError):
        return Failure(Status.UNSUPPORTED, FailureClass.UNSUPPORTED, str(error))
    if isinstance(error, (NoDeviceError, ConnectionError)) or any(sign in text for sign in _DEVICE_LOST):
        return Failure(Status.INFRA_ERROR, FailureClass.DEVICE, message)
    return Failure(*_BY_PHASE.get(phase, (Status.FAIL_RUN, FailureClass.COMPILER)), message)


def lacks_memory(error: Exception) -> bool:
    """Whether the device's memory is what ``error``, or what caused it, complains of: torch's allocator, the driver or a library."""
    chain = list(_chain(error))
    text = _text_of(chain)
    return any(isinstance(one, torch.OutOfMemoryError) for one in chain) or any(sign in text for sign in _DEVICE_OOM)


def require_cuda() -> None:
    """``NoDeviceError`` unless a CUDA device can be used."""
    if torch.version.cuda is None:
        raise NoDeviceError(f"the task wants CUDA, and torch {torch.__version__} was built without it")
    if not torch.cuda.is_available():
        raise NoDeviceError("the task wants CUDA, and torch finds no usable device: check the driver and CUDA_VISIBLE_DEVICES")


def _text_of(chain: list[BaseException]) -> str:
    return "\n".join(f"{type(one).__name__}: {one}" for one in chain)


def _message(chain: list[BaseException]) -> str:
    """Type, text and place of the failure; and those of its cause, if that is another one."""
    parts = [f"{type(one).__name__}: {_text(one)}" for one in (chain[0], chain[-1])]
    unique = [parts[0]] if parts[1] in parts[0] or _text(chain[-1]) in parts[0] else parts
    return "\n".join([*unique, *_place(chain)])[:MAX_MESSAGE_CHARACTERS]


def _text(error: BaseException) -> str:
    """What it says, without torch's advice on environment variables."""
    lines = [line.rstrip() for line in str(error).splitlines()]
    end = next((number for number, line in enumerate(lines) if line.startswith(("Set TORCHDYNAMO_VERBOSE", "You can suppress"))), None)
    return "\n".join(line for line in lines[:end] if line)


def _place(chain: list[BaseException]) -> list[str]:
    """The innermost frame that is not torch's own, of the innermost exception that has one."""
    for error in reversed(chain):
        frames = [
            frame for frame in traceback.extract_tb(error.__traceback__) if not any(part in frame.filename for part in _UNINTERESTING)
        ]
        if frames:
            frame = frames[-1]
            return [f"at {_short(frame.filename)}:{frame.lineno} in {frame.name}: {frame.line}"]
    return []


def _short(filename: str) -> str:
    """The last three parts of a path say enough."""
    return "/".join(Path(filename).parts[-3:])


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    following: BaseException | None = error
    while following is not None and id(following) not in seen:
        seen.add(id(following))
        yield following
        following = following.__cause__ or (None if following.__suppress_context__ else following.__context__)

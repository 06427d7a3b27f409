"""How a worker is started: its environment, and the process itself. Standard library only.

The environment is the inherited one without what schedulers leave in it, and with everything set that decides which devices, how many
threads and which caches the worker uses. What decides is recorded, whether set here or inherited.
"""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path

from tasks.channel import CONTROL_FD
from tasks.forked import Surroundings, fork
from tasks.processes import die_with_parent, mark
from tasks.scratch import MARK
from tasks.spec import Attempt, ResourceSpec, TaskSpec, slug

DEVICE_DIRECTORY = "SWEEP_DEVICE_DIRECTORY"
"""Environment variable of a worker: where those who share its device meet."""

BUNDLES = "SWEEP_BUNDLES"
"""Environment variable of a worker whose compile cache is kept from run to run: the directory where."""

WORKER_START = "SWEEP_WORKER_START"
"""Environment variable of a worker: a ``Start``."""

SAME_FOR_ALL = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "PYTHONUNBUFFERED": "1",
    "PYTHONFAULTHANDLER": "1",
}
"""What every worker has in its environment."""

_REMOVED_PREFIXES = ("RAY_", "SWEEP_", "TORCHELASTIC_")
_REMOVED = frozenset(
    (
        *("RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
        *("PYTHONSTARTUP", "PYTHONINSPECT", "PYTHONPROFILEIMPORTTIME"),
    )
)
_RECORDED_PREFIXES = (
    *("TORCH", "PYTORCH", "TRITON", "CUDA", "CUBLAS", "CUDNN", "NVIDIA_TF32", "ATEN_", "HF_", "TRANSFORMERS_"),
    *("OMP_", "MKL_", "KMP_", "GOMP_", "OPENBLAS", "MALLOC_", "LD_PRELOAD", "PYTHON", "TMPDIR"),
)


class Start(StrEnum):
    """What a worker began as."""

    FRESH = "fresh"  # an interpreter of its own
    FORKED = "forked"  # a copy of its guardian, which has the libraries


class NoDeviceError(Exception):
    """The task wants a GPU and was given none."""


def worker_environment(
    task: TaskSpec, attempt: Attempt, scratch: Path, shared: Path, python_path: str, inherited: Mapping[str, str]
) -> dict[str, str]:
    """The worker's environment variables, all of them. ``shared`` outlives the attempt and holds the caches of whole runs.

    Raises:
        NoDeviceError: the task's device is ``cuda`` and the attempt has no GPU.
    """
    caches = shared / f"cache-{slug(attempt.run_id)}" if task.cache == "shared" else scratch / "cache"
    bundles = {BUNDLES: attempt.bundles} if task.cache == "bundle" and attempt.bundles else {}
    return (
        inheritable(inherited)
        | bundles
        | {
            "CUDA_VISIBLE_DEVICES": _visible_devices(task.resources, attempt),
            **_thread_counts(task.resources),
            "TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor"),
            "TRITON_CACHE_DIR": str(caches / "triton"),
            "TMPDIR": str(scratch / "tmp"),
            **SAME_FOR_ALL,
            "PYTHONPATH": python_path,
            MARK: str(scratch),
        }
    )


def inheritable(environment: Mapping[str, str]) -> dict[str, str]:
    """``environment`` without what schedulers, and this project, leave in it for one process."""
    return {name: value for name, value in environment.items() if name not in _REMOVED and not name.startswith(_REMOVED_PREFIXES)}


def recorded(environment: Mapping[str, str]) -> dict[str, str]:
    """Those variables that can change what is measured."""
    return {name: value for name, value in sorted(environment.items()) if name.startswith(_RECORDED_PREFIXES)}


def importable_paths(package_root: Path) -> str:
    """PYTHONPATH with which a fresh interpreter imports what this one does, ``package_root`` first.

    What belongs to the installation is left out: a fresh interpreter finds it without, and after the standard library.
    """
    prefixes = {sys.prefix, sys.base_prefix, sys.exec_prefix}
    entries = [str(package_root), *(str(Path(entry or ".").resolve()) for entry in sys.path)]
    own = [entry for entry in entries if Path(entry).is_dir() and not any(Path(entry).is_relative_to(prefix) for prefix in prefixes)]
    return os.pathsep.join(dict.fromkeys(own))


def start_worker(
    scratch: Path, environment: Mapping[str, str], earlier: Sequence[Path] = (), cores: Sequence[int] = (), start: Start = Start.FRESH
) -> tuple[int, int, socket.socket]:
    """Start ``tasks.worker`` in a process group of its own; it dies with the process that calls this, which has one thread.

    ``earlier``: the results that earlier processes of the same task have left. ``cores``: those to which it keeps, with all that it starts.

    Returns:
        Its process number, the descriptor to read its output from, and this end of its control channel.
    """
    for name in ("TMPDIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        Path(environment[name]).mkdir(parents=True, exist_ok=True)
    ours, theirs = socket.socketpair()
    read_end, write_end = os.pipe()
    with theirs:
        environment = {**environment, CONTROL_FD: str(theirs.fileno()), WORKER_START: start.value}
        arguments = [str(scratch / "spec.json"), str(scratch / "result.json"), *map(str, earlier)]
        first = _in_the_child(os.getpid(), cores)
        launch = _fork_worker if start is Start.FORKED else _execute_worker
        try:
            pid = launch(scratch, environment, arguments, write_end, theirs.fileno(), first)
        finally:
            os.close(write_end)
    return pid, read_end, ours


def _execute_worker(
    scratch: Path, environment: Mapping[str, str], arguments: Sequence[str], output: int, channel: int, first: Callable[[], None]
) -> int:
    process = subprocess.Popen(
        [sys.executable, "-m", "tasks.worker", *arguments],
        cwd=scratch,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        pass_fds=(channel,),
        process_group=0,
        preexec_fn=first,  # noqa: PLW1509 - the guardian has one thread when it starts its worker
    )
    process.returncode = 0  # the guardian collects its children itself; Popen is not to wait for this one
    return process.pid


def _fork_worker(
    scratch: Path, environment: Mapping[str, str], arguments: Sequence[str], output: int, channel: int, first: Callable[[], None]
) -> int:
    """As above, but without an exec. The kernel shows the parent's environment for it, so that it is marked otherwise."""
    path = Path(__file__).with_name("worker.py")

    def program() -> int:
        from tasks.reread import reread
        from tasks.worker import main

        if not os.environ.get("PYTHONSAFEPATH"):
            sys.path.insert(0, str(scratch))  # as ``-m`` does
        reread()
        return main(list(arguments))

    def prepare() -> None:
        first()
        os.setpgid(0, 0)

    with mark(MARK, str(scratch)) as marked:
        surroundings = Surroundings(
            environment, str(scratch), (str(path), *arguments), output=output, errors=output, kept=frozenset((channel, marked))
        )
        pid = fork(prepare, surroundings, program, whole_end=True)
    with contextlib.suppress(OSError):  # whichever of the two comes first
        os.setpgid(pid, pid)
    return pid


def _in_the_child(parent: int, cores: Sequence[int]) -> Callable[[], None]:
    def prepare() -> None:
        die_with_parent(parent)
        if cores:
            os.sched_setaffinity(0, cores)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core dump of a CUDA process can fill the disk

    return prepare


def _visible_devices(resources: ResourceSpec, attempt: Attempt) -> str:
    if resources.device != "cuda":
        return ""
    if not attempt.gpu_ids:
        raise NoDeviceError("the task needs a GPU, and the cluster assigned none to it")
    return ",".join(attempt.gpu_ids)


def _thread_counts(resources: ResourceSpec) -> dict[str, str]:
    cpus = max(1, int(resources.num_cpus))
    threads = str(resources.threads or cpus)
    return {
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "TORCHINDUCTOR_COMPILE_THREADS": str(resources.compile_processes),
    }

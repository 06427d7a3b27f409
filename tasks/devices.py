"""Which device an attempt has, by a name that is the same for everybody on its node, and which cores go with it. Standard library only.

Ray names a GPU by its number, or by what stands in ``CUDA_VISIBLE_DEVICES`` of its node. Two clusters on one machine may name the same GPU
differently, and different ones alike; so leases go by the UUID. Where a node has several GPUs, each has its part of the cores: tasks that
compile for one would disturb the timing on another.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from tasks import cuda_driver
from tasks.spec import Attempt, TaskSpec

VISIBLE = "CUDA_VISIBLE_DEVICES"
_TOPOLOGY = Path("/sys/devices/system/cpu")


def device_of(task: TaskSpec, attempt: Attempt) -> str:
    """What the attempt shares with others on its node that name the same."""
    if task.resources.device != "cuda":
        return "cpu"
    return ",".join(uuid_of(gpu, _uuids()) or gpu for gpu in attempt.gpu_ids)


def cores_of(task: TaskSpec, attempt: Attempt) -> tuple[int, ...]:
    """The cores that the attempt is to keep to; empty: any."""
    if task.resources.device != "cuda":
        return ()
    uuids = _uuids()
    here = visible(uuids, _parents_environment().get(VISIBLE))
    return share_of_cores([uuid_of(gpu, uuids) for gpu in attempt.gpu_ids], here, _cores_by_place())


def uuid_of(gpu: str, uuids: Sequence[str]) -> str | None:
    """The UUID of a GPU given by its number or the beginning of its UUID; None if not among ``uuids``, like a part of a GPU."""
    if gpu.isdecimal():
        return uuids[int(gpu)] if int(gpu) < len(uuids) else None
    matching = [uuid for uuid in uuids if uuid.startswith(gpu)]
    return matching[0] if len(matching) == 1 else None


def visible(uuids: Sequence[str], variable: str | None) -> list[str]:
    """The GPUs that ``CUDA_VISIBLE_DEVICES`` leaves; like CUDA, without those after the first that is not there."""
    if variable is None:
        return list(uuids)
    found: list[str] = []
    for name in variable.split(","):
        uuid = uuid_of(name.strip(), uuids)
        if uuid is None or uuid in found:
            break
        found.append(uuid)
    return found


def share_of_cores(gpus: Sequence[str | None], node: Sequence[str], cores: Sequence[int]) -> tuple[int, ...]:
    """The part of ``cores``, in their order, that goes with ``gpus`` of the node's; empty, for any, where that cannot be told.

    All parts are equal, so a few cores may be nobody's. A node with one GPU leaves it all of them; so does one with fewer cores than GPUs.
    """
    each = len(cores) // len(node) if len(node) > 1 else 0
    if not each or any(gpu not in node for gpu in gpus):
        return ()
    places = [node.index(gpu) for gpu in gpus if gpu is not None]
    return tuple(sorted(core for place in places for core in cores[place * each : (place + 1) * each]))


def by_place(cores: Sequence[int], topology: Path = _TOPOLOGY) -> list[int]:
    """``cores`` so that those of one processor, and the threads of one core, stand side by side; by number where nobody can say."""

    def place(core: int) -> tuple[int, int, int]:
        try:
            package, own = (int((topology / f"cpu{core}" / "topology" / name).read_text()) for name in ("physical_package_id", "core_id"))
        except (OSError, ValueError):
            return 0, 0, core
        return package, own, core

    return sorted(cores, key=place)


@cache
def _uuids() -> tuple[str, ...]:
    """In CUDA's own order; asked once per process, for it takes a process of its own."""
    return tuple(str(gpu["uuid"]) for gpu in cuda_driver.gpus())


@cache
def _cores_by_place() -> tuple[int, ...]:
    return tuple(by_place(sorted(os.sched_getaffinity(0))))


def _parents_environment() -> Mapping[str, str]:
    """That with which the parent was started: Ray sets ``CUDA_VISIBLE_DEVICES`` anew for each task, and its node's is what counts here."""
    try:
        content = Path(f"/proc/{os.getppid()}/environ").read_bytes()
    except OSError:
        return {}
    pairs = (entry.partition("=") for entry in os.fsdecode(content).split("\0"))
    return {name: value for name, _, value in pairs}

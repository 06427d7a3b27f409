"""How long a plan takes on a fleet: the run's own scheduler against devices that only count seconds. Pure, and the same every time.

What is modelled: the order and the flight of ``sweep``, placement by shares as Ray does it, one core per worker and more where several
processes compile, and the lease: while a worker times its neighbours stand still, and while it tunes or warms up those that use the
device. What is not: failures, retries, waits for memory, starts of nodes, noise.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from orchestrator.costs import Cost
from orchestrator.errors import UsageError
from orchestrator.events import Action, Begin, Ended, Launch, NodesChanged, RowsWritten, Started, WriteRow
from orchestrator.nodes import NodeInfo
from orchestrator.plan import PlannedTask
from orchestrator.policy import Policy
from orchestrator.preflight import ROUNDING, capacity
from orchestrator.simulated_device import Device, Worker, compile_share, stretches
from orchestrator.sweep import Sweep, SweepTask
from tasks.spec import Outcome, Phase, Status


@dataclass(frozen=True, slots=True)
class Fleet:
    """Equal devices, ``cores`` for each, ``per_node`` on each node. On the CPU a node is a device."""

    devices: int
    cores: float
    per_node: int = 1


@dataclass(frozen=True, slots=True)
class Span:
    """A task in the simulation: from its placement to its end, in seconds from the start of the run."""

    task_id: str
    device: int
    began_s: float
    ended_s: float


@dataclass(frozen=True, slots=True)
class Forecast:
    """What came of it. ``bound_s``: no order and no placement of the same tasks can be faster. ``slots``: tasks at once, at most."""

    fleet: Fleet
    slots: int
    makespan_s: float
    bound_s: float
    spans: tuple[Span, ...]

    @property
    def device_hours(self) -> float:
        """What the fleet is paid for, were it given back when the last task ends."""
        return self.fleet.devices * self.makespan_s / 3600

    @property
    def efficiency(self) -> float:
        """How close the plan comes to the bound: 1 at best."""
        return self.bound_s / self.makespan_s if self.makespan_s else 1.0


def forecast(planned: Sequence[PlannedTask], fleet: Fleet, max_in_flight: int | None = None) -> Forecast:
    """Run ``planned``, in its order, on ``fleet``.

    Raises:
        UsageError: a task asks for more than a device of the fleet has.
    """
    loads = {task.spec.task_id: _load(task, fleet) for task in planned}
    slots = capacity([task.spec for task in planned], _nodes(fleet, planned), max_in_flight)
    spans = _Run(loads, fleet, slots.max_in_flight).run()
    makespan_s = max((span.ended_s for span in spans), default=0.0)
    return Forecast(fleet, slots.slots, makespan_s, _bound_s(loads.values(), fleet), spans)


@dataclass(frozen=True, slots=True)
class _Load:
    """A task on its device: parts of the GPU and cores that it holds, its cost, and how many processes compile it, where its cost is one's.

    ``devices`` counts whole ones.
    """

    share: float
    cores: float
    devices: int
    cost: Cost
    processes: int


def _load(planned: PlannedTask, fleet: Fleet) -> _Load:
    resources = planned.spec.resources
    wide = max(1, int(resources.num_gpus))
    cores = resources.num_cpus / wide
    if wide > fleet.devices or cores > fleet.cores + ROUNDING:
        raise UsageError(
            f"{planned.spec.task_id} asks for {wide} device(s) and {resources.num_cpus:g} cores, and the fleet has {fleet.devices} with "
            f"{fleet.cores:g} cores each"
        )
    processes = resources.compile_processes if resources.device == "cuda" else 1 + resources.compile_helpers
    return _Load(min(1.0, resources.num_gpus), cores, wide, planned.cost, processes)


def _nodes(fleet: Fleet, planned: Sequence[PlannedTask]) -> list[NodeInfo]:
    """One node with everything where a task needs several devices, else one node for each device."""
    accelerators = tuple({task.spec.resources.accelerator for task in planned if task.spec.resources.accelerator})
    gpus = 1.0 if any(task.spec.resources.num_gpus for task in planned) else 0.0
    whole = max((task.spec.resources.num_gpus for task in planned), default=0.0) > 1
    labels = dict(label for task in planned for label in task.spec.resources.labels)
    node = NodeInfo("device", "0", fleet.cores, gpus, float("inf"), accelerators, labels)
    if whole:
        return [replace(node, num_cpus=fleet.devices * fleet.cores, num_gpus=float(fleet.devices))]
    return [node] * fleet.devices


def _bound_s(loads: Iterable[_Load], fleet: Fleet) -> float:
    """The longest task; or all there is to do: what owns the device one by one, and the rest as densely as shares, cores or places let."""
    longest_s = by_share_s = by_place_s = by_core_s = by_device_s = 0.0
    for load in loads:
        cost = load.cost
        beside_s = cost.total_s - cost.exclusive_s - cost.shared_s * (1 - compile_share(load.processes))
        longest_s = max(longest_s, beside_s + cost.exclusive_s)
        by_share_s += load.devices * (cost.exclusive_s + beside_s * load.share)
        by_place_s += load.devices * (cost.exclusive_s + beside_s * load.cores / fleet.cores)
        by_core_s += load.devices * cost.exclusive_s + (cost.shared_s + cost.device_s) / max(1.0, fleet.cores)
        by_device_s += load.devices * (cost.exclusive_s + cost.held_s)
    return max(longest_s, max(by_share_s, by_place_s, by_core_s, by_device_s) / fleet.devices)


class _Run:
    """One simulated run."""

    def __init__(self, loads: dict[str, _Load], fleet: Fleet, max_in_flight: int) -> None:
        self._loads = loads
        self._devices = [Device(fleet.cores, free_cores=fleet.cores) for _ in range(fleet.devices)]
        self._per_node = fleet.per_node
        self._sweep = Sweep([SweepTask(task_id) for task_id in loads], Policy(), max_in_flight)
        self._waiting: list[str] = []
        self._placed: dict[str, tuple[float, tuple[int, ...]]] = {}
        self._agenda: list[tuple[float, int, int]] = []  # time, version, device
        self._versions = [0] * fleet.devices
        self._arrivals = 0
        self._spans: list[Span] = []

    def run(self) -> tuple[Span, ...]:
        self._take(self._sweep.handle(NodesChanged(0.0, frozenset({"fleet"}))), 0.0)
        self._take(self._sweep.handle(Begin(0.0)), 0.0)
        self._place(0.0)
        while self._agenda:
            at_s, version, index = heapq.heappop(self._agenda)
            if version == self._versions[index]:
                self._happens(index, at_s)
        return tuple(self._spans)

    def _happens(self, index: int, at_s: float) -> None:
        """A worker is done with something."""
        device = self._devices[index]
        device.advance(at_s)
        worker = device.over()
        if device.go_on(worker):
            self._schedule(index)
            return
        self._end(worker.task_id, at_s)
        self._schedule(index)
        self._place(at_s)

    def _end(self, task_id: str, at_s: float) -> None:
        began_s, indices = self._placed.pop(task_id)
        load = self._loads[task_id]
        for index in indices:
            self._devices[index].free_share += load.share
            self._devices[index].free_cores += load.cores
        self._spans.append(Span(task_id, indices[0], began_s, at_s))
        outcome = Outcome(task_id, 1, Status.PASS, Phase.WRITE, node="fleet", ended=at_s)
        self._take(self._sweep.handle(Ended(at_s, task_id, 1, outcome)), at_s)

    def _take(self, actions: Iterable[Action], at_s: float) -> None:
        for action in actions:
            match action:
                case Launch():
                    self._waiting.append(action.task_id)
                case WriteRow():
                    self._take(self._sweep.handle(RowsWritten(at_s, (action.task_id,))), at_s)

    def _place(self, at_s: float) -> None:
        """As Ray does: whatever fits, in the order in which it came, on the node where most is free, and there where least is."""
        for task_id in list(self._waiting):
            load = self._loads[task_id]
            fitting = [index for index, device in enumerate(self._devices) if device.fits(load.share, load.cores)]
            if len(fitting) < load.devices:
                continue
            fitting.sort(key=self._preference)
            self._waiting.remove(task_id)
            self._start(task_id, load, tuple(fitting[: load.devices]), at_s)

    def _preference(self, index: int) -> tuple[float, float, float, int]:
        first = index - index % self._per_node
        node = self._devices[first : first + self._per_node]
        free_share, free_cores = (sum(getattr(device, name) for device in node) for name in ("free_share", "free_cores"))
        return -free_share, -free_cores, self._devices[index].free_share, index

    def _start(self, task_id: str, load: _Load, indices: tuple[int, ...], at_s: float) -> None:
        for index in indices:
            self._devices[index].free_share -= load.share
            self._devices[index].free_cores -= load.cores
        device = self._devices[indices[0]]
        device.advance(at_s)
        self._arrivals += 1
        device.go_on(Worker(task_id, self._arrivals, stretches(load.cost, load.processes), 1 / compile_share(load.processes)))
        self._placed[task_id] = (at_s, indices)
        self._sweep.handle(Started(at_s, task_id, 1, "fleet"))
        self._schedule(indices[0])

    def _schedule(self, index: int) -> None:
        self._versions[index] += 1
        next_s = self._devices[index].next_s()
        if next_s is not None:
            heapq.heappush(self._agenda, (next_s, self._versions[index], index))

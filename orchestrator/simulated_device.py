"""A device that only counts seconds: what tasks do on it, who goes on meanwhile, and who stands still. Pure.

While one times all others stand still, and while one tunes or warms up those that use the device; whoever wants to own it waits for its
turn. Those that go on share the cores.
"""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass, field
from enum import Enum, auto

from orchestrator.costs import Cost
from orchestrator.preflight import ROUNDING


class Use(Enum):
    """What a task does for a while."""

    COMPILE = auto()  # stands still while somebody times
    DEVICE = auto()  # stands still also while somebody tunes or warms up
    HOLD = auto()  # tunes or warms up
    OWN = auto()  # times


TUNING_SHARE, TUNINGS = 0.6, 4
"""Of the seconds for which a task holds the device: those while it compiles; and in how many parts they are spread over its compile."""

HELPED_SHARE = 0.5
"""Of a task's compile: what other processes can do for it, which is to compile kernels. The rest is Python, in one process. A profile of
mixer_b16_224's training step on an H100 has more than half of its CPU seconds in Triton's compiler."""

Stretch = tuple[Use, float]


def compile_share(processes: int) -> float:
    """What is left of the seconds of a compile that so many processes do."""
    return 1.0 - HELPED_SHARE + HELPED_SHARE / processes


def stretches(cost: Cost, processes: int = 1) -> list[Stretch]:
    """A task from its start to its end: on the device, compiling with breaks to tune, on the device again, warming up, timing."""
    compile_s = cost.shared_s * compile_share(processes)
    compiling = [(Use.COMPILE, compile_s / TUNINGS), (Use.HOLD, TUNING_SHARE * cost.held_s / TUNINGS)] * TUNINGS
    around: list[Stretch] = [(Use.DEVICE, cost.device_s / 2)]
    ending = [(Use.HOLD, (1 - TUNING_SHARE) * cost.held_s), (Use.OWN, cost.exclusive_s)]
    if not cost.held_s:
        compiling = [(Use.COMPILE, compile_s)]
    return [stretch for stretch in (*around, *compiling, *around, *ending) if stretch[1] > 0] or [(Use.COMPILE, 0.0)]


@dataclass(slots=True)
class Worker:
    """A task on its device, and what it has still to do. ``cores``: how many it keeps busy while it compiles."""

    task_id: str
    arrival: int
    left: list[Stretch]
    cores: float


@dataclass(slots=True)
class Group:
    """Workers that go on and stand still together. ``work_s``: for how long one has worked that was there from the start."""

    work_s: float = 0.0
    heap: list[tuple[float, int, Worker]] = field(default_factory=list)  # ``work_s`` at the end of a stretch, order of arrival

    def __len__(self) -> int:
        return len(self.heap)

    @property
    def cores(self) -> float:
        """How many of them they keep busy, if there are so many."""
        return sum(worker.cores for _, _, worker in self.heap)

    def add(self, worker: Worker, seconds: float) -> None:
        heapq.heappush(self.heap, (self.work_s + seconds, worker.arrival, worker))

    def left_s(self) -> float:
        return max(0.0, self.heap[0][0] - self.work_s)


@dataclass(slots=True)
class Device:
    """A device, its cores and who is there. Times are seconds from the start of the run; they are given by the caller, and only grow."""

    cores: float
    free_share: float = 1.0
    free_cores: float = 0.0
    at_s: float = 0.0
    groups: dict[Use, Group] = field(default_factory=lambda: {Use.COMPILE: Group(), Use.DEVICE: Group()})
    waiting: deque[tuple[Use, float, Worker]] = field(default_factory=deque)  # for the device, in the order in which they came
    owner: tuple[Use, float, Worker] | None = None  # what for, until when, who
    last: Worker | None = None  # it has just owned the device, and nobody has been given it yet

    def fits(self, share: float, cores: float) -> bool:
        return self.free_share + ROUNDING >= share and self.free_cores + ROUNDING >= cores

    def advance(self, at_s: float) -> None:
        passed_s, self.at_s = at_s - self.at_s, at_s
        speed = self._speed()
        for group in self._running():
            group.work_s += passed_s * speed

    def next_s(self) -> float | None:
        """When something happens here next, if nobody comes."""
        speed = self._speed()
        times_s = [self.at_s + group.left_s() / speed for group in self._running() if group]
        if self.owner is not None:
            times_s.append(self.owner[1])
        return min(times_s, default=None)

    def go_on(self, worker: Worker) -> bool:
        """Let ``worker`` begin what it does next; False if that was all."""
        more = bool(worker.left)
        if more:
            use, seconds = worker.left.pop(0)
            if use in self.groups:
                self.groups[use].add(worker, seconds)
            elif worker is self.last:
                self.waiting.appendleft((use, seconds, worker))  # it has warmed up, and keeps the device
            else:
                self.waiting.append((use, seconds, worker))
        self.last = None
        self._give()
        return more

    def over(self) -> Worker:
        """The worker whose stretch is over first, at the time of the device."""
        if self.owner is not None and self.owner[1] <= self.at_s:
            self.last, self.owner = self.owner[2], None
            return self.last
        running = [group for group in self._running() if group]
        return heapq.heappop(min(running, key=Group.left_s).heap)[2]

    def _give(self) -> None:
        """The device to who has waited longest, if it is free."""
        if self.owner is None and self.waiting:
            use, seconds, worker = self.waiting.popleft()
            self.owner = use, self.at_s + seconds, worker

    def _running(self) -> list[Group]:
        match self.owner:
            case None:
                return list(self.groups.values())
            case (Use.HOLD, _, _):
                return [self.groups[Use.COMPILE]]
        return []

    def _speed(self) -> float:
        busy = sum(group.cores for group in self._running()) + (self.owner is not None)
        return min(1.0, max(1.0, self.cores) / max(1.0, busy))

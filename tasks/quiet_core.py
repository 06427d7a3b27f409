"""Which processor the host's side of a step runs on: the quickest one as a visit begins.

Virtual processors are not equally fast (``tasks.host_speed``), and they change from one visit to the next, each for itself. With sixteen of
them one is always quick. So the threads that launch are kept on one, and moved to a quicker one between two visits when theirs has slowed
down; where there are few, all may be slow at once, and to move then only adds noise.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tasks import host_speed

MIN_CORES = 4
"""With fewer there is nothing to choose from: on two, which were both slow for half of the time, choosing made things worse."""
SLOWER = 1.1
"""By what factor a processor takes longer, when it is left for a quicker one: less is a change of its clock."""
SCAN_EVERY_S = 0.1
"""All processors are looked at no more often: that takes a quarter of a millisecond for each."""
LOOK_AGAIN_S = 1.0
"""Where none was as quick as one has been before, they are looked at again after this."""
LAUNCHING = "pt_autograd_"
"""What torch calls its threads that run backward passes; its others do not launch."""
_TASKS = Path("/proc/self/task")


def launching_threads(tasks: Path = _TASKS) -> list[int]:
    """This thread, and those in which torch runs backward passes."""
    found = [0]
    for thread in tasks.iterdir():
        with contextlib.suppress(OSError):  # it has ended
            if (thread / "comm").read_text().startswith(LAUNCHING):
                found.append(int(thread.name))
    return found


def all_threads(tasks: Path = _TASKS) -> list[int]:
    return [int(thread.name) for thread in tasks.iterdir()]


@dataclass(slots=True)
class QuietCore:
    """Keeps the threads that launch on the quickest of ``cores``, from the first ``seek`` on."""

    cores: tuple[int, ...]
    probe_ns: Callable[[], int] = host_speed.probe_ns
    launching: Callable[[], list[int]] = launching_threads
    every: Callable[[], list[int]] = all_threads
    move: Callable[[int, set[int]], None] = os.sched_setaffinity
    now_ns: Callable[[], int] = time.perf_counter_ns
    core: int | None = None
    moves: int = 0
    """How often one was left for another."""
    _chosen_ns: int = 0
    _quickest_ns: int = 0
    _scanned_ns: int = 0

    def seek(self) -> int:
        """Before a visit: go to a quicker processor if this one has become slow. Returns what the probe takes there, in ns."""
        if self.core is None:
            return self._scan()
        here_ns = self.probe_ns()
        return self._scan() if self._worth_a_look(here_ns) else here_ns

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """When the block ends, all processors again to every thread: those that were started meanwhile have but one."""
        try:
            yield
        finally:
            if self.core is not None:
                self._go(self.every(), set(self.cores))
                self.core = None

    def _worth_a_look(self, here_ns: int) -> bool:
        since_s = (self.now_ns() - self._scanned_ns) / 1e9
        slowed = here_ns > SLOWER * self._chosen_ns
        may_be_quicker = here_ns > SLOWER * self._quickest_ns and since_s >= LOOK_AGAIN_S
        return since_s >= SCAN_EVERY_S and (slowed or may_be_quicker)

    def _scan(self) -> int:
        taken_ns = {}
        for core in self.cores:
            self.move(0, {core})
            taken_ns[core] = self.probe_ns()
        best = min(self.cores, key=taken_ns.__getitem__)
        if self.core is not None and taken_ns[self.core] <= SLOWER * taken_ns[best]:
            best = self.core
        self.moves += self.core not in (None, best)
        self.core, self._chosen_ns = best, taken_ns[best]
        self._quickest_ns = min(self._quickest_ns or taken_ns[best], taken_ns[best])
        self._go(self.launching(), {best})
        self._scanned_ns = self.now_ns()
        return taken_ns[best]

    def _go(self, threads: list[int], cores: set[int]) -> None:
        for thread in threads:
            with contextlib.suppress(ProcessLookupError):  # it has ended
                self.move(thread, cores)


def for_launching(on_cuda: bool) -> QuietCore | None:
    """For what a step launches on a GPU; None where the kernel chooses: on the CPU several threads compute, or there are few cores."""
    cores = tuple(sorted(os.sched_getaffinity(0)))
    return QuietCore(cores) if on_cuda and len(cores) >= MIN_CORES else None

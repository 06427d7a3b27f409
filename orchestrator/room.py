"""What the nodes that are alive have room for: which of them can ever run which tasks, and how many attempts to keep in flight."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from orchestrator.events import NodesChanged
from orchestrator.nodes import NodeInfo
from orchestrator.preflight import capacity, fits
from tasks.spec import ResourceSpec, TaskSpec


@dataclass(frozen=True, slots=True)
class Room:
    """The distinct requests of a plan, one task for each; ``max_in_flight`` is the manifest's, None to follow the nodes."""

    askers: tuple[TaskSpec, ...]
    max_in_flight: int | None = None

    @classmethod
    def of(cls, tasks: Iterable[TaskSpec], max_in_flight: int | None = None) -> Room:
        """What ``tasks`` ask for."""
        return cls(tuple({task.resources: task for task in tasks}.values()), max_in_flight)

    def request(self, resources: ResourceSpec) -> int:
        """The number by which ``NodesChanged.fitting`` knows this request."""
        return [task.resources for task in self.askers].index(resources)

    def event(self, at_s: float, nodes: Sequence[NodeInfo]) -> NodesChanged:
        """What the sweep is told of ``nodes``."""
        fitting = tuple(frozenset(node.name for node in nodes if fits(task.resources, node)) for task in self.askers)
        in_flight = capacity(self.askers, nodes, self.max_in_flight).max_in_flight
        gpus = {node.name: int(node.num_gpus) for node in nodes}
        return NodesChanged(at_s, frozenset(gpus), fitting, in_flight, gpus)

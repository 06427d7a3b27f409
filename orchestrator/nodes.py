"""A node of a cluster as planning sees it. Imports nothing, so that a forecast need not wait for what runs clusters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """One live node. ``name`` is what rows and policies call it: host name and the first digits of Ray's id."""

    name: str
    node_id: str
    num_cpus: float
    num_gpus: float
    memory_mib: float
    accelerators: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)

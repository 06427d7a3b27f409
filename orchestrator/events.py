"""What can happen to a run, and what a run can ask for: the vocabulary between the pure ``sweep`` and its driver.

Every event carries its time, in seconds on a clock of the driver's choice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from orchestrator.errors import ExitCode
from tasks.spec import FailureClass, Outcome, Phase

# --- events -----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Begin:
    """Release the plan."""

    at_s: float


@dataclass(frozen=True, slots=True)
class Started:
    """A node runs the attempt, on these of its GPUs."""

    at_s: float
    task_id: str
    attempt: int
    node: str
    gpus: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PhaseStarted:
    """The attempt's worker entered ``phase``."""

    at_s: float
    task_id: str
    attempt: int
    phase: Phase


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The attempt's supervisor lives; ``paused_s`` is the time its worker did not run because a neighbour was timing."""

    at_s: float
    task_id: str
    attempt: int
    paused_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Ended:
    """The attempt came to an end of its own, or its end was found in the spool. ``gpus`` is also known where no worker was started."""

    at_s: float
    task_id: str
    attempt: int
    outcome: Outcome
    gpus: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Refused:
    """The attempt was given a GPU that is quarantined, and did not begin. What it was given stays out of use until the run ends."""

    at_s: float
    task_id: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Lost:
    """Nothing more will come of the attempt: its supervisor or its node is gone."""

    at_s: float
    task_id: str
    attempt: int
    failure_class: FailureClass
    error: str


@dataclass(frozen=True, slots=True)
class NodesChanged:
    """The nodes that are alive now.

    ``fitting``: for each request of the plan (``SweepTask.request``), those that could run it if they were empty; () means all of them
    can. ``max_in_flight``: what they have room for; None leaves the bound as it is. ``gpus``: how many a node has.
    """

    at_s: float
    nodes: frozenset[str]
    fitting: tuple[frozenset[str], ...] = ()
    max_in_flight: int | None = None
    gpus: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RowsWritten:
    """These tasks' rows are durable."""

    at_s: float
    task_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StoreFailed:
    """Rows cannot be written: nothing more is launched."""

    at_s: float
    error: str


@dataclass(frozen=True, slots=True)
class ClusterLost:
    """The cluster is gone, and what it was running with it."""

    at_s: float
    error: str


@dataclass(frozen=True, slots=True)
class Drain:
    """Stop launching and let what runs come to its end."""

    at_s: float


@dataclass(frozen=True, slots=True)
class Force:
    """Stop now."""

    at_s: float


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed."""

    at_s: float


Event = (
    Begin
    | Started
    | PhaseStarted
    | Heartbeat
    | Ended
    | Refused
    | Lost
    | NodesChanged
    | RowsWritten
    | StoreFailed
    | ClusterLost
    | Drain
    | Force
    | Tick
)

# --- actions ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Launch:
    """Hand the attempt to the cluster, on none of the nodes ``avoid`` and, if ``alone``, with the device to itself.

    ``refuse``: GPUs, as ``device_name`` calls them, on which it is not to begin. ``roomy``: with several times its share of the device.
    """

    task_id: str
    attempt: int
    avoid: frozenset[str] = frozenset()
    alone: bool = False
    refuse: frozenset[str] = frozenset()
    roomy: bool = False


@dataclass(frozen=True, slots=True)
class Cancel:
    """Take the attempt back from the cluster, dead or alive."""

    task_id: str
    attempt: int


@dataclass(frozen=True, slots=True)
class WriteRow:
    """Make this outcome the task's terminal row. ``here``: the sweep made it, so its times are those of the events' clock."""

    task_id: str
    outcome: Outcome
    here: bool = False


@dataclass(frozen=True, slots=True)
class Finish:
    """The run is over."""

    exit_code: ExitCode
    reason: str


Action = Launch | Cancel | WriteRow | Finish

"""The only module that runs tasks on Ray: launch attempts, turn what comes back into events, cancel, and know the nodes.

``Cluster`` is the seam; tests bring a fake. One Ray task is one attempt: a streaming generator that yields what its supervisor
says, so phases and heartbeats reach the driver without an actor or a queue. Ray retries nothing (``max_retries=0``): policy does.
``max_calls=0`` lets a Ray worker serve many attempts, which is safe because the model never runs in it.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol

from orchestrator.connection import HeadState, HeadWatch, connect, let_go, within
from orchestrator.errors import ClusterLostError
from orchestrator.events import Ended, Event, Heartbeat, Lost, PhaseStarted, Refused, Started
from orchestrator.metrics import COUNTERS, GAUGES, TAGS, Meters
from orchestrator.nodes import NodeInfo
from tasks import supervisor
from tasks.preload import preload
from tasks.probe import NodeProbe, probe
from tasks.spec import Attempt, FailureClass, Outcome, Phase, ResourceSpec, TaskSpec, decode, device_name, encode

PROBE_TIMEOUT_S = 120.0
WARM_UP_LIMIT_S = 180.0
NODE_ID_LABEL = "ray.io/node-id"

HEAD_LOST_S = 40.0
"""A head that does not answer for this long is gone."""

LIST_S = 10.0
"""How long to wait for the list of nodes; of a head that goes away just then it never comes."""

WARDEN_NAP_S = 3600.0

GONE = object()
"""The answer of a node that has died since it was asked."""

GOODBYE_S = 10.0
"""How long to wait for Ray to let go of a cluster that may not be there any more."""


class Cluster(Protocol):
    """What the driver needs of a cluster. Times of events are those of the clock given to the implementation."""

    def nodes(self) -> tuple[NodeInfo, ...]:
        """The nodes that are alive."""
        ...

    def probe(self) -> dict[str, NodeProbe | str]:
        """Software and devices by node name; a text where a node cannot say, with the reason. A node that is gone meanwhile is left out."""
        ...

    def warm_up(self, nodes: Sequence[NodeInfo], modules: Sequence[str], device: str) -> dict[str, str]:
        """Have each node read these libraries once, for workers on ``device``; what went wrong, by node name."""
        ...

    def launch(self, task: TaskSpec, attempt: Attempt, avoid: frozenset[str], alone: bool) -> None:
        """Hand over one attempt; its events come from ``poll``."""
        ...

    def poll(self, timeout_s: float) -> list[Event]:
        """What happened, waiting up to ``timeout_s`` for something to happen."""
        ...

    def cancel(self, task_id: str, attempt: int) -> None:
        """Take an attempt back; no event about it follows."""
        ...

    def meters(self) -> Meters:
        """Where the run's metrics go."""
        ...

    def close(self) -> None:
        """Let go of the cluster, and end it if it was started for this run."""
        ...


def node_name(host: str, node_id: str) -> str:
    """What rows call a node."""
    return f"{host}:{node_id[:8]}"


class RayCluster:
    """A local Ray started for the purpose, or the cluster at ``address``."""

    def __init__(self, address: str | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        """Connect, or start.

        Raises:
            UsageError: the address is one of Ray Client.
            InfrastructureError: there is no cluster at ``address``, or Ray cannot start here.
        """
        self._clock = clock
        self._nodes: tuple[NodeInfo, ...] = ()
        self._running: dict[Any, tuple[str, int]] = {}
        self._wardens: list[Any] = []  # attempts that keep a quarantined GPU, or a share of it, out of use
        self._ray = connect(address)
        self._head = HeadWatch(self._ray.get_runtime_context().gcs_address)
        self._heard_s = clock()
        self._attempt = self._ray.remote(max_retries=0, max_calls=0, scheduling_strategy="SPREAD")(_run_attempt)

    def nodes(self) -> tuple[NodeInfo, ...]:
        """The live nodes; as last seen, while the head does not answer.

        Raises:
            ClusterLostError: it has not answered for ``HEAD_LOST_S``, or is another one.
        """
        state = self._head.look()
        if state is HeadState.REPLACED:
            raise ClusterLostError(f"the head of the Ray cluster at {self._head.address} has been started anew: what ran on it is lost")
        if state is HeadState.THERE and (listed := within(LIST_S, self._ray.nodes)) is not None:
            self._heard_s = self._clock()
            self._nodes = self._alive(listed)
        elif self._clock() - self._heard_s > HEAD_LOST_S:
            raise ClusterLostError(f"the head of the Ray cluster at {self._head.address} has not answered for {HEAD_LOST_S:.0f} s")
        return self._nodes

    def _alive(self, listed: Sequence[dict[str, Any]]) -> tuple[NodeInfo, ...]:
        found = []
        for node in listed:
            if node["Alive"]:
                resources = node["Resources"]
                prefix = "accelerator_type:"
                found.append(
                    NodeInfo(
                        name=node_name(node["NodeManagerHostname"], node["NodeID"]),
                        node_id=node["NodeID"],
                        num_cpus=resources.get("CPU", 0.0),
                        num_gpus=resources.get("GPU", 0.0),
                        memory_mib=resources.get("memory", 0.0) / 2**20,
                        accelerators=tuple(sorted(key.removeprefix(prefix) for key in resources if key.startswith(prefix))),
                        labels=dict(node["Labels"]),
                    )
                )
        return tuple(sorted(found, key=lambda node: node.name))

    def probe(self) -> dict[str, NodeProbe | str]:
        said = self._ask_each(self.nodes(), PROBE_TIMEOUT_S, _probe_node)
        return {name: answer if isinstance(answer, str) else decode(NodeProbe, answer) for name, answer in said.items()}

    def warm_up(self, nodes: Sequence[NodeInfo], modules: Sequence[str], device: str) -> dict[str, str]:
        said = self._ask_each(nodes, WARM_UP_LIMIT_S + PROBE_TIMEOUT_S, preload, tuple(modules), WARM_UP_LIMIT_S, device)
        return {name: answer for name, answer in said.items() if answer}

    def _ask_each(self, nodes: Sequence[NodeInfo], limit_s: float, ask: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
        """What ``ask`` returns on each of ``nodes`` that is there, by name; where it does not, a text that says why."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        asked = {}
        for node in nodes:
            there = NodeAffinitySchedulingStrategy(node_id=node.node_id, soft=False)
            asked[node.name] = self._ray.remote(ask).options(num_cpus=0, max_retries=0, scheduling_strategy=there).remote(*arguments)
        ready, late = self._ray.wait(list(asked.values()), num_returns=len(asked), timeout=limit_s)
        for answer in late:
            self._ray.cancel(answer, force=True)
        said = {name: self._answer(answer) if answer in ready else f"no answer within {limit_s:.0f} s" for name, answer in asked.items()}
        return {name: answer for name, answer in said.items() if answer is not GONE}

    def _answer(self, answer: Any) -> Any:
        raised = self._ray.exceptions
        try:
            return self._ray.get(answer)
        except (raised.NodeDiedError, raised.TaskUnschedulableError):  # the head may list it for a while yet
            return GONE
        except raised.RayError as error:
            return str(error).strip().splitlines()[-1]

    def launch(self, task: TaskSpec, attempt: Attempt, avoid: frozenset[str], alone: bool) -> None:
        ids = [node.node_id for node in self._nodes if node.name in avoid]
        options = _options(task.resources, alone, ids)
        stream = self._attempt.options(**options).remote(encode(task), encode(attempt))
        self._running[stream] = (task.task_id, attempt.number)

    def poll(self, timeout_s: float) -> list[Event]:
        if not self._running:
            time.sleep(timeout_s)
            return []
        streams = list(self._running)
        ready, _ = self._ray.wait(streams, num_returns=1, timeout=timeout_s)
        if ready:  # whatever else is ready comes along, without waiting for it
            ready, _ = self._ray.wait(streams, num_returns=len(streams), timeout=0)
        events = [self._next(stream) for stream in ready]
        return [event for event in events if event is not None]

    def _next(self, stream: Any) -> Event | None:
        task_id, attempt = self._running[stream]
        try:
            message = self._ray.get(next(stream))
        except StopIteration:
            del self._running[stream]
            return None
        except self._ray.exceptions.RayError as error:
            del self._running[stream]
            failure_class, text = _classify(error)
            return Lost(self._clock(), task_id, attempt, failure_class, text)
        event = _event(self._clock(), task_id, attempt, message)
        if isinstance(event, Refused):
            self._wardens.append(stream)
            del self._running[stream]
        return event

    def cancel(self, task_id: str, attempt: int) -> None:
        for stream, key in list(self._running.items()):
            if key == (task_id, attempt):
                del self._running[stream]
                # Without force Ray interrupts Python code only; the supervisor's guardian sees its parent die and cleans up.
                self._ray.cancel(stream, force=True)

    def meters(self) -> Meters:
        from ray.util import metrics

        return Meters(
            *(metrics.Gauge(name, description=text, tag_keys=TAGS) for name, text in GAUGES.items()),
            *(metrics.Counter(name, description=text, tag_keys=TAGS) for name, text in COUNTERS.items()),
        )

    def close(self) -> None:
        there = self._head.look() is HeadState.THERE
        for task_id, attempt in list(self._running.values()) if there else ():
            self.cancel(task_id, attempt)
        for warden in self._wardens if there else ():
            self._ray.cancel(warden, force=True)
        let_go(self._ray.shutdown, None if there else GOODBYE_S)


def _options(resources: ResourceSpec, alone: bool, avoid: Sequence[str] = ()) -> dict[str, Any]:
    """What Ray is asked for. ``avoid``: ids of nodes that are out of question."""
    options: dict[str, Any] = {"num_cpus": resources.num_cpus, "num_gpus": 0.0}
    if resources.device == "cuda":
        options["num_gpus"] = max(1.0, resources.num_gpus) if alone else resources.num_gpus
        if resources.accelerator:
            options["accelerator_type"] = resources.accelerator
    if resources.memory_mib:
        options["memory"] = resources.memory_mib * 2**20
    labels = dict(resources.labels) | ({NODE_ID_LABEL: f"!in({','.join(avoid)})"} if avoid else {})
    if labels:
        options["label_selector"] = labels
    return options


def _classify(error: Exception) -> tuple[FailureClass, str]:
    """Ray's exceptions in our words. A death of the worker and a death of its node are different causes with different cures."""
    import ray.exceptions as raised

    text = " ".join(str(error).split())[:2000]
    for kinds, failure_class in (
        (raised.OutOfMemoryError, FailureClass.HOST_OOM),
        ((raised.ObjectStoreFullError, raised.OutOfDiskError), FailureClass.DISK_FULL),  # both: no room for an outcome on the node
        ((raised.NodeDiedError, raised.ObjectLostError, raised.OwnerDiedError, raised.RaySystemError), FailureClass.NODE_LOST),
        ((raised.RuntimeEnvSetupError, raised.TaskUnschedulableError), FailureClass.UNSCHEDULED),
        ((raised.WorkerCrashedError, raised.LocalRayletDiedError), FailureClass.WORKER_LOST),
        (raised.RayTaskError, FailureClass.INTERNAL),  # nothing died: what runs on the node raised something, and would on another
    ):
        if isinstance(error, kinds):
            return failure_class, text
    return FailureClass.WORKER_LOST, text


def _event(at_s: float, task_id: str, attempt: int, message: dict[str, Any]) -> Event:
    match message["event"]:
        case "started":
            return Started(at_s, task_id, attempt, message["node"], tuple(message["gpus"]))
        case "phase":
            return PhaseStarted(at_s, task_id, attempt, Phase(message["phase"]))
        case "heartbeat":
            return Heartbeat(at_s, task_id, attempt, message["paused_s"])
        case "refused":
            return Refused(at_s, task_id, attempt)
        case _:
            return Ended(at_s, task_id, attempt, decode(Outcome, message["outcome"]), tuple(message["gpus"]))


# --- what runs on a node ----------------------------------------------------------------------------------------------------------


def _run_attempt(task_data: dict[str, Any], attempt_data: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The Ray task: supervise one attempt and yield what its supervisor says, as plain data."""
    import ray

    context = ray.get_runtime_context()
    gpu_ids = tuple(str(gpu) for gpu in context.get_accelerator_ids().get("GPU", ()))
    task = decode(TaskSpec, task_data)
    attempt = replace(decode(Attempt, attempt_data), gpu_ids=gpu_ids)
    node = node_name(socket.gethostname(), context.get_node_id())
    if any(device_name(node, gpu) in attempt.refuse for gpu in gpu_ids):
        # Ray cannot be told to leave out one GPU of a node, and would give it to the next attempt at once: keep it from all others.
        yield {"event": "refused"}
        while True:
            time.sleep(WARDEN_NAP_S)
    yield from _messages(task, attempt, node)


def _messages(task: TaskSpec, attempt: Attempt, node: str) -> Iterator[dict[str, Any]]:
    if task.resources.isolation == "inline":
        yield {"event": "ended", "outcome": encode(supervisor.run_inline(task, attempt, node)), "gpus": []}
        return
    for event in supervisor.supervise(task, attempt, node):
        match event:
            case supervisor.Started():
                yield {"event": "started", "node": node, "gpus": list(attempt.gpu_ids)}
            case supervisor.PhaseStarted():
                yield {"event": "phase", "phase": event.phase.value}
            case supervisor.Heartbeat():
                yield {"event": "heartbeat", "paused_s": event.paused_s}
            case supervisor.Finished():
                yield {"event": "ended", "outcome": encode(event.outcome), "gpus": list(attempt.gpu_ids)}


def _probe_node() -> dict[str, Any]:
    data: dict[str, Any] = encode(probe())
    return data

"""A cluster without Ray, and a store without files, for tests of the driver."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from orchestrator.errors import StoreError
from orchestrator.events import Ended, PhaseStarted, Started
from orchestrator.metrics import Meters
from orchestrator.nodes import NodeInfo
from tasks.spec import ModelSpec, Outcome, Phase, PrecisionSpec, Status, TaskSpec

NODE = NodeInfo(name="host:0001", node_id="0001", num_cpus=2.0, num_gpus=0.0, memory_mib=8000.0)


def task(name, **fields):
    model, precision = ModelSpec("toy", name), PrecisionSpec("float32")
    return TaskSpec(f"toy/{name}/float32/training/inductor", model, "training", "inductor", precision, **fields)


def passed(task_id, attempt):
    return Outcome(task_id, attempt, Status.PASS, Phase.WRITE, node=NODE.name)


@dataclass
class FakeCluster:
    """Runs each attempt at once by calling ``behave(task_id, attempt) -> list of events`` (times are filled in by the caller)."""

    behave: object = None
    polled: object = lambda: None
    launched: list = field(default_factory=list)
    cancelled: list = field(default_factory=list)
    ready: deque = field(default_factory=deque)
    closed: bool = False

    def nodes(self):
        return (NODE,)

    def probe(self):
        return {}

    def warm_up(self, nodes, modules, device):
        self.warmed = tuple(node.name for node in nodes), tuple(modules), device
        return {}

    def launch(self, task, attempt, avoid, alone):
        self.launched.append((task.task_id, attempt.number))
        key = (task.task_id, attempt.number)
        events = self.behave(*key) if self.behave else None
        if events is None:
            events = [Started(0.0, *key, NODE.name), PhaseStarted(0.0, *key, Phase.BUILD), Ended(0.0, *key, passed(*key))]
        self.ready.extend(events)

    def poll(self, timeout_s):
        self.polled()
        events = list(self.ready)
        self.ready.clear()
        return events

    def cancel(self, task_id, attempt):
        self.cancelled.append((task_id, attempt))

    def meters(self):
        return Meters(*(FakeMeter() for _ in range(6)))

    def close(self):
        self.closed = True


class FakeMeter(dict):
    """Values by tag."""

    def set(self, value, tags):
        self[tags["what"]] = value

    def inc(self, value, tags):
        self[tags["what"]] = self.get(tags["what"], 0) + value


@dataclass
class FakeSink:
    """Keeps batches; fails from batch number ``fail_at`` on."""

    batches: list = field(default_factory=list)
    fail_at: int | None = None
    requests: object = lambda: 0
    left: dict = field(default_factory=dict)  # (task_id, attempt) -> what it left in the spool
    told: list = field(default_factory=list)

    def append(self, batch):
        if self.fail_at is not None and len(self.batches) >= self.fail_at:
            raise StoreError("no space left on the test's device")
        self.batches.append(list(batch))

    def tell(self, sweep, decided):
        self.told += decided

    def find(self, task_id, attempt):
        return self.left.get((task_id, attempt))

    def refresh_lock(self):
        pass

    def stop_requests(self):
        return self.requests()

    @property
    def rows(self):
        return [outcome for batch in self.batches for _, outcome in batch]


class FakeProgress:
    def event(self, event):
        pass

    def row(self, task, outcome):
        pass

    def tick(self, sweep):
        pass

"""Progress as JSON lines."""

from __future__ import annotations

import io
import itertools
import json
import logging

from orchestrator.driver import Driver
from orchestrator.events import Ended, Lost, NodesChanged, Started
from orchestrator.json_log import JsonConsole, JsonProgress, json_console
from orchestrator.policy import Policy
from orchestrator.sweep import Sweep, SweepTask
from tasks.spec import Attempt, FailureClass
from tests.orchestrator.fakes import NODE, FakeCluster, FakeSink, passed, task


def test_every_line_is_an_object_with_its_time_and_event():
    stream = io.StringIO()
    console = json_console(stream)
    logger = logging.getLogger("orchestrator")
    try:
        logger.warning("a file\nis damaged: %s", "x")
    finally:
        logger.removeHandler(logger.handlers[-1])
    console.print("going on with", "run r", highlight=False)

    def behave(task_id, attempt):
        key = (task_id, attempt)
        if attempt == 1:
            return [Lost(0.0, *key, FailureClass.WORKER_LOST, "killed")]
        return [Started(0.0, *key, NODE.name), Ended(0.0, *key, passed(*key))]

    ticks = itertools.count()
    progress = JsonProgress(console, planned=1)
    sweep = Sweep([SweepTask(task("m").task_id)], Policy(), 1)
    Driver([task("m")], sweep, FakeCluster(behave), FakeSink(), progress, lambda n: Attempt("r", n), clock=lambda: float(next(ticks))).run()
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert all(line["at"].endswith("+00:00") for line in lines)
    assert [line["event"] for line in lines] == ["log", "message", "lost", "started", "row"]
    assert lines[0]["text"] == "a file\nis damaged: x"
    assert lines[1]["text"] == "going on with run r"
    assert lines[2]["failure_class"] == "worker_lost"
    assert (lines[4]["status"], lines[4]["attempt"], lines[4]["done"], lines[4]["planned"]) == ("pass", 2, 1, 1)


def test_nodes_that_come_go_or_are_given_up_are_told_once():
    stream = io.StringIO()
    console = JsonConsole(file=stream, force_terminal=False)
    progress = JsonProgress(console, planned=1)
    for nodes in ({"a", "b"}, {"a", "b"}, {"a"}, {"a", "c"}):
        progress.event(NodesChanged(0.0, frozenset(nodes)))
    sweep = Sweep([SweepTask("x")], Policy(), 1)
    progress.tick(sweep)
    sweep._quarantined = frozenset({"c"})
    progress.tick(sweep)
    progress.tick(sweep)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [(line["event"], line["node"], line.get("nodes")) for line in lines] == [
        ("node_lost", "b", 1),
        ("node_joined", "c", 2),
        ("quarantined", "c", None),
    ]

"""Kill supervisors, guardians and workers that share a device at random moments: nobody stays paused, nothing is left, nobody overlaps.

Several callers run attempt after attempt, each of which compiles a little and times a lot, with a child in a session of its own. A caller
that is killed is replaced. At the end every caller is asked to stop after its attempt: one whose worker stayed paused never would.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tasks import lease
from tests.tasks.processes_fixtures import guardians_of, parents_of, states_below, wait_until

ROOT = Path(__file__).parent.parent.parent
CALLERS = 4
KINDS = ("supervisor", "guardian", "worker")
CALLER = """
import itertools, json, os, sys, tempfile
tempfile.tempdir, meeting_place, stop, seed, exclusive_log = sys.argv[1:6]
from tasks import lease
from tasks.spec import *
from tasks.supervisor import supervise
lease.SHARED_MEMORY = meeting_place
options = {"seconds": 0.03, "exclusive_seconds": 0.004, "warm_seconds": 0.002, "rounds": 20, "tunings": 5, "orphans": 1, "pairs": 7}
options["exclusive_log"] = exclusive_log
for number in itertools.count(1):
    model = ModelSpec("toy", "slow_pass", options=options)
    task = TaskSpec(f"toy/{seed}/{number}", model, "training", "inductor", PrecisionSpec("amp"))
    for event in supervise(task, Attempt("run", number)):
        pass
    outcome = event.outcome
    print(json.dumps([outcome.status, outcome.error, outcome.environment.get("worker_start"), outcome.paused_s]), flush=True)
    if os.path.exists(stop):
        break
"""


AFTER_GUARDIANS_DEATH_S = 0.05
"""A guardian's death frees its device a moment before it takes its worker along."""


def exclusive_log(node_directory):
    """Where all workers write when they had the device alone: outside of attempts, of which those that are killed leave nothing."""
    return node_directory.parent / "exclusive"


class Callers:
    """The processes that run attempts, and what they reported."""

    def __init__(self, node_directory):
        self._base = node_directory
        self._stop = node_directory.parent / "stop"
        self._reports = node_directory.parent / "reports"
        self._seeds = itertools.count()
        self.running = [self._start() for _ in range(CALLERS)]

    def _start(self):
        seed = str(next(self._seeds))
        command = [
            sys.executable,
            "-c",
            CALLER,
            str(self._base),
            lease.SHARED_MEMORY,
            str(self._stop),
            seed,
            str(exclusive_log(self._base)),
        ]
        with self._reports.with_suffix(f".{seed}").open("w") as file:
            return subprocess.Popen(command, stdout=file, cwd=ROOT)

    def kill(self, source):
        position = source.randrange(CALLERS)
        self.running[position].kill()
        self.running[position].wait()
        self.running[position] = self._start()

    def finish(self):
        self._stop.touch()
        for caller in self.running:
            assert caller.wait(timeout=120) == 0

    def reports(self):
        paths = self._base.parent.glob(f"{self._reports.name}.*")
        return [json.loads(line) for path in paths for line in path.read_text().splitlines() if line.endswith("]")]


def kill_random(callers, node_directory, source, kinds):
    """SIGKILL a process of a randomly chosen kind; the kind, or None if there was none."""
    kind = source.choice(kinds)
    if kind == "supervisor":
        callers.kill(source)
        return kind
    if kind == "parent":
        pids = parents_of(lease.SHARED_MEMORY)
    else:
        pids = guardians_of(node_directory) if kind == "guardian" else set(states_below(node_directory))
    if not pids:
        return None
    try:
        os.kill(source.choice(sorted(pids)), 9)
    except ProcessLookupError:
        return None
    return kind


def run_and_kill(node_directory, kills, pause_s, kinds=KINDS):
    """What the callers reported, how many of each kind were killed, and when guardians were."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    source = random.Random(seed)
    callers = Callers(node_directory)
    wait_until(lambda: len(callers.reports()) >= CALLERS, "the first outcomes")
    done, guardians_s = dict.fromkeys(kinds, 0), []
    while sum(done.values()) < kills:
        time.sleep(source.uniform(0, pause_s))
        kind = kill_random(callers, node_directory, source, kinds)
        if kind is not None:
            done[kind] += 1
        if kind == "guardian":
            guardians_s.append(time.monotonic())
    callers.finish()
    return callers.reports(), done, guardians_s


def check(node_directory, reports, guardians_s):
    wait_until(lambda: not states_below(node_directory), f"the end of {states_below(node_directory)}")
    wait_until(lambda: not guardians_of(node_directory), "the end of the guardians")
    statuses = {status for status, *_ in reports}
    assert statuses <= {"pass", "crash", "infra_error"}, [
        report[:2] for report in reports if report[0] not in ("pass", "crash", "infra_error")
    ]
    assert sum(paused_s for *_, paused_s in reports) > 0
    times = sorted((float(a), float(b)) for a, b in re.findall(r"(?:time|tune) (\S+) (\S+)\n", exclusive_log(node_directory).read_text()))
    assert len(times) > 25
    for one, other in itertools.pairwise(times):
        orphaned = any(abs(one[1] - killed_s) < AFTER_GUARDIANS_DEATH_S for killed_s in guardians_s)
        assert one[1] <= other[0] or orphaned, f"{one} and {other} overlap"


def test_twenty_kills(node_directory):
    reports, _, guardians_s = run_and_kill(node_directory, 20, 0.3)
    check(node_directory, reports, guardians_s)


@pytest.mark.chaos
@pytest.mark.timeout(1800)
def test_five_hundred_kills(node_directory):
    reports, done, guardians_s = run_and_kill(node_directory, 500, 0.5)
    assert min(done.values()) > 100
    check(node_directory, reports, guardians_s)

"""A storm: toy sweeps on a real local cluster, with kills of workers, guardians, supervisors, nodes and drivers at random times.

``make chaos``, or ``python -m tests.chaos.storm --runs 20 --faults 200``, prints a table and exits 1 if anything was lost, written twice,
redone or leaked, or if a stored run violates an invariant. A first run without faults says what the faults cost in time.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import ray
from ray.cluster_utils import Cluster

from orchestrator.errors import ExitCode
from orchestrator.store import Store
from orchestrator.verify import verify

RUN_LIMIT_S = 600.0
LEAK_LIMIT_S = 20.0
FAST_HEALTH_CHECKS = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 4}
HEAD = """\
schema_version: 1
name: storm
matrix: {dtype: [float32]}
retries: {infrastructure: 20}
execution: {num_cpus: 1}
suites:
  toy:
"""


class Fault(StrEnum):
    WORKER = "worker"
    GUARDIAN = "guardian"
    SUPERVISOR = "supervisor"
    NODE = "node"
    DRIVER = "driver"


WEIGHTS = {Fault.WORKER: 3, Fault.GUARDIAN: 3, Fault.SUPERVISOR: 3, Fault.NODE: 1, Fault.DRIVER: 2}


@dataclass
class Tally:
    """What a storm did, and what came of it."""

    runs: int = 0
    faults: Counter = field(default_factory=Counter)
    planned: int = 0
    rows: int = 0
    second_attempts: int = 0
    duplicates: int = 0
    lost: int = 0
    redone: int = 0
    leaked: int = 0
    wrong_exit: int = 0
    violations: int = 0
    seconds: float = 0.0
    calm_s: float = 0.0  # a run without faults

    def sound(self) -> bool:
        return not (self.duplicates or self.lost or self.redone or self.leaked or self.wrong_exit or self.violations)

    def table(self) -> str:
        faults = ", ".join(f"{count} {fault.value}" for fault, count in sorted(self.faults.items()))
        lines = {
            "runs": self.runs,
            "faults injected": f"{self.faults.total()} ({faults})",
            "tasks planned": self.planned,
            "rows": self.rows,
            "rows of a second or later attempt": self.second_attempts,
            "lost": self.lost,
            "duplicates": self.duplicates,
            "good tasks redone": self.redone,
            "leaked processes": self.leaked,
            "wrong exit status": self.wrong_exit,
            "violations that `sweep verify` finds": self.violations,
            "seconds of a run without faults": f"{self.calm_s:.0f}",
            "seconds of a run with them, on average": f"{self.seconds / self.runs:.0f}",
            "overhead, per fault": f"{(self.seconds - self.runs * self.calm_s) / max(1, self.faults.total()):.1f} s",
        }
        return "\n".join(["| what | how many |", "|---|---|", *(f"| {name} | {value} |" for name, value in lines.items())])


@dataclass
class Storm:
    """One run with faults."""

    rng: random.Random
    folder: Path
    faults_left: int
    tally: Tally
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    good: dict = field(default_factory=dict)  # task -> its row, from the first time it was seen to pass

    def run(self) -> None:
        os.environ["TRIAL"] = self.mark  # inherited by all that is started from here
        manifest = self._manifest()
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": FAST_HEALTH_CHECKS})
        try:
            nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
            cluster.wait_for_nodes()
            code = self._drive(cluster, nodes, manifest)
        finally:
            cluster.shutdown()
        self._judge(code)

    def _manifest(self) -> Path:
        toys = [f"{{name: slow_pass.{i}, options: {{seconds: {self.rng.uniform(0.2, 2.5):.2f}}}}}" for i in range(14)]
        toys += [f"pass.{i}" for i in range(6)] + ["fail_compile", "crash", "half_result", "orphans"]
        path = self.folder / "storm.yaml"
        path.write_text(HEAD + "".join(f"    - {toy}\n" for toy in toys))
        return path

    def _drive(self, cluster: Cluster, nodes: list, manifest: Path) -> int:
        began = time.monotonic()
        driver = self._start(cluster, manifest)
        while driver.poll() is None or driver.returncode < 0:
            if driver.poll() is not None:  # it was killed: somebody resumes the run
                self._look()
                driver = self._start(cluster, manifest)
            assert time.monotonic() - began < RUN_LIMIT_S, "the run does not end"
            time.sleep(self.rng.uniform(0.1, 1.5))
            self._look()
            if self.faults_left > 0 and (self.folder / "out" / "r" / "run.json").exists():
                self._strike(cluster, nodes, driver)
        self.tally.seconds += time.monotonic() - began
        return driver.returncode

    def _start(self, cluster: Cluster, manifest: Path) -> subprocess.Popen:
        words = [
            sys.executable,
            "-m",
            "orchestrator",
            "run",
            str(manifest),
            "--results",
            str(self.folder / "out"),
            "--run-id",
            "r",
            "--resume",
        ]
        log = (self.folder / "driver.log").open("ab")
        return subprocess.Popen([*words, "--address", cluster.address], stdout=subprocess.DEVNULL, stderr=log)

    def _strike(self, cluster: Cluster, nodes: list, driver: subprocess.Popen) -> None:
        fault = self.rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        if fault is Fault.DRIVER:
            driver.kill()
            driver.wait()
        elif fault is Fault.NODE:
            cluster.remove_node(nodes.pop(self.rng.randrange(len(nodes))), allow_graceful=False)
            nodes.append(cluster.add_node(num_cpus=1))
        elif victims := self._victims(fault, nodes):
            os.kill(self.rng.choice(victims), signal.SIGKILL)
        else:
            return
        self.tally.faults[fault] += 1
        self.faults_left -= 1

    def _victims(self, fault: Fault, nodes: list) -> list[int]:
        if fault is Fault.SUPERVISOR:  # they rename themselves, which overwrites the mark
            raylets = [node.all_processes["raylet"][0].process.pid for node in nodes]
            children = [child for pid in raylets if psutil.pid_exists(pid) for child in psutil.Process(pid).children()]
            return [child.pid for child in children if "ray::_run_attempt" in _line(child)]
        return [process.pid for process in self._marked() if _kind(process) is fault]

    def _marked(self) -> list[psutil.Process]:
        return [p for p in psutil.process_iter(["cmdline", "environ"]) if (p.info["environ"] or {}).get("TRIAL") == self.mark]

    def _look(self) -> None:
        """Remember the rows that are there; one that passed may never change again."""
        store = Store(str(self.folder / "out"))
        if any(record.run_id == "r" for record in store.runs()):
            for row in store.resolve("r").rows().to_pylist():
                if row["status"] == "pass":
                    self.tally.redone += self.good.setdefault(row["task_id"], row) != row

    def _judge(self, code: int) -> None:
        self._look()
        run_store = Store(str(self.folder / "out")).resolve("r")
        planned = {entry.task.task_id for entry in run_store.plan()}
        rows = run_store.rows().to_pylist()
        written = [
            task
            for file in sorted((self.folder / "out" / "r" / "tasks").glob("*.parquet"))
            for task in pq.read_table(file, columns=["task_id"])["task_id"].to_pylist()
        ]
        violations = verify(run_store)
        sys.stderr.write("".join(f"violation: {violation}\n" for violation in violations))
        self.tally.runs += 1
        self.tally.planned += len(planned)
        self.tally.rows += len(rows)
        self.tally.second_attempts += sum(row["attempt"] > 1 for row in rows)
        self.tally.lost += len(planned - {row["task_id"] for row in rows})
        self.tally.duplicates += sum(count - 1 for count in Counter(written).values())  # whoever queries the bare files sees these
        self.tally.violations += len(violations)
        self.tally.wrong_exit += code != ExitCode.SOME_FAILED
        self.tally.leaked += self._leaks()

    def _leaks(self) -> int:
        give_up = time.monotonic() + LEAK_LIMIT_S
        while leaked := [process for process in self._marked() if _kind(process)]:
            if time.monotonic() > give_up:
                sys.stderr.write("".join(f"leaked: {_line(process)}\n" for process in leaked))
                break
            time.sleep(0.2)
        return len(leaked)


def _line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _kind(process: psutil.Process) -> Fault | None:
    line = _line(process)
    return Fault.WORKER if "tasks.worker" in line else Fault.GUARDIAN if "tasks.guardian" in line else None


def storm(runs: int, faults: int, seed: int) -> Tally:
    """``faults`` faults over at least ``runs`` runs."""
    calm = Tally()
    with tempfile.TemporaryDirectory(prefix="storm-") as folder:
        Storm(random.Random(seed), Path(folder), 0, calm).run()
    tally = Tally(calm_s=calm.seconds, wrong_exit=calm.wrong_exit, violations=calm.violations)
    number = 0
    while tally.runs < runs or tally.faults.total() < faults:
        run_seed = seed + number
        number += 1
        share = -(-(faults - tally.faults.total()) // max(1, runs - tally.runs))
        with tempfile.TemporaryDirectory(prefix="storm-") as folder:
            before = tally.faults.total()
            one = Storm(random.Random(run_seed), Path(folder), max(0, share), tally)
            one.run()
            sys.stderr.write(
                f"run {tally.runs} (seed {run_seed}): {tally.faults.total() - before} faults, {'sound' if tally.sound() else 'NOT SOUND'}\n"
            )
            if not tally.sound():
                sys.stderr.write((Path(folder) / "driver.log").read_text(errors="replace")[-4000:])
    return tally


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    arguments = parser.parse_args()
    tally = storm(arguments.runs, arguments.faults, arguments.seed)
    where = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, Ray {ray.__version__}"
    command = f"python -m tests.chaos.storm --runs {arguments.runs} --faults {arguments.faults} --seed {arguments.seed}"
    sys.stdout.write(f"## The last storm\n\n{time.strftime('%Y-%m-%d', time.gmtime())}, {where}: `{command}`\n\n{tally.table()}\n")
    return 0 if tally.sound() else 1


if __name__ == "__main__":
    sys.exit(main())

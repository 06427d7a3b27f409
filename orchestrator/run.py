"""One run from manifest to exit status: load, connect, preflight, lock, drive, record.

Nothing here decides what a task's fate is (``sweep``, ``policy``) or how rows are kept (``store``); this is the order in which they meet.
"""

from __future__ import annotations

import logging
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.console import Console

from orchestrator import __version__
from orchestrator.cluster import Cluster, RayCluster
from orchestrator.connection import in_submitted_job
from orchestrator.control import clear_stop, stop_requests
from orchestrator.costs import recorded
from orchestrator.driver import Driver, Ending, Progress, Sink
from orchestrator.errors import ExitCode, StoreError, UsageError
from orchestrator.journal import Journal
from orchestrator.json_log import JsonConsole, JsonProgress
from orchestrator.manifest import LoadedManifest, load_manifest
from orchestrator.metrics import Metered
from orchestrator.nodes import NodeInfo
from orchestrator.plan import plan_tasks
from orchestrator.policy import Policy
from orchestrator.preflight import capacity, check, devices, machine, resolve_device, suitable, survey
from orchestrator.progress import LiveProgress, PlainProgress
from orchestrator.record import PlannedTask, RunRecord, RunState
from orchestrator.sharing import Sharing, work_out
from orchestrator.store import RunStore, Store
from orchestrator.sweep import Sweep, SweepTask
from tasks.preload import modules_of
from tasks.probe import NodeProbe, code_version
from tasks.spec import Attempt, Outcome, ResourceSpec, Status, TaskSpec

log = logging.getLogger(__name__)

ANY_CPU = 0.01
"""Asks that a node have cores at all: a head that takes no tasks has none."""

RERUN_ALWAYS = frozenset({Status.INFRA_ERROR})
"""What a resume runs again without being asked: no verdict on the model, only on the machinery."""


@dataclass(frozen=True, slots=True)
class RunRequest:
    """What the user asked for.

    ``rerun``: statuses whose tasks a resume runs again, beside those of ``RERUN_ALWAYS``. ``aa``: measure each arm against itself.
    """

    manifest: Path
    results: str = "results"
    run_id: str | None = None
    address: str | None = None
    resume: bool = False
    rerun: frozenset[Status] = field(default_factory=frozenset)
    aa: bool = False


@dataclass(frozen=True, slots=True)
class Ended:
    """How the run ended, and where its rows are."""

    run_id: str
    ending: Ending


def run(request: RunRequest, console: Console, connect: Callable[[str | None], Cluster] = RayCluster) -> Ended:
    """Carry out ``request``; progress goes to ``console``.

    Raises:
        ManifestError, UsageError: nothing was started.
        PreflightError: the cluster cannot run the plan; nothing was started.
        RunLockedError: another driver runs this run.
        StoreError: the store cannot be read or written.
    """
    loaded = load_manifest(request.manifest)
    store = Store(request.results)
    if loaded.manifest.execution.cache == "bundle" and store.bundles_path is None:
        raise UsageError(f"execution.cache: bundle keeps files beside the runs, which nodes cannot write to in {request.results}")
    earlier = _earlier_run(store, request, loaded)
    with closing(connect(request.address)) as cluster:
        nodes, probes = survey(cluster)
        device = resolve_device(loaded.manifest.execution.device, nodes)
        sharing = _sharing(loaded, device, nodes, probes)
        plan = earlier.plan() if earlier else _plan(loaded, device, request, sharing)
        specs = [planned.task for planned in plan if planned.skip_reason is None]
        check(specs, nodes, probes, code_version(), mix_accelerators=loaded.manifest.execution.mix_accelerators)
        if request.address:
            _warm_up(cluster, nodes, specs, console)
        run_store = earlier or store.create(_record(request, loaded, nodes, device, sharing), plan)
        with run_store:
            if earlier:
                _reopen(run_store, console)
            ending = _drive(run_store, plan, loaded, cluster, nodes, request.rerun, console, store.bundles_path)
            return Ended(run_store.run_id, _conclude(run_store, plan, ending, rerun=bool(earlier and request.rerun)))


def resume_command(request: RunRequest, run_id: str) -> str:
    """The exact command that goes on with a run."""
    if in_submitted_job():  # paths are those of the job's copy
        return f"sweep submit MANIFEST, as before, with --run-id {shlex.quote(run_id)} --resume"
    words = ["sweep", "run", str(request.manifest), "--results", request.results, "--run-id", run_id, "--resume"]
    return shlex.join(words + (["--aa"] if request.aa else []) + (["--address", request.address] if request.address else []))


# --- before ---------------------------------------------------------------------------------------------------------------------


def _earlier_run(store: Store, request: RunRequest, loaded: LoadedManifest) -> RunStore | None:
    """The run that ``--resume`` goes on with; None to start a new one, also where there is none yet to go on with."""
    if not request.resume:
        return None
    wanted = [
        record
        for record in store.runs()
        if record.run_id == request.run_id
        or (request.run_id is None and (record.manifest, record.aa) == (loaded.manifest.name, request.aa))
    ]
    if not wanted:
        return None
    record = wanted[-1]
    if record.aa != request.aa:
        raise UsageError(f"run {record.run_id} was started {'with' if record.aa else 'without'} --aa: resume it likewise")
    if record.manifest_digest != loaded.digest:
        raise UsageError(
            f"{request.manifest} has changed since run {record.run_id} was planned: its rows would not be comparable. "
            "Start a new run without --resume, or undo the change"
        )
    return store.resolve(record.run_id)


def _sharing(loaded: LoadedManifest, device: str, nodes: Sequence[NodeInfo], probes: Mapping[str, NodeProbe | str]) -> Sharing:
    execution = loaded.manifest.execution
    accelerator = execution.accelerator if device == "cuda" else None
    wanted = ResourceSpec(device, ANY_CPU, accelerator=accelerator, labels=tuple(execution.labels.items()))
    machines = [machine(node, probes.get(node.name)) for node in suitable([wanted], nodes)]
    return work_out(execution.sharing, device, machines, execution.num_cpus)


def _plan(loaded: LoadedManifest, device: str, request: RunRequest, sharing: Sharing) -> tuple[PlannedTask, ...]:
    planned = plan_tasks(loaded, device, recorded(request.results), sharing=sharing, aa=request.aa).tasks
    return tuple(PlannedTask(entry.spec, entry.skip) for entry in planned)


def _record(request: RunRequest, loaded: LoadedManifest, nodes: Sequence[NodeInfo], device: str, sharing: Sharing) -> RunRecord:
    started = time.time()
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime(started))
    return RunRecord(
        run_id=request.run_id or f"{loaded.manifest.name}-{'aa-' if request.aa else ''}{stamp}",
        manifest=loaded.manifest.name,
        manifest_digest=loaded.digest,
        started=started,
        manifest_files={file.path: file.text for file in loaded.files},
        weights=dict(loaded.manifest.weights),
        by_device=loaded.manifest.execution.mix_accelerators,
        aa=request.aa,
        orchestrator_version=__version__,
        argv=tuple(sys.argv),
        cluster={
            "address": request.address or "local",
            "device": device,
            "nodes": len(nodes),
            "cpus": sum(node.num_cpus for node in nodes),
            "gpus": sum(node.num_gpus for node in nodes),
            "sharing": sharing.tasks,
            "sharing_why": sharing.why,
            "gpu_mib": sharing.gpu_mib,
        },
    )


def _reopen(run_store: RunStore, console: Console) -> None:
    """Take over a run: its lock, and what a dead driver left behind."""
    run_store.acquire()
    clear_stop(run_store.files)
    run_store.set_state(RunState.RUNNING)
    console.print(f"going on with run {run_store.run_id}", highlight=False)


# --- during ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _StoreSink:
    """The run's store, its spool kept to what is not stored, and its journal."""

    run_store: RunStore
    journal: Journal

    def tell(self, sweep: Sweep, decided: Sequence[str]) -> None:
        try:
            self.journal.stories((task_id, sweep.story(task_id)) for task_id in decided)
            self.journal.standing(sweep.active())
        except OSError as error:  # a run whose story cannot be told still has its results
            log.warning("the journal of run %s cannot be written: %s", self.run_store.run_id, error)

    def append(self, batch: Sequence[tuple[TaskSpec, Outcome]]) -> None:
        self.run_store.append(batch)
        self.run_store.clear_spool((outcome.task_id, outcome.attempt) for _, outcome in batch)

    def refresh_lock(self) -> None:
        self.run_store.refresh_lock()

    def stop_requests(self) -> int:
        try:
            return stop_requests(self.run_store.files)
        except StoreError as error:  # whether anybody asked is not worth a run
            log.warning("%s", error)
            return 0


def _drive(
    run_store: RunStore,
    plan: Sequence[PlannedTask],
    loaded: LoadedManifest,
    cluster: Cluster,
    nodes: Sequence[NodeInfo],
    rerun: frozenset[Status],
    console: Console,
    bundles: Path | None,
) -> Ending:
    policy = Policy(infrastructure_retries=loaded.manifest.retries.infrastructure)
    sink = _StoreSink(run_store, Journal(run_store.files, time.monotonic()))
    _store_orphans(run_store, plan, policy, sink, console)
    tasks = _sweep_tasks(run_store, plan, rerun | RERUN_ALWAYS)
    specs = [planned.task for planned in plan]
    to_run = [planned.task for planned in plan if planned.skip_reason is None]
    slots = capacity(to_run, nodes, loaded.manifest.execution.max_in_flight)
    sweep = Sweep(tasks, policy, slots.max_in_flight)
    spool, kept = (str(path) if path else None for path in (run_store.spool_path, bundles))
    first = Attempt(run_store.run_id, 1, spool, kept)
    with _progress(console, len(plan), sum(task.done is not None for task in tasks)) as shown:
        progress = Metered(
            *(shown, run_store.run_id, [task.task_id for task in specs], cluster.meters()),
            devices=lambda: devices(to_run, cluster.nodes()),
        )
        driver = Driver(specs, sweep, cluster, sink, progress, lambda number: replace(first, number=number))
        return driver.run()


def _warm_up(cluster: Cluster, nodes: Sequence[NodeInfo], specs: Sequence[TaskSpec], console: Console) -> None:
    """So that the first task of a node is not measured while its libraries come from a cold disk. The run does not depend on it."""
    modules = modules_of(task.model.suite for task in specs)
    usable = suitable({task.resources for task in specs}, nodes)
    if modules and usable:
        console.print(f"{len(usable)} node(s) load the libraries that the models need", highlight=False)
        for name, complaint in cluster.warm_up(usable, modules).items():
            console.print(f"node {name} starts cold: {complaint}", soft_wrap=True, highlight=False)


def _store_orphans(run_store: RunStore, plan: Sequence[PlannedTask], policy: Policy, sink: Sink, console: Console) -> None:
    """Results that finished while no driver was there to store them. What policy would try again is left to be run again."""
    specs = {planned.task.task_id: planned.task for planned in plan}
    latest = {outcome.task_id: outcome for outcome in run_store.ingest_orphans()}
    final = [
        outcome
        for outcome in latest.values()
        if policy.retry(outcome, _shares(specs[outcome.task_id]), (outcome.failure_class,) if outcome.failure_class else ()) is None
    ]
    if final:
        sink.append([(specs[outcome.task_id], outcome) for outcome in final])
        console.print(f"stored {len(final)} result(s) that the last driver did not live to store", highlight=False)


def _sweep_tasks(run_store: RunStore, plan: Sequence[PlannedTask], rerun: frozenset[Status]) -> list[SweepTask]:
    stored = {row["task_id"]: row for row in run_store.rows(("task_id", "status", "attempt")).to_pylist()}
    tasks = []
    for planned in plan:
        row = stored.get(planned.task.task_id)
        status = Status(row["status"]) if row else None
        keep = status is not None and status not in rerun
        # A later attempt wins over the row that is there.
        first = row["attempt"] + 1 if row and not keep else 1
        done, shares = status if keep else None, _shares(planned.task)
        tasks.append(SweepTask(planned.task.task_id, planned.task.deadlines, planned.skip_reason, done, first, shares))
    return tasks


def _shares(task: TaskSpec) -> bool:
    """Whether other tasks may be placed on the device beside it."""
    return task.resources.device == "cuda" and task.resources.num_gpus < 1


def _progress(console: Console, planned: int, done: int) -> AbstractContextManager[Progress]:
    if isinstance(console, JsonConsole):
        return nullcontext(JsonProgress(console, planned, done))
    if console.is_terminal:
        return LiveProgress(console, planned, done)
    return nullcontext(PlainProgress(console, planned, done))


# --- after ----------------------------------------------------------------------------------------------------------------------


def _conclude(run_store: RunStore, plan: Sequence[PlannedTask], ending: Ending, *, rerun: bool) -> Ending:
    """Record how the run ended. The store has the last word on whether every planned task has its row."""
    if rerun:  # else a query over the bare files would find the rows that were run again beside those that replace them
        run_store.compact()
    if ending.exit_code in (ExitCode.PASSED, ExitCode.SOME_FAILED) and len(run_store.terminal()) != len(plan):
        ending = replace(ending, exit_code=ExitCode.INFRASTRUCTURE, reason="the store lacks rows of finished tasks")
    states = {ExitCode.INTERRUPTED: RunState.INTERRUPTED, ExitCode.INFRASTRUCTURE: RunState.INCOMPLETE}
    complete = ending.reason == "finished"
    run_store.set_state(RunState.FINISHED if complete else states[ending.exit_code], int(ending.exit_code))
    return ending

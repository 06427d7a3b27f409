"""One run from manifest to exit status: load, connect, preflight, lock, drive, record.

Nothing here decides what a task's fate is (``sweep``, ``policy``) or how rows are kept (``store``); this is the order in which they meet.
"""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from rich.console import Console

from orchestrator import __version__, earlier_run
from orchestrator.broken_off import marked_when_broken_off, resumable, sigterm_is_ctrl_c
from orchestrator.carry import carriable
from orchestrator.cluster import Cluster, RayCluster
from orchestrator.costs import recorded
from orchestrator.driver import Driver, Ending, Progress
from orchestrator.environments import only, run_name
from orchestrator.errors import ExitCode, StoreError, UsageError
from orchestrator.journal import Journal
from orchestrator.json_log import JsonConsole, JsonProgress
from orchestrator.manifest import LoadedManifest, load_manifest
from orchestrator.metrics import Metered
from orchestrator.nodes import NodeInfo
from orchestrator.plan import PlannedTask as CostedTask
from orchestrator.plan import plan_tasks, side_by_side
from orchestrator.policy import Policy
from orchestrator.preflight import check, devices, machine, resolve_device, suitable, survey
from orchestrator.progress import LiveProgress, PlainProgress
from orchestrator.record import PlannedTask, RunRecord, RunState
from orchestrator.request import RunRequest, next_command, resume_command
from orchestrator.room import Room
from orchestrator.sessions import Site, gpu_name, hours, outlook, replanned, require_same_gpu, took
from orchestrator.sharing import Sharing, work_out
from orchestrator.sink import StoreSink
from orchestrator.store import RunStore, Store
from orchestrator.sweep import Sweep, SweepTask
from tasks.preload import modules_of
from tasks.probe import NodeProbe, code_version
from tasks.spec import Attempt, ResourceSpec, TaskSpec

log = logging.getLogger(__name__)

ANY_CPU = 0.01
"""Asks that a node have cores at all: a head that takes no tasks has none."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How the run ended, where its rows are, and the command that does what is left to do, if anything is."""

    run_id: str
    ending: Ending
    go_on: str | None = None


def run(request: RunRequest, console: Console, connect: Callable[[str | None], Cluster] = RayCluster) -> Ended:
    """Carry out ``request``; progress goes to ``console``.

    Raises:
        ManifestError, UsageError: nothing was started.
        PreflightError: the cluster cannot run the plan; nothing was started.
        RunLockedError: another driver runs this run.
        StoreError: the store cannot be read or written.

    What is raised once the run is there, be it by Ctrl-C or by a bug, has the command that goes on with it as a note.
    """
    until_s = time.monotonic() + (request.stop_after_s or math.inf)
    loaded = only(load_manifest(request.manifest), request.environment)
    store = Store(request.results)
    if loaded.manifest.execution.cache == "bundle" and store.bundles_path is None:
        raise UsageError(f"execution.cache: bundle keeps files beside the runs, which nodes cannot write to in {request.results}")
    store.check_ready(request.run_id, resume=request.resume)
    earlier = earlier_run.find(store, request, loaded)
    if earlier:
        earlier_run.check_named(request.rerun_tasks, earlier.plan())
    source = store.resolve(request.carry) if request.carry else None
    with (
        resumable(resume_command(request, earlier.run_id) if earlier else None),
        closing(connect(request.address)) as cluster,
        sigterm_is_ctrl_c(),
    ):
        nodes, probes = survey(cluster)
        device = resolve_device(loaded.manifest.execution.device, nodes)
        finished = earlier_run.finished(earlier, request) if earlier else {}
        to_run = len(plan_tasks(loaded, device, finished=finished, aa=request.aa).left)
        sharing = _sharing(loaded, device, nodes, probes, to_run)
        site = _site(loaded, device, nodes, probes, sharing)
        if earlier and not loaded.manifest.execution.mix_accelerators:
            require_same_gpu(earlier.record, site.gpu)
        costed = _plan(loaded, request, site, finished)
        fresh = tuple(PlannedTask(entry.spec, entry.skip) for entry in costed)
        plan = replanned(earlier.plan(), fresh) if earlier else fresh
        specs = [planned.task for planned in plan if planned.skip_reason is None]
        check(specs, nodes, probes, code_version(), mix_accelerators=loaded.manifest.execution.mix_accelerators)
        _warm_up(cluster, nodes, specs, device, console)  # before the run's lock is taken: it may last
        run_store = earlier or store.create(_record(request, loaded, nodes, device, sharing), plan)
        with resumable(resume_command(request, run_store.run_id)), run_store, marked_when_broken_off(run_store):
            if earlier:
                earlier_run.reopen(run_store, console, request.lock_wait_s)
            take_over = partial(_take_over, run_store, source, specs, nodes, probes, console)
            begin = partial(_begin_session, run_store, costed, site, console)
            ending = _drive(run_store, plan, loaded, cluster, request, console, store.bundles_path, take_over, begin, until_s)
            with run_store.kept_alive():
                ending = _conclude(run_store, plan, ending)
            if told := took(run_store.record.sessions[-1]):
                console.print(told, soft_wrap=True, highlight=False)
        go_on = next_command(request, run_store.run_id, ending.exit_code, finished=ending.reason == "finished")
        return Ended(run_store.run_id, ending, go_on)


# --- before ---------------------------------------------------------------------------------------------------------------------


def _warm_up(cluster: Cluster, nodes: Sequence[NodeInfo], specs: Sequence[TaskSpec], device: str, console: Console) -> None:
    """So that no task of a node loads its libraries from a cold disk, but finds a process to be forked from that has them.

    The run does not depend on it.
    """
    modules = modules_of(task.model.suite for task in specs)
    usable = suitable({task.resources for task in specs}, nodes)
    if modules and usable:
        console.print(f"{len(usable)} node(s) load the libraries that the models need", highlight=False)
        for name, complaint in cluster.warm_up(usable, modules, device).items():
            console.print(f"node {name} starts cold: {complaint}", soft_wrap=True, highlight=False)


def _sharing(
    loaded: LoadedManifest, device: str, nodes: Sequence[NodeInfo], probes: Mapping[str, NodeProbe | str], to_run: int | None = None
) -> Sharing:
    execution = loaded.manifest.execution
    machines = [machine(node, probes.get(node.name)) for node in _usable(loaded, device, nodes)]
    return work_out(execution.sharing, device, machines, execution.num_cpus, to_run)


def _usable(loaded: LoadedManifest, device: str, nodes: Sequence[NodeInfo]) -> list[NodeInfo]:
    execution = loaded.manifest.execution
    accelerator = execution.accelerator if device == "cuda" else None
    wanted = ResourceSpec(device, ANY_CPU, accelerator=accelerator, labels=tuple(execution.labels.items()))
    return suitable([wanted], nodes)


def _site(loaded: LoadedManifest, device: str, nodes: Sequence[NodeInfo], probes: Mapping[str, NodeProbe | str], sharing: Sharing) -> Site:
    usable = _usable(loaded, device, nodes)
    gpu = gpu_name(probes[node.name] for node in usable if node.name in probes) if device == "cuda" else None
    return Site(device, tuple(usable), gpu, sharing, loaded.manifest.execution.max_in_flight)


def _plan(loaded: LoadedManifest, request: RunRequest, site: Site, finished: Mapping[str, str]) -> tuple[CostedTask, ...]:
    costs = recorded(request.results, site.device, site.gpu)
    return plan_tasks(loaded, site.device, costs, finished, site.sharing, request.aa, site.devices, site.per_node).tasks


def _record(request: RunRequest, loaded: LoadedManifest, nodes: Sequence[NodeInfo], device: str, sharing: Sharing) -> RunRecord:
    started = time.time()
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime(started))
    return RunRecord(
        run_id=request.run_id or f"{run_name(loaded.manifest.name, loaded)}-{'aa-' if request.aa else ''}{stamp}",
        manifest=loaded.manifest.name,
        manifest_digest=loaded.digest,
        started=started,
        manifest_files={file.path: file.text for file in loaded.files},
        weights=dict(loaded.manifest.weights),
        by_device=loaded.manifest.execution.mix_accelerators,
        aa=request.aa,
        environment=loaded.environment,
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


# --- during ---------------------------------------------------------------------------------------------------------------------


def _drive(
    run_store: RunStore,
    plan: Sequence[PlannedTask],
    loaded: LoadedManifest,
    cluster: Cluster,
    request: RunRequest,
    console: Console,
    bundles: Path | None,
    take_over: Callable[[], None],
    begin: Callable[[list[SweepTask]], list[SweepTask]],
    until_s: float,
) -> Ending:
    retries = loaded.manifest.retries
    policy = Policy(infrastructure_retries=retries.infrastructure, quality_retries=retries.quality)
    specs = [planned.task for planned in plan]
    to_run = [planned.task for planned in plan if planned.skip_reason is None]
    room = Room.of(to_run, loaded.manifest.execution.max_in_flight)
    with run_store.kept_alive():
        earlier_run.store_orphans(run_store, plan, policy, console)
        take_over()
        tasks = begin(earlier_run.sweep_tasks(run_store, plan, request, room))
    sink = StoreSink(run_store, Journal(run_store.files, time.monotonic()), policy, {task.task_id: task.first_attempt for task in tasks})
    sweep = Sweep(tasks, policy, until_s=until_s)
    spool, kept = (str(path) if path else None for path in (run_store.spool_path, bundles))
    first = Attempt(run_store.run_id, 1, spool, kept)
    with _progress(console, len(plan), sum(task.done is not None for task in tasks)) as shown:
        progress = Metered(
            *(shown, run_store.run_id, [task.task_id for task in specs], cluster.meters()),
            devices=lambda: devices(to_run, cluster.nodes()),
        )
        driver = Driver(specs, sweep, cluster, sink, progress, lambda number: replace(first, number=number), room)
        return driver.run()


def _begin_session(
    run_store: RunStore, costed: Sequence[CostedTask], site: Site, console: Console, tasks: list[SweepTask]
) -> list[SweepTask]:
    """Record that this driver goes to work, and what it expects; the tasks with how long each is expected to take, in their order."""
    undone = {task.task_id for task in tasks if task.done is None}
    left = side_by_side(
        [entry for entry in costed if entry.skip is None and entry.spec.task_id in undone], site.sharing, site.devices, site.per_node
    )
    expected = outlook(left, site)
    run_store.begin_session(site.session(time.time(), code_version(), len(left), expected))
    if expected.makespan_s is not None:
        console.print(f"{len(left)} tasks, expected to take about {hours(expected.makespan_s)}", highlight=False)
    places = {entry.spec.task_id: place for place, entry in enumerate(left)}
    ordered = sorted(tasks, key=lambda task: places.get(task.task_id, len(places)))
    return [replace(task, expected_s=expected.task_s.get(task.task_id, 0.0)) for task in ordered]


def _take_over(
    run_store: RunStore,
    source: RunStore | None,
    tasks: Sequence[TaskSpec],
    nodes: Sequence[NodeInfo],
    probes: Mapping[str, NodeProbe | str],
    console: Console,
) -> None:
    """Results of an earlier run for tasks that have none yet."""
    if source is None:
        return
    if source.run_id == run_store.run_id:
        raise UsageError(f"--carry {source.run_id}: a run cannot take over its own results")
    have = run_store.terminal()
    found = carriable(source, [task for task in tasks if task.task_id not in have], nodes, probes, code_version())
    run_store.carry(source, found.task_ids)
    console.print(f"took over {len(found.task_ids)} result(s) of run {source.run_id}", highlight=False)
    for reason, count in sorted(found.refused.items()):
        console.print(f"measured again: {count} with {reason}", markup=False, highlight=False)


def _progress(console: Console, planned: int, done: int) -> AbstractContextManager[Progress]:
    if isinstance(console, JsonConsole):
        return nullcontext(JsonProgress(console, planned, done))
    if console.is_terminal:
        return LiveProgress(console, planned, done)
    return nullcontext(PlainProgress(console, planned, done))


# --- after ----------------------------------------------------------------------------------------------------------------------


def _conclude(run_store: RunStore, plan: Sequence[PlannedTask], ending: Ending) -> Ending:
    """Record how the run ended. The store has the last word on whether every planned task has its row."""
    try:
        if run_store.beaten():  # a query over the bare files would find the rows that were run again beside those that replace them
            run_store.compact()
    except StoreError as error:
        log.error("rows that were replaced stay beside those that replace them, until `sweep compact %s`: %s", run_store.run_id, error)
    try:
        if ending.exit_code in (ExitCode.PASSED, ExitCode.SOME_FAILED) and len(run_store.terminal()) != len(plan):
            ending = replace(ending, exit_code=ExitCode.INFRASTRUCTURE, reason="the store lacks rows of finished tasks")
        states = {ExitCode.INTERRUPTED: RunState.INTERRUPTED, ExitCode.INFRASTRUCTURE: RunState.INCOMPLETE}
        complete = ending.reason == "finished"
        run_store.set_state(RunState.FINISHED if complete else states[ending.exit_code], int(ending.exit_code))
    except StoreError as error:
        log.error("run %s is not marked as ended: %s", run_store.run_id, error)
        if ending.reason == "finished":
            ending = Ending(ExitCode.INFRASTRUCTURE, str(error))
    return ending

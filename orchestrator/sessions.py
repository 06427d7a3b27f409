"""What one driver after the other did for a run: on which machines, for how long, and what it had expected. Pure.

A run that is resumed has one session for each driver. They say what it cost, whether forecasts hold, and whether a resume belongs to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from orchestrator.errors import UsageError
from orchestrator.nodes import NodeInfo
from orchestrator.plan import PlannedTask as CostedTask
from orchestrator.record import PlannedTask, RunRecord, Session
from orchestrator.sharing import Sharing
from orchestrator.simulate import Fleet, forecast
from tasks.probe import NodeProbe


@dataclass(frozen=True, slots=True)
class Site:
    """What a driver finds: nodes that can run the sweep, the model of their GPUs, and how devices are shared there."""

    device: str
    nodes: tuple[NodeInfo, ...]
    gpu: str | None
    sharing: Sharing
    max_in_flight: int | None

    @property
    def devices(self) -> int:
        """GPUs, or nodes where these are the devices."""
        return sum(int(node.num_gpus) for node in self.nodes) if self.device == "cuda" else len(self.nodes)

    @property
    def per_node(self) -> int:
        """Devices of a node, at the most; one, too, where no node has any, which is refused when the plan is checked."""
        return max([1, *(int(node.num_gpus) for node in self.nodes)]) if self.device == "cuda" else 1

    def session(self, started: float, code_version: str, tasks: int, expected: Outlook) -> Session:
        """What is recorded of a driver's work here."""
        return Session(
            started=started,
            nodes=len(self.nodes),
            devices=self.devices,
            gpu=self.gpu,
            sharing=self.sharing.tasks,
            code_version=code_version,
            tasks=tasks,
            forecast_s=expected.makespan_s,
        )


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a driver expects: how long all of it takes, and each task from its launch to its end; None and nothing where it cannot say."""

    makespan_s: float | None = None
    task_s: Mapping[str, float] = field(default_factory=dict)


def outlook(left: Sequence[CostedTask], site: Site) -> Outlook:
    """The forecast for ``left``; none where its simple picture of a cluster does not fit a task."""
    if not left or not site.devices or site.sharing.cores is None:
        return Outlook()
    try:
        found = forecast(left, Fleet(site.devices, site.sharing.cores, site.per_node), site.max_in_flight)
    except UsageError:
        return Outlook()
    return Outlook(found.makespan_s, {span.task_id: span.ended_s - span.began_s for span in found.spans})


def gpu_name(probes: Iterable[NodeProbe | str]) -> str | None:
    """The GPUs' model, or models; None where no node knows of one."""
    names = {gpu.name for found in probes if not isinstance(found, str) for gpu in found.gpus}
    return ", ".join(sorted(names)) or None


def require_same_gpu(record: RunRecord, gpu: str | None) -> None:
    """Refuse a resume on GPUs of another model.

    Raises:
        UsageError: with both models, and what to do.
    """
    earlier = next((session.gpu for session in reversed(record.sessions) if session.gpu), None)
    if earlier and gpu and earlier != gpu:
        raise UsageError(
            f"run {record.run_id} was measured on {earlier}, and here is {gpu}: "
            f"its rows would not belong together. Resume it on {earlier}, or start a new run with another --run-id; "
            "for runs on several models there is execution.mix_accelerators"
        )


def replanned(stored: Sequence[PlannedTask], fresh: Sequence[PlannedTask]) -> tuple[PlannedTask, ...]:
    """The stored plan in the order and with the shares of one made for this cluster and the rows so far.

    Where code of another version plans another task of the same name, the stored plan stays as it is.
    """
    identities = [{entry.task.task_id: (entry.task.digest, entry.skip_reason) for entry in plan} for plan in (stored, fresh)]
    return tuple(fresh if identities[0] == identities[1] else stored)


def took(session: Session) -> str | None:
    """In words, what was forecast and what it came to; None while there is nothing to compare."""
    if session.ended is None:
        return None
    took_s = session.ended - session.started
    if session.forecast_s is None or not session.complete:
        return f"took {hours(took_s)}"
    return f"took {hours(took_s)}; the forecast was {hours(session.forecast_s)} ({took_s / session.forecast_s - 1:+.0%})"


def device_hours(record: RunRecord, rows_ended: Iterable[float] = ()) -> float | None:
    """For how long devices were held, all sessions together; None where no session is known.

    ``rows_ended``: when the run's rows did, in seconds of the epoch. A driver that was killed worked until its last row: nothing was
    learned after it, and days may pass before the next driver starts.
    """
    if not record.sessions:
        return None
    ended = sorted(rows_ended)
    seconds = 0.0
    for session, following in zip(record.sessions, (*record.sessions[1:], None), strict=True):
        own = [at for at in ended if session.started <= at and (following is None or at < following.started)]
        end = session.ended or max(own, default=session.started)
        seconds += max(0.0, end - session.started) * session.devices
    return seconds / 3600


def facts(record: RunRecord, rows_ended: Iterable[float] = ()) -> dict[str, str]:
    """For readers: for how long devices were held, and each session."""
    held = device_hours(record, rows_ended)
    if held is None:
        return {}
    kind = "GPU" if any(session.gpu for session in record.sessions) else "node"
    found = {"held": f"{held:.2f} {kind} hours in {len(record.sessions)} session{'s' * (len(record.sessions) > 1)}"}
    for number, session in enumerate(record.sessions, start=1):
        where = f"{session.devices} x {session.gpu or 'CPU node'}, {session.sharing} sharing each"
        found[f"session {number}"] = f"{where}, {session.tasks} tasks to do; {took(session) or 'its driver was killed, or runs'}"
    return found


def hours(seconds: float) -> str:
    """A duration to read."""
    return f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 3600:.2f} h"

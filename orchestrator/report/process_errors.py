"""What a report adds to the error of a task that ran in one process: how much a fresh one would change. Pure.

The interval of one process does not show it, and leaving it out makes the interval of a score far too narrow: with 1 % between processes
half of them miss the truth. It is measured where a run has a calibration set, and assumed to be at the top of what was seen where not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from scipy import special

from orchestrator.noise import class_of
from orchestrator.report.answers import ProcessError, ProcessSpread
from orchestrator.report.rows import Run
from orchestrator.statistics.intervals import LEVEL
from orchestrator.statistics.processes import ASSUMED_PROCESS_SD

ENOUGH_FREEDOM = 10
"""With fewer degrees of freedom a calibration says less than experience."""


def process_errors(
    run: Run, spread: Sequence[ProcessSpread], process_sd: float | None
) -> tuple[tuple[ProcessError, ...], Callable[[str], float]]:
    """The error of each class with tasks of one process, and task_id -> what to add; ``process_sd`` is the user's own number."""
    devices, repeated = {task.task_id: task.device for task in run.planned}, run.repeated
    kinds = {
        row.task_id: class_of(devices.get(row.task_id, "cuda"), row.launch_bound)
        for row in run.rows
        if row.passed and row.task_id not in repeated
    }
    measured = {each.kind: each for each in spread}
    found = {kind: _error(kind, tasks, measured.get(kind), process_sd) for kind, tasks in sorted(Counter(kinds.values()).items())}
    return tuple(found.values()), lambda task_id: found[kinds[task_id]].sd if task_id in kinds else 0.0


def _error(kind: str, tasks: int, spread: ProcessSpread | None, process_sd: float | None) -> ProcessError:
    if process_sd is not None:
        return ProcessError(kind, process_sd, "given", tasks)
    if spread is None or spread.freedom < ENOUGH_FREEDOM:
        return ProcessError(kind, ASSUMED_PROCESS_SD, "assumed, --process-sd names another", tasks)
    # Made larger by what the few degrees of freedom leave open, so that the normal law can be used with it.
    share = 0.5 + LEVEL / 2
    wider = float(special.stdtrit(spread.freedom, share) / special.ndtri(share))
    return ProcessError(kind, spread.sd * wider, "as measured by the tasks with several processes", tasks)

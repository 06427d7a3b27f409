"""What ``sweep compare --confirm`` writes. Not a command of its own."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestrator.compare import Comparison
    from orchestrator.store import RunStore


def write_confirmation(found: Comparison, new: RunStore, path: Path, processes: int) -> None:
    """Write the manifest of the unclear tasks to ``path``; one beside it per further mode and backend."""
    from orchestrator.confirm import confirmation
    from orchestrator.report.present import write_file
    from orchestrator.statistics.differences import Verdict

    unclear = {change.task_id for change in found.of(Verdict.UNCLEAR)}
    specs = [entry.task for entry in new.plan() if entry.task.task_id in unclear]
    texts = confirmation(specs, f"confirm-{found.new_id}"[:100], processes)
    if not texts:
        sys.stderr.write("no task is unclear: nothing to confirm\n")
    for (mode, backend), text in texts.items():
        target = path if len(texts) == 1 else path.with_name(f"{path.stem}-{mode}-{backend}{path.suffix}")
        write_file(target, text)
        sys.stderr.write(f"{target}: run it in both environments with `sweep run {target}`, then compare those two runs\n")

"""What a person sees while a run goes on: a live table on a terminal, plain lines elsewhere. Everything goes to stderr."""

from __future__ import annotations

import time
from collections.abc import Mapping

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from orchestrator.events import ClusterLost, Event, Lost, StoreFailed
from orchestrator.sweep import State, Sweep
from tasks.spec import Outcome, Status, TaskSpec

REFRESH_S = 0.25
STYLES = {Status.PASS: "green", Status.SKIPPED: "dim", Status.UNSUPPORTED: "yellow"}


class PlainProgress:
    """One line per row, and one per thing that went wrong with the machinery."""

    def __init__(self, console: Console, planned: int, done: int = 0) -> None:
        self._console = console
        self._planned = planned
        self._done = done

    def event(self, event: Event) -> None:
        if isinstance(event, Lost):
            self._console.print(
                f"lost {event.task_id} (attempt {event.attempt}): {event.error}", style="yellow", markup=False, highlight=False
            )
        elif isinstance(event, (StoreFailed, ClusterLost)):
            self._console.print(event.error, style="red", markup=False, highlight=False)

    def row(self, task: TaskSpec, outcome: Outcome) -> None:
        self._done += 1
        width = len(str(self._planned))
        line = f"[{self._done:{width}d}/{self._planned}] {outcome.status.value:13s} {task.task_id}  {summary(outcome)}"
        self._console.print(Text(line.rstrip(), style=STYLES.get(outcome.status, "red")), soft_wrap=True, highlight=False)

    def tick(self, sweep: Sweep) -> None:
        """Nothing: plain output has no state to redraw."""


class LiveProgress(PlainProgress):
    """The same lines, above a table of what runs now. A context manager."""

    def __init__(self, console: Console, planned: int, done: int = 0) -> None:
        super().__init__(console, planned, done)
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._drawn_s = 0.0
        self._started_s = time.monotonic()

    def __enter__(self) -> LiveProgress:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def tick(self, sweep: Sweep) -> None:
        now_s = time.monotonic()
        if now_s - self._drawn_s >= REFRESH_S:
            self._drawn_s = now_s
            self._live.update(self._draw(sweep, now_s), refresh=True)

    def _draw(self, sweep: Sweep, now_s: float) -> Group:
        table = Table(box=None, pad_edge=False)
        for heading in ("task", "state", "phase", "seconds", "node"):
            table.add_column(heading, justify="right" if heading == "seconds" else "left", overflow="ellipsis", no_wrap=True)
        for line in sweep.active():
            running = line.state is State.RUNNING
            table.add_row(
                Text(line.task_id),
                line.state.value if line.attempt == 1 else f"{line.state.value} (attempt {line.attempt})",
                line.phase.value if line.phase else "",
                f"{now_s - line.started_s:.0f}" if running else "",
                line.node,
            )
        return Group(
            table, ProgressBar(total=self._planned, completed=self._done, width=60), Text(self._counts(sweep.status_counts(), now_s))
        )

    def _counts(self, counts: Mapping[Status, int], now_s: float) -> str:
        ended = ", ".join(f"{number} {status.value}" for status, number in sorted(counts.items()))
        return f"{self._done}/{self._planned} done in {now_s - self._started_s:.0f} s: {ended or 'nothing yet'}"


def summary(outcome: Outcome) -> str:
    """One line about an outcome: the speedup with its interval, or the error."""
    measured = outcome.measurement
    if outcome.status is not Status.PASS or measured.speedup is None:
        return " ".join((outcome.error or "").split())[:160]
    low, high = measured.speedup_low, measured.speedup_high
    interval = f" [{low:.3f}, {high:.3f}]" if low is not None and high is not None else ""
    times = f"{measured.eager_ms:.3f} -> {measured.compiled_ms:.3f} ms" if measured.eager_ms and measured.compiled_ms else ""
    compiled = f", compiled in {measured.compile_s:.0f} s" if measured.compile_s else ""
    return f"{measured.speedup:.3f}x{interval}  {times}{compiled}"

"""The model of the report: what a run answers, as dataclasses. Built by ``build``; printed by ``text``, ``data``
(JSON), ``markdown`` and ``html``.

Every mean is over one dtype, mode and backend; ``Configuration`` holds one (mode, backend). Counts of passed against planned tasks stand
beside every number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from orchestrator.errors import ExitCode
from orchestrator.report.rows import Row
from orchestrator.statistics.intervals import Interval


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its two intervals. ``value`` is None when it is not defined; ``why_not`` then says why."""

    value: float | None = None
    measurement: Interval | None = None  # these models, measured again
    generalisation: Interval | None = None  # other models of the same kind
    why_not: str | None = None


@dataclass(frozen=True, slots=True)
class Rate:
    """How many of the planned tasks passed, and where the others are. The interval is Wilson's, of passed against planned.

    A task passed that ran, was timed and computed what eager computes. ``unjudged`` ones were timed without a verdict on accuracy: they
    enter the means and did not pass. By upstream's definition a model passes whose results agree, or were not looked at, whatever became of
    its timing, and a model that does not get through eager mode is not counted at all.
    """

    passed: int
    planned: int
    failed: int
    skipped: int
    infra: int
    missing: int
    interval: Interval | None
    unjudged: int = 0
    upstream_passed: int = 0
    upstream_counted: int = 0

    @property
    def value(self) -> float | None:
        """Share of the planned tasks that passed."""
        return self.passed / self.planned if self.planned else None

    @property
    def timed(self) -> int:
        """How many tasks have a speedup that enters the means."""
        return self.passed + self.unjudged


@dataclass(frozen=True, slots=True)
class Spread:
    """Quantiles of the speedups."""

    p10: float
    median: float
    p90: float


@dataclass(frozen=True, slots=True)
class Variant:
    """The score by another definition; ``weighted`` is None where a dtype lacks. ``tasks`` of ``planned`` ones enter each dtype's mean."""

    name: str
    meaning: str
    weighted: float | None
    by_dtype: Mapping[str, float | None]
    tasks: Mapping[str, int]
    planned: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class DtypeAnswer:
    """One dtype over all suites; ``weight`` is its share of the score."""

    dtype: str
    weight: float
    geomean: Estimate
    rate: Rate
    spread: Spread | None


@dataclass(frozen=True, slots=True)
class SuiteAnswer:
    """One suite in one dtype. Compile seconds and memory ratio are over the tasks that passed and know them."""

    suite: str
    dtype: str
    geomean: Estimate
    rate: Rate
    spread: Spread | None
    median_compile_s: float | None
    memory_ratio: float | None  # geometric mean of eager peak / compiled peak
    graph_breaks: int | None


@dataclass(frozen=True, slots=True)
class Configuration:
    """Everything about one mode and backend; in a run that mixes devices on purpose, about one of them."""

    mode: str
    backend: str
    weights: Mapping[str, float]
    score: Estimate
    rate: Rate
    dtypes: tuple[DtypeAnswer, ...]
    suites: tuple[SuiteAnswer, ...]
    variants: tuple[Variant, ...]
    device: str | None = None  # None: whatever the run had

    @property
    def title(self) -> tuple[str, ...]:
        """What sets it apart."""
        return (self.mode, self.backend, *([self.device] if self.device else []))

    @property
    def unjudged_words(self) -> str:
        """What a reader of the means must know when accuracy was not looked at everywhere; empty when it was."""
        unjudged, timed = self.rate.unjudged, self.rate.timed
        if not unjudged:
            return ""
        if unjudged == timed:
            return f"nothing was judged: accuracy was checked in none of the {timed} tasks that were timed, so none counts as passed"
        return (
            f"accuracy was not checked in {unjudged} of the {timed} tasks that were timed: they are in the means and do not count as passed"
        )


@dataclass(frozen=True, slots=True)
class FailureGroup:
    """Tasks that did not pass for what looks like one reason."""

    signature: str
    status: str
    phase: str
    failure_class: str
    tasks: tuple[str, ...]
    example: str  # task_id the error and the log tail are from
    error: str
    log_tail: str
    log: str


@dataclass(frozen=True, slots=True)
class BreakReason:
    """A reason for graph breaks and the tasks that gave it."""

    reason: str
    tasks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Fact:
    """One property of the environment, with the number of rows per value. More than one value is a mixed run."""

    name: str
    values: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class ProcessSpread:
    """How much ``ln(speedup)`` varied between fresh processes in the tasks of one class that were measured in several.

    ``sd`` is the standard deviation of the processes' own estimates, pooled over ``tasks`` with ``freedom`` degrees of freedom.
    """

    kind: str
    sd: float
    tasks: int
    freedom: int

    @property
    def words(self) -> str:
        """One line for a report."""
        tasks = "1 task" if self.tasks == 1 else f"{self.tasks} tasks"
        return f"between processes ln(speedup) varied by {100 * self.sd:.2f} % ({self.kind}: {tasks}, {self.freedom} degrees of freedom)"


@dataclass(frozen=True, slots=True)
class ProcessError:
    """What was added to the error of ``tasks`` of one class that ran in one process each: the sd of ``ln(speedup)`` between processes."""

    kind: str
    sd: float
    source: str  # where it is from, in words
    tasks: int


@dataclass(frozen=True, slots=True)
class Answers:
    """A whole report."""

    run_id: str
    rate: Rate
    configurations: tuple[Configuration, ...]
    rows: tuple[Row, ...]
    missing: tuple[str, ...]
    failures: tuple[FailureGroup, ...]
    breaks: tuple[BreakReason, ...]
    quality: Mapping[str, int]
    environment: tuple[Fact, ...]
    remarks: tuple[str, ...]
    statuses: Mapping[str, int]
    started: float | None = None
    ended: float | None = None
    manifest: str = ""
    manifest_digest: str = ""
    took_s: float | None = None  # from the start of the first task of this run to the end of its last
    process_errors: tuple[ProcessError, ...] = ()
    process_spread: tuple[ProcessSpread, ...] = ()
    facts: Mapping[str, str] = field(default_factory=dict)

    @property
    def process_lines(self) -> tuple[str, ...]:
        """What is known of fresh processes, and what the intervals take it to be."""
        alike: dict[tuple[float, str], list[str]] = {}
        for error in self.process_errors:
            if error.sd:
                alike.setdefault((error.sd, error.source), []).append(f"{error.tasks} {error.kind}")
        added = (
            f"intervals include {100 * sd:.2f} % between processes ({source}; tasks: {', '.join(kinds)})"
            for (sd, source), kinds in alike.items()
        )
        return (*(spread.words for spread in self.process_spread), *added)

    @property
    def processes_covered(self) -> bool:
        """Whether the measurement intervals say what fresh processes would change."""
        return all(error.sd for error in self.process_errors)

    @property
    def exit_code(self) -> ExitCode:
        """Incomplete or infrastructure failures: 4; anything else that neither passed nor was skipped, or nothing passed: 3."""
        if self.rate.missing or self.rate.infra or not self.rate.planned:
            return ExitCode.INFRASTRUCTURE
        if not self.rate.timed or self.rate.failed:
            return ExitCode.SOME_FAILED
        return ExitCode.PASSED


@dataclass(frozen=True, slots=True)
class Published:
    """The figures of the PyTorch 2.0 announcement (2022-12-02): training, NVIDIA A100, 163 models. A reference, not a target."""

    source: str = "PyTorch 2.0 announcement, December 2022, NVIDIA A100, training, 163 models"
    weighted: float = 1.43
    float32: float = 1.21
    amp: float = 1.51
    pass_rate: float = 0.93


PUBLISHED = Published()

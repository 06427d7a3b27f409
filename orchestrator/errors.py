"""Every error a user can cause, and the exit status of each. Nothing else decides an exit status.

SweepError
├── UsageError            2   arguments that make no sense
│   └── ManifestError     2   a manifest, with every problem in it
├── InfrastructureError   4   the cluster, the store or the machine
│   ├── ClusterLostError  4   the head of the cluster is gone
│   ├── HeadError         4   the Jobs service of a cluster does not do what it was asked
│   ├── PreflightError    4   the plan cannot run here
│   ├── StoreError        4   results cannot be written or read
│   └── RunLockedError    4   another driver holds the run
└── RegressionError       5   ``compare --gate`` found one
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum


class ExitCode(IntEnum):
    """What the process exits with. 1 is Python's own, for an uncaught bug, and nothing else."""

    PASSED = 0
    BUG = 1
    USAGE = 2
    SOME_FAILED = 3
    INFRASTRUCTURE = 4
    REGRESSION = 5
    INTERRUPTED = 130


class SweepError(Exception):
    """A failure that a user can act on; the message says what, where and what to do."""

    exit_code = ExitCode.INFRASTRUCTURE


class UsageError(SweepError):
    """Arguments that make no sense together, or name something that is not there."""

    exit_code = ExitCode.USAGE


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One thing wrong in a YAML file. Lines and columns count from 1."""

    file: str
    line: int
    column: int
    path: str  # for example "suites.timm[3].batch_size"
    message: str

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}:{self.column}: "
        return f"{where}{self.path}: {self.message}" if self.path else f"{where}{self.message}"


class ManifestError(UsageError):
    """A manifest with at least one problem; ``problems`` holds all of them, sorted by place."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(sorted(set(problems)))
        super().__init__("\n".join(str(problem) for problem in self.problems))


class InfrastructureError(SweepError):
    """The cluster, the store or the machine does not do what the run needs."""


class ClusterLostError(InfrastructureError):
    """The head of the cluster does not answer any more; the run can be resumed on another."""


class HeadError(InfrastructureError):
    """The Jobs service on a cluster's head does not answer, or says no; ``code`` is then the HTTP status."""

    def __init__(self, message: str, code: int | None = None) -> None:
        super().__init__(message)
        self.code = code


class PreflightError(InfrastructureError):
    """The plan cannot run on this cluster; the message is a table of what lacks."""


class StoreError(InfrastructureError):
    """Results cannot be written or read."""


class RunLockedError(InfrastructureError):
    """Another live driver holds the run; the message names it."""


class RegressionError(SweepError):
    """A gated comparison found a regression."""

    exit_code = ExitCode.REGRESSION

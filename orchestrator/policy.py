"""What happens after a failure: which classes are tried again, how often, where, and when a node is not trusted any more.

Pure data and functions. ``RULES`` has one line per failure class; docs/failures.md is generated from it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tasks.spec import FailureClass, Outcome, Quality, Status

QUARANTINE_AFTER_TASKS = 2
"""A node or GPU that fails this many different tasks for infrastructure reasons gets no more of them in this run."""


UNFIT = frozenset({Quality.NOISY, Quality.CONTAMINATED, Quality.DRIFT, Quality.WARMUP_UNCONVERGED})
"""Flags of a measurement that the machine may have caused, and another try may be without. Width and recompiles are the model's."""

REMEASURE_AFTER_S = 10.0
"""What disturbed a measurement may be over by then."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What to do about one failure class."""

    retries: int = 0  # attempts beyond the first; ``INFRASTRUCTURE`` leaves the number to the manifest
    elsewhere: bool = False  # prefer another node
    alone: bool = False  # only if the failed attempt shared its device, and then with the device to itself
    suspect: bool = False  # counts towards the quarantine of the node, or of the GPU where the failure names one
    backoff_s: float = 0.0  # before the first retry; doubles with each one
    why: str = ""


INFRASTRUCTURE = -1
"""``Rule.retries``: as often as the manifest's ``retries.infrastructure`` says."""

RULES: dict[FailureClass, Rule] = {
    FailureClass.MODEL: Rule(why="the model fails in eager mode; it would again"),
    FailureClass.COMPILER: Rule(why="the compiler's result is what we measure"),
    FailureClass.ACCURACY: Rule(why="a verdict, not an accident"),
    FailureClass.DEVICE_OOM: Rule(
        retries=1, alone=True, why="a neighbour may have held the memory; before that once beside fewer, where it asked for little"
    ),
    FailureClass.HOST_OOM: Rule(retries=1, elsewhere=True, backoff_s=5.0, why="the node's other processes may have held the memory"),
    FailureClass.DISK_FULL: Rule(INFRASTRUCTURE, elsewhere=True, backoff_s=10.0, why="a neighbour or somebody else filled the node's disk"),
    FailureClass.DEADLINE: Rule(why="the deadline is the manifest's word; raise it there"),
    FailureClass.CRASH: Rule(why="a crash of the model or the compiler is a result"),
    FailureClass.UNSUPPORTED: Rule(why="every node has the same software"),
    FailureClass.EXCLUDED: Rule(why="the manifest says so"),
    FailureClass.DEVICE: Rule(
        INFRASTRUCTURE, elsewhere=True, suspect=True, backoff_s=2.0, why="the device was dirty, lost or not the one assigned"
    ),
    FailureClass.WORKER_LOST: Rule(INFRASTRUCTURE, suspect=True, backoff_s=1.0, why="the process that supervised the task died"),
    FailureClass.NODE_LOST: Rule(INFRASTRUCTURE, elsewhere=True, backoff_s=1.0, why="the node left or fell silent"),
    FailureClass.UNSCHEDULED: Rule(INFRASTRUCTURE, backoff_s=5.0, why="the cluster did not start the task in time"),
    FailureClass.INTERNAL: Rule(INFRASTRUCTURE, backoff_s=1.0, why="a mistake in this project's own code, not in the node's; report it"),
}


@dataclass(frozen=True, slots=True)
class Retry:
    """The next attempt: not before ``delay_s`` seconds from now, not on ``avoid_node`` if there is another, ``alone`` on its device.

    ``roomy``: with several times its share of the device, which need not become empty for that.
    """

    delay_s: float
    avoid_node: str | None = None
    alone: bool = False
    roomy: bool = False


@dataclass(frozen=True, slots=True)
class Policy:
    """The rules with the manifest's numbers in them."""

    infrastructure_retries: int = 2
    quality_retries: int = 0
    rules: dict[FailureClass, Rule] = field(default_factory=lambda: dict(RULES))

    def retry(self, outcome: Outcome, shared: bool, past: tuple[FailureClass, ...], *, small: bool = False) -> Retry | None:
        """The next attempt after ``outcome``, or None if it is final.

        Args:
            outcome: how the attempt ended.
            shared: whether it had neighbours on its device.
            past: the failure classes of the task's attempts so far, this one included.
            small: whether it would still have neighbours with several times its share.
        """
        if outcome.failure_class is None:
            return None
        rule = self.rules[outcome.failure_class]
        allowed = self.infrastructure_retries if rule.retries == INFRASTRUCTURE else rule.retries
        used = self._used(rule, past) - 1
        roomy = rule.alone and small and used == 0
        allowed += int(rule.alone and small)
        if used >= allowed or (rule.alone and not shared):
            return None
        return Retry(
            delay_s=rule.backoff_s * 2**used,
            avoid_node=outcome.node if rule.elsewhere and outcome.node else None,
            alone=rule.alone and not roomy,
            roomy=roomy,
        )

    def remeasure(self, outcome: Outcome, before: int) -> Retry | None:
        """Another attempt at a task that passed on a machine that was not fit to measure, after ``before`` such; None if it is final.

        Which attempt counts is settled beforehand, the last one, and not by what it says: to choose among numbers is to bend them.
        """
        if outcome.status is not Status.PASS or outcome.measurement.quality not in UNFIT or before >= self.quality_retries:
            return None
        return Retry(REMEASURE_AFTER_S, avoid_node=outcome.node or None)

    def _used(self, rule: Rule, past: tuple[FailureClass, ...]) -> int:
        # Infrastructure classes share one budget: a task that loses a worker, then a node, then a device is not infinitely lucky.
        if rule.retries == INFRASTRUCTURE:
            return sum(self.rules[failure].retries == INFRASTRUCTURE for failure in past)
        return sum(self.rules[failure] is rule for failure in past)

    def is_verdict(self, outcome: Outcome) -> bool:
        """Whether the outcome says something that no other attempt could change."""
        return outcome.failure_class is None or self.rules[outcome.failure_class].retries == 0

    def suspects(self, failure: FailureClass | None) -> bool:
        """Whether a failure of this class counts against its node."""
        return failure is not None and self.rules[failure].suspect

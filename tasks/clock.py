"""Time that counts against a worker: by phase, and not while it is paused or waits to own the device. Pure; standard library only.

Times are seconds on a monotonic clock, given by the caller.
"""

from __future__ import annotations

from tasks.channel import Use
from tasks.spec import DeadlineSpec, Phase

PAUSED = "paused"
WAITING = "waiting"


class PhaseClock:
    """Runs from its creation, in ``Phase.START``. ``halt`` and ``go_on`` take a reason; it runs while there is none."""

    def __init__(self, deadlines: DeadlineSpec, now: float) -> None:
        self.phase = Phase.START
        self._deadlines = deadlines
        self._phase_s: dict[Phase, float] = {}
        self._earlier_s: dict[Phase, float] = {}  # of the task's processes before this one
        self._halted_s: dict[str, float] = {}
        self._all_halted_s = 0.0
        self._owned_s = dict.fromkeys(Use, 0.0)
        self._owned_for: Use | None = None
        self._reasons: set[str] = set()
        self._last = now

    def enter(self, phase: Phase, now: float) -> None:
        """``phase`` begins; entered again, it goes on with the time that it has used."""
        self._advance(now)
        self.phase = phase

    def restart(self, now: float) -> None:
        """The task's next process begins, and nothing halts it: the deadlines of phases hold anew, the task's own goes on."""
        self._advance(now)
        for phase, seconds in self._phase_s.items():
            self._earlier_s[phase] = self._earlier_s.get(phase, 0.0) + seconds
        self._phase_s.clear()
        self._reasons.clear()
        self._owned_for = None
        self.phase = Phase.START

    def halt(self, reason: str, now: float) -> None:
        self._advance(now)
        self._reasons.add(reason)

    def go_on(self, reason: str, now: float) -> None:
        self._advance(now)
        self._reasons.discard(reason)

    def own(self, now: float, use: Use = Use.TIME) -> None:
        """The worker has its device for itself, until ``disown``, or for another ``use`` from then on."""
        self._advance(now)
        self._owned_for = use

    def disown(self, now: float) -> None:
        self._advance(now)
        self._owned_for = None

    def remaining_s(self, now: float) -> float | None:
        """Seconds until something expires; None while the clock is halted."""
        self._advance(now)
        return None if self._reasons else min(limit_s - used_s for _, limit_s, used_s in self._limits())

    def expired(self, now: float) -> str | None:
        """What has run out of time, in words; None if nothing has."""
        self._advance(now)
        for what, limit_s, used_s in self._limits():
            if used_s >= limit_s:
                return f"{what} took longer than its {limit_s:g} s"
        return None

    def phase_s(self, now: float) -> dict[str, float]:
        """Seconds that counted, by phase, of all the task's processes together."""
        self._advance(now)
        phases = [phase for phase in Phase if phase in self._phase_s or phase in self._earlier_s]
        return {phase.value: round(self._phase_s.get(phase, 0.0) + self._earlier_s.get(phase, 0.0), 6) for phase in phases}

    def halted_s(self, reason: str, now: float) -> float:
        """Seconds halted for ``reason``."""
        self._advance(now)
        return round(self._halted_s.get(reason, 0.0), 6)

    def all_halted_s(self, now: float) -> float:
        """Seconds halted for whatever reason; where two held at once they count once."""
        self._advance(now)
        return round(self._all_halted_s, 6)

    def owned_s(self, now: float, use: Use | None = None) -> float:
        """Seconds that counted for which the worker had its device for itself; those of one ``use``, or all of them."""
        self._advance(now)
        return round(sum(self._owned_s.values()) if use is None else self._owned_s[use], 6)

    def _limits(self) -> tuple[tuple[str, float, float], ...]:
        return (
            (f"phase {self.phase.value}", self._deadlines.of(self.phase), self._phase_s.get(self.phase, 0.0)),
            ("the task", self._deadlines.task_s, sum(self._phase_s.values()) + sum(self._earlier_s.values())),
        )

    def _advance(self, now: float) -> None:
        passed = now - self._last
        self._last = now
        for reason in self._reasons:
            self._halted_s[reason] = self._halted_s.get(reason, 0.0) + passed
        if self._reasons:
            self._all_halted_s += passed
            return
        self._phase_s[self.phase] = self._phase_s.get(self.phase, 0.0) + passed
        if self._owned_for is not None:
            self._owned_s[self._owned_for] += passed

"""Simulated machines for the tests of measurement: the real engine runs on them, only the clock is made up.

An iteration takes ``base * exp(noise)``; the noise is a slow AR(1) process, white noise, one-sided spikes, a drift and, in some regimes,
a step or two modes. All of it depends on when an iteration runs and not on which arm it belongs to, so the truth is the ratio of bases.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np

from tasks.stepper import Border, Side

LENGTH = 2000  # iterations of noise; longer runs start over


@dataclass(frozen=True)
class Regime:
    slow: float  # standard deviation of the AR(1) part
    white: float
    spikes: float  # probability of a spike of 10 to 60 %
    drift: float = 0.0  # per 60 iterations
    jump: float = 0.0  # a step half way through the first 150 iterations
    modes: float = 0.0  # distance between two modes that change every few iterations
    correlation: float = 0.98


REGIMES = {
    "quiet": Regime(0.005, 0.003, 0.01),
    "base": Regime(0.01, 0.01, 0.02),
    "noisy": Regime(0.02, 0.03, 0.05),
    "spiky": Regime(0.01, 0.01, 0.10),
    "very spiky": Regime(0.01, 0.01, 0.20),
    "drift": Regime(0.01, 0.01, 0.02, drift=0.05),
    "jump": Regime(0.01, 0.01, 0.02, jump=0.10),
    "two modes": Regime(0.01, 0.005, 0.02, modes=0.04),
}


def noise(regime: Regime, chance: np.random.Generator, length: int = LENGTH) -> np.ndarray:
    found = chance.normal(0.0, regime.white, length)
    found += _slow(regime, chance, length)
    spikes = chance.random(length) < regime.spikes
    found[spikes] += np.log1p(chance.uniform(0.1, 0.6, int(spikes.sum())))
    found += regime.drift * np.arange(length) / 60.0
    found[int(chance.integers(20, 150)) :] += regime.jump
    changes = np.cumsum(chance.random(length) < 0.1)
    return found + regime.modes * (changes % 2)


def _slow(regime: Regime, chance: np.random.Generator, length: int) -> np.ndarray:
    kicks = chance.normal(0.0, regime.slow * np.sqrt(1 - regime.correlation**2), length)
    kicks[0] = chance.normal(0.0, regime.slow)
    return np.fromiter(accumulate(kicks, lambda before, kick: regime.correlation * before + kick), float, length)


@dataclass
class Clockwork:
    """A machine whose clock moves only when a side is stepped."""

    factors: np.ndarray
    time_ns: int = 0
    steps: int = 0
    slept_s: list[float] = field(default_factory=list)
    clocks: object = None  # an iterator of readings
    faults: object = None  # an iterator of faults

    def now_ns(self) -> int:
        return self.time_ns

    def synchronize(self) -> None:
        pass

    def sleep(self, seconds: float) -> None:
        self.slept_s.append(seconds)
        self.time_ns += int(seconds * 1e9)

    def clock_mhz(self) -> float | None:
        return next(self.clocks) if self.clocks else None

    def begin(self) -> None:
        pass

    def mark(self) -> None:
        pass

    def border(self) -> Border:
        return Border(sm_clock_mhz=float(self.steps))

    def fault(self) -> str | None:
        return next(self.faults) if self.faults else None

    def contaminated(self) -> str | None:
        return None

    def event_ms(self, step) -> float | None:
        return None

    def device_ms(self, step) -> float | None:
        return None

    def advance(self, base_ns: float) -> None:
        self.time_ns += int(base_ns * self.factors[self.steps % len(self.factors)])
        self.steps += 1


def simulate(regime: Regime, chance: np.random.Generator, speedup: float = 1.0, base_ns: float = 1e7):
    """A machine in ``regime`` and the two sides, eager being ``speedup`` times as slow as compiled."""
    machine = Clockwork(np.exp(noise(regime, chance)))
    sides = (Side(lambda: machine.advance(base_ns * speedup)), Side(lambda: machine.advance(base_ns)))
    return machine, sides

"""A short storm; ``make chaos`` runs the long one."""

from __future__ import annotations

import random

import pytest

from tests.chaos.storm import storm


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_nothing_is_lost_in_a_storm(capsys):
    tally = storm(runs=3, faults=24, seed=random.SystemRandom().randrange(10**6))
    with capsys.disabled():
        print(f"\n{tally.table()}")
    assert tally.sound()

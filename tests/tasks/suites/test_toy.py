from __future__ import annotations

import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tasks.channel import Channel
from tasks.estimator import summarise
from tasks.spec import Accuracy, FailureClass, Phase, Quality, Status, decode, encode
from tasks.suites import toy as suite
from tasks.suites.toy import MODELS, Act, finishes_at_once, planted_samples, run
from tests.tasks.processes_fixtures import toy

AT_ONCE = [name for name in MODELS if finishes_at_once(name)]


class Phases(Channel):
    """A channel that remembers the phases."""

    def __init__(self):
        super().__init__(None)
        self.seen = []

    def phase(self, phase):
        self.seen.append(phase)


def play(task, channel=None):
    return run(task, channel or Channel(None), Path(os.devnull))


@pytest.mark.parametrize("name", AT_ONCE)
def test_a_toy_that_finishes_at_once_goes_through_the_phases_up_to_its_end(name):
    channel = Phases()
    result = play(toy(name), channel)
    phases = list(Phase)[1:]
    assert channel.seen == phases[: phases.index(result.phase) + 1]
    assert (result.failure_class is None) == (result.status is Status.PASS)
    assert decode(type(result), encode(result)) == result


def test_the_planted_speedup_is_found_with_an_interval_around_it():
    result = play(toy("pass", eager_ms=3.0, compiled_ms=2.0, noise=0.01, pairs=30))
    found = result.measurement
    assert found.speedup_low < 1.5 < found.speedup_high
    assert found.speedup == pytest.approx(1.5, rel=0.02)
    assert found.eager_ms == pytest.approx(3.0, rel=0.02)
    assert found.compiled_ms == pytest.approx(2.0, rel=0.02)
    assert (found.pairs, found.accuracy, found.quality) == (30, Accuracy.PASS, Quality.OK)
    assert summarise(result.samples).speedup == found.speedup


def test_a_noisy_toy_has_a_wide_interval():
    found = play(toy("noisy")).measurement
    assert found.quality == Quality.WIDE
    assert math.log(found.speedup_high / found.speedup_low) > 0.05


def test_samples_depend_on_seed_and_task_only():
    task = toy("pass")
    assert play(task).samples == play(task).samples
    assert play(task).samples != play(replace(task, seed=task.seed + 1)).samples
    assert play(task).samples != play(replace(task, task_id="toy/other")).samples


def test_samples_alternate_in_random_order_by_pair():
    samples = planted_samples(Act(toy("pass"), MODELS["pass"].options, Channel(None), Path(os.devnull)))
    assert len({len(column) for column in encode(samples).values()}) == 1
    first = {(pair, arm) for pair, arm, order in zip(samples.pair, samples.arm, samples.order, strict=True) if order == 0}
    assert len(first) == 12
    assert {arm for _, arm in first} == {"eager", "compiled"}


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("pass", {"compiled": 1.0}, "unknown option 'compiled'; this toy has compiled_ms, eager_ms, noise, pairs"),
        ("unsupported", {"eager_ms": 1.0}, "this toy has none"),
        ("pass", {"eager_ms": "fast"}, "option 'eager_ms' must be a number, not 'fast'"),
        ("pass", {"pairs": True}, "option 'pairs' must be a number"),
        ("crash", {"phase": 3}, "option 'phase' must be text"),
        ("crash", {"phase": "lunch"}, "option 'phase' must be one of start, build"),
        ("nothing", {}, "there is no toy 'nothing'"),
    ],
)
def test_what_a_toy_does_not_know_is_a_failed_build(name, options, text):
    result = play(toy(name, **options))
    assert (result.status, result.phase, result.failure_class) == (Status.FAIL_EAGER, Phase.BUILD, FailureClass.MODEL)
    assert text in result.error


def test_a_label_after_a_dot_makes_many_of_a_kind():
    assert play(toy("oom.17")).status is Status.OOM
    assert finishes_at_once("pass.1")
    assert not finishes_at_once("hang.1")
    assert not finishes_at_once("pas")


def test_every_kind_says_what_it_does():
    assert all(entry.description for entry in MODELS.values())
    assert {"pass", "slow_pass", "hang", "crash", "flood"} <= set(MODELS)


def test_the_table_needs_only_the_standard_library():
    script = "import sys, tasks.suites.toy; print(sorted({'numpy', 'torch', 'scipy'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=Path(suite.__file__).parents[2])
    assert found.stdout == "[]\n"

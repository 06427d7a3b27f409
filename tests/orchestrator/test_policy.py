"""The policy as a table: every failure class has a rule, a test that produces it for real, and its line in docs/failures.md."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from orchestrator.failure_table import PRODUCED_BY, page
from orchestrator.policy import INFRASTRUCTURE, RULES, Policy
from tasks.spec import FailureClass, Measurement, Outcome, Phase, Status

ROOT = Path(__file__).parent.parent.parent


def failed(failure, node="a", neighbours=None):
    return Outcome("t", 1, Status.INFRA_ERROR, Phase.TIME, failure, node=node, measurement=Measurement(neighbours=neighbours))


def test_every_class_has_a_rule_and_a_reason():
    assert set(RULES) == set(FailureClass)
    assert all(rule.why for rule in RULES.values())


@pytest.mark.parametrize("failure", FailureClass)
def test_every_class_is_produced_by_a_test_that_exists(failure):
    path, name = PRODUCED_BY[failure].split("::")
    assert re.search(rf"^ *def {re.escape(name)}\(", (ROOT / path).read_text(), re.MULTILINE), PRODUCED_BY[failure]


def test_the_page_is_fresh():
    assert (ROOT / "docs" / "failures.md").read_text() == page(), "run `make schema`"


def test_a_verdict_on_the_model_is_never_tried_again():
    for failure in (FailureClass.MODEL, FailureClass.COMPILER, FailureClass.ACCURACY, FailureClass.DEADLINE, FailureClass.CRASH):
        assert Policy().retry(failed(failure), shared=True, past=(failure,)) is None


def test_back_off_doubles_and_ends_with_the_manifests_number():
    policy = Policy(infrastructure_retries=3)
    delays = []
    for used in range(1, 5):
        retry = policy.retry(failed(FailureClass.DEVICE), shared=False, past=(FailureClass.DEVICE,) * used)
        delays.append(retry and retry.delay_s)
    assert delays == [2.0, 4.0, 8.0, None]


def test_only_classes_with_the_manifests_number_share_a_budget():
    policy = Policy(infrastructure_retries=1)
    past = (FailureClass.HOST_OOM, FailureClass.NODE_LOST)
    assert policy.retry(failed(FailureClass.NODE_LOST), shared=False, past=past) is not None
    assert [failure for failure, rule in RULES.items() if rule.retries == INFRASTRUCTURE] == [
        FailureClass.DISK_FULL,
        FailureClass.DEVICE,
        FailureClass.WORKER_LOST,
        FailureClass.NODE_LOST,
        FailureClass.UNSCHEDULED,
        FailureClass.INTERNAL,
    ]


def test_elsewhere_names_the_node_to_avoid():
    retry = Policy().retry(failed(FailureClass.NODE_LOST, node="n7"), shared=False, past=(FailureClass.NODE_LOST,))
    assert retry is not None
    assert retry.avoid_node == "n7"

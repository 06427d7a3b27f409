"""Fixtures that tests of several folders share."""

from __future__ import annotations

import gc
import os

import pytest

from tasks.forkclient import SWITCH

pytest_plugins = ["tests.tasks.processes_fixtures"]


def pytest_configure():
    """No test leaves a prepared parent on the machine, or finds one; those that are about them say so (``prepared_node``)."""
    os.environ[SWITCH] = "0"


@pytest.fixture(autouse=True, scope="module")
def what_is_there_already_is_no_garbage():
    """A process that has run many tests has a million objects, and code under test that collects garbage would look at all of them."""
    gc.collect()
    gc.freeze()

"""Fixtures that tests of several folders share."""

from __future__ import annotations

import os

from tasks.forkclient import SWITCH

pytest_plugins = ["tests.tasks.processes_fixtures"]


def pytest_configure():
    """No test leaves a prepared parent on the machine, or finds one; those that are about them say so (``prepared_node``)."""
    os.environ[SWITCH] = "0"

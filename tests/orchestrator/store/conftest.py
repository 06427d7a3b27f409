"""An empty store."""

from __future__ import annotations

import pytest

from orchestrator.store import Store


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path / "results"))

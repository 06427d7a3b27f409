from __future__ import annotations

import pytest

from orchestrator.manifest import load_manifest

TRIAL = "schema_version: 1\nname: trial\nmatrix: {dtype: [float32]}\nsuites: {toy: [pass]}\n"


@pytest.fixture
def manifest(tmp_path):
    """Writes and loads a manifest of one toy, with whatever more it is given."""

    def write(extra=""):
        path = tmp_path / "trial.yaml"
        path.write_text(TRIAL + extra)
        return load_manifest(path)

    return write

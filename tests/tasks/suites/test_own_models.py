"""The documented ways to bring a model: a factory, and a suite through an entry point. Both are the examples that are shipped."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

from tasks.spec import ModelSpec
from tasks.suites.loader import ENTRY_POINTS, load

ROOT = Path(__file__).parents[3]
EXAMPLES = ROOT / "examples"
CPU = torch.device("cpu")
HEAD = "schema_version: 1\nname: m\n"


@pytest.fixture
def own_model(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES / "own_model")
    monkeypatch.delitem(sys.modules, "own_model", raising=False)


@pytest.fixture
def own_suite(tmp_path, monkeypatch):
    """The example package as an installation leaves it: its module on the path and its entry points beside it."""
    project = tomllib.loads((EXAMPLES / "own_suite/pyproject.toml").read_text())["project"]
    information = tmp_path / "recurrent_suite-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    points = project["entry-points"][ENTRY_POINTS]
    (information / "entry_points.txt").write_text(f"[{ENTRY_POINTS}]\n" + "".join(f"{name} = {to}\n" for name, to in points.items()))
    monkeypatch.syspath_prepend(EXAMPLES / "own_suite")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(EXAMPLES / "own_suite")]))
    monkeypatch.delitem(sys.modules, "recurrent_suite", raising=False)


def sweep(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "orchestrator", *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, timeout=120
    )


def stepped(benchmark):
    loss = benchmark.loss(benchmark.module(*benchmark.args, **benchmark.kwargs))
    loss.backward()
    return loss


def test_the_factory_builds_what_its_manifest_asks_for(own_model):
    model = ModelSpec("tables", "table_wide", batch_size=8, factory="own_model:build", options={"width": 16, "depth": 3})
    benchmark = load(model, "training", CPU, 1)

    assert (benchmark.batch_size, benchmark.source, benchmark.args[0].shape) == (8, "factory", (8, 32))
    assert len(benchmark.module) == 3 + 2
    assert benchmark.module[0].out_features == 16
    assert torch.isfinite(stepped(benchmark))


def test_an_option_that_the_factory_does_not_know_is_an_error(own_model):
    with pytest.raises(ValueError, match="did you mean 'width'"):
        load(ModelSpec("tables", "x", factory="own_model:build", options={"widht": 16}), "training", CPU, 1)


def test_the_factorys_manifest_is_sound_without_the_factory():
    done = sweep("validate", EXAMPLES / "own_model/manifest.yaml")

    assert done.returncode == 0, done.stderr
    assert "2 models" in done.stdout


def test_a_suite_of_ones_own_needs_a_factory_for_each_model(tmp_path):
    (tmp_path / "m.yaml").write_text(HEAD + "suites: {tables: [{name: a, factory: 'm:f'}, b]}\n")
    (tmp_path / "n.yaml").write_text(HEAD + "suites: {'ta/bles': [{name: a, factory: 'm:f'}]}\n")

    for name in ("m.yaml", "n.yaml"):
        done = sweep("validate", tmp_path / name)
        assert done.returncode == 2
        assert "unknown suite" in done.stderr


def test_the_suite_of_an_installed_package_is_found_and_builds(own_suite):
    benchmark = load(ModelSpec("recurrent", "gru", batch_size=2, options={"steps": 3, "layers": 1}), "training", CPU, 1)

    assert type(benchmark.module) is torch.nn.GRU
    assert benchmark.args[0].shape == (2, 3, 128)
    stepped(benchmark)
    with pytest.raises(ValueError, match="has no model 'grus'"):
        load(ModelSpec("recurrent", "grus"), "training", CPU, 1)


def test_its_manifest_is_sound_where_it_is_installed_and_not_elsewhere(own_suite, monkeypatch):
    manifest = EXAMPLES / "own_suite/manifest.yaml"
    there = sweep("validate", manifest)
    monkeypatch.delenv("PYTHONPATH")
    elsewhere = sweep("validate", manifest)

    assert there.returncode == 0, there.stderr
    assert elsewhere.returncode == 2
    assert "unknown suite" in elsewhere.stderr


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*/manifest.yaml")), ids=lambda path: path.parent.name)
def test_examples_are_named_after_their_folder_and_described(path):
    text = path.read_text()

    assert re.search(rf"^name: {path.parent.name}$", text, re.MULTILINE)
    assert str(path.relative_to(ROOT)) in (ROOT / "docs/own-models.md").read_text()

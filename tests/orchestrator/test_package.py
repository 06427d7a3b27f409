"""What a submission carries."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.errors import UsageError
from orchestrator.manifest import load_manifest
from orchestrator.package import pack, write

ROOT = Path(__file__).parent.parent.parent
HEAD = "schema_version: 1\nname: trial\nmatrix: {dtype: [float32]}\n"


@pytest.fixture
def loaded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def load(text, **files):
        (tmp_path / "trial.yaml").write_text(HEAD + text)
        for name, content in files.items():
            path = tmp_path / name.replace("__", "/").replace("_py", ".py").replace("_yaml", ".yaml")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        return load_manifest(tmp_path / "trial.yaml")

    return load


OWN = "suites: {mine: [{name: a, factory: 'pieces.nets:build', batch_size: 1}]}\n"


def test_a_shipped_manifest_validates_where_it_is_unpacked(tmp_path):
    """The real thing: includes stay where the manifest looks for them, and the code runs without this checkout."""
    package = pack(load_manifest(ROOT / "manifests" / "pt2.yaml"))
    write(package.files, tmp_path, "sweep-r")
    command = [sys.executable, "-m", "orchestrator", "validate", package.manifest]
    done = subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert package.manifest == "manifest/pt2.yaml"


def test_only_code_and_manifest_go_along(loaded):
    package = pack(loaded("suites: {toy: [pass]}\n", notes_py="secret = 1\n"))
    tops = {name.split("/")[0] for name in package.files}
    assert tops == {"orchestrator", "tasks", "manifest"}
    assert not [name for name in package.files if "__pycache__" in name or name.endswith(".pyc")]
    assert "orchestrator/models.json" in package.files


def test_code_that_the_manifest_names_goes_along_and_is_named(loaded):
    package = pack(loaded(OWN, pieces__nets_py="def build(request): ...\n", pieces__results__old_py="x = 1\n"))
    assert "pieces/nets.py" in package.files
    assert not [name for name in package.files if name.startswith("pieces/results")]
    assert "results" in package.left_out
    assert any("pieces.nets:build" in line and "goes along" in line for line in package.describe())


def test_naming_code_does_not_run_it(loaded, tmp_path):
    pack(loaded(OWN, pieces____init___py="raise SystemExit('ran')\n", pieces__nets_py="raise SystemExit('ran')\n"))


def test_code_that_is_installed_here_or_missing_is_named_and_stays(loaded):
    manifest = loaded(
        "suites: {mine: [{name: a, factory: 'yaml:load', batch_size: 1}, {name: b, factory: 'nowhere.at:all', batch_size: 1}]}\n"
    )
    package = pack(manifest)
    assert [code.path for code in package.code] == [None, None]
    text = "\n".join(package.describe())
    assert "nowhere.at:all: not found here; every node must have it" in text
    assert "yaml:load: installed here and not sent" in text


def test_what_is_too_large_is_refused_with_the_largest_files(loaded, tmp_path):
    manifest = loaded(OWN, pieces__nets_py="")
    (tmp_path / "pieces" / "weights.bin").write_bytes(b"\0" * 3 * 2**20)
    with pytest.raises(UsageError, match=r"at most 2 MiB.*pieces/weights\.bin \(3\.0 MiB\)"):
        pack(manifest, max_mib=2)
    assert pack(manifest).size_bytes > 3 * 2**20


def test_the_same_content_is_the_same_package(loaded):
    manifest = loaded("suites: {toy: [pass]}\n")
    assert pack(manifest) == pack(manifest)


def test_what_runs_beside_factories_is_named(loaded):
    manifest = loaded(
        "suites:\n  torchbench: [{name: a, source: checkout}, {name: b, source: checkout, options: {checkout: /srv/benchmark}}]\n"
        "submit: {pip: [effdet==0.4], env_vars: {B: '2', A: '1'}}\n"
    )
    lines = list(pack(manifest).describe())
    assert lines[-4:] == [
        "pip installs on the nodes: effdet==0.4",
        "environment variables there: A=1, B=2",
        "models of torchbench come from the checkout at /srv/benchmark on the nodes",
        "models of torchbench come from the checkout at TORCHBENCH_ROOT on the nodes",
    ]
    assert not any("nodes" in line for line in pack(loaded("suites: {toy: [pass]}\n")).describe())


def test_a_suite_of_an_installed_package_is_named(loaded, monkeypatch):
    monkeypatch.setattr("orchestrator.catalogue._installed", lambda group: frozenset({"ours"}))
    assert any(
        "the suite ours comes from a package" in line for line in pack(loaded("suites: {ours: [{name: a, batch_size: 1}]}\n")).describe()
    )


def test_no_two_jobs_have_the_same_package(loaded, tmp_path):
    """Ray would unpack it for the second over the directory of the first."""
    package = pack(loaded("suites: {toy: [pass]}\n"))
    for name in ("sweep-r", "sweep-s"):
        write(package.files, tmp_path / name, name)
        assert (tmp_path / name / "job.txt").read_text() == name

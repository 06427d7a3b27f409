"""Every shipped manifest is sound, says what it is said to say, and points editors at the schema."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import jsonschema
import pytest

from orchestrator import source
from orchestrator.manifest import json_schema, load_manifest
from orchestrator.plan import digest, plan_tasks
from tasks.suites import reference, torchbench, toy

MANIFESTS = Path(__file__).parents[2] / "manifests"
WHOLE = sorted(MANIFESTS.glob("*.yaml"))
PARTS = sorted((MANIFESTS / "suites").glob("*.yaml"))
REFERENCE_SIZES = {"huggingface": 46, "timm": 61, "torchbench": 56}


def models(name):
    return load_manifest(MANIFESTS / name).manifest.suites


def names(listed):
    return [model.name for model in listed]


def document(path):
    problems = []
    parsed = source.parse(path.read_text(), str(path), problems)
    assert problems == []
    return parsed


@pytest.mark.parametrize("path", WHOLE, ids=lambda path: path.stem)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_manifest_can_be_planned(path, device):
    loaded = load_manifest(path)

    assert loaded.manifest.name == path.stem
    assert plan_tasks(loaded, device).to_run


@pytest.mark.parametrize("path", WHOLE + PARTS, ids=lambda path: path.stem)
def test_every_file_fits_the_schema_and_names_it_for_editors(path):
    schema = "../manifest.schema.json" if path in PARTS else "./manifest.schema.json"

    assert path.read_text().splitlines()[0] == f"# yaml-language-server: $schema={schema}"
    jsonschema.Draft202012Validator(json_schema()).validate(document(path).data)


def test_the_committed_schema_is_that_of_the_code():
    committed = (MANIFESTS / "manifest.schema.json").read_text()

    assert committed == json.dumps(json_schema(), indent=2) + "\n", "sweep schema --write manifests/manifest.schema.json"


@pytest.mark.parametrize("path", PARTS, ids=lambda path: path.stem)
def test_lists_of_models_are_neat(path):
    for line in path.read_text().splitlines():
        assert len(line) <= 140
    for listed in document(path).data["suites"].values():
        ordered = [model["name"] for model in listed]
        assert ordered == sorted(ordered, key=str.lower)


def test_the_reference_sweep_has_its_163_models():
    suites = models("pt2.yaml")

    assert {suite: len(listed) for suite, listed in suites.items()} == REFERENCE_SIZES
    assert set(names(suites["huggingface"])) == set(reference.HUGGINGFACE)
    assert set(names(suites["timm"])) == set(reference.TIMM)
    assert set(names(suites["torchbench"])) == set(torchbench.MODELS)
    assert {suite: names(listed) for suite, listed in suites.items()} == {
        suite: names(listed) for suite, listed in models("pt2_inference.yaml").items()
    }


def test_the_calibration_subset_is_sixteen_models_in_several_processes():
    planned = plan_tasks(load_manifest(MANIFESTS / "pt2.yaml"), "cuda")

    repeated = {(task.spec.model.suite, task.spec.model.name) for task in planned.tasks if task.spec.measure.processes > 1}
    assert len(repeated) == 16
    assert {suite for suite, _ in repeated} == set(REFERENCE_SIZES)
    assert {task.spec.measure.processes for task in planned.tasks} == {1, 3}


@pytest.mark.parametrize(
    ("name", "strict"),
    [("pt2.yaml", "pt2_strict.yaml"), ("pt2_sample.yaml", "pt2_sample_strict.yaml"), ("agreement.yaml", "agreement_strict.yaml")],
)
def test_a_strict_manifest_differs_in_the_neighbours_alone(name, strict):
    shared, alone = load_manifest(MANIFESTS / name), load_manifest(MANIFESTS / strict)

    assert (shared.manifest.execution.sharing, alone.manifest.execution.sharing) == ("auto", 1)
    digests = [{task.spec.task_id: task.spec.digest for task in plan_tasks(loaded, "cuda").tasks} for loaded in (shared, alone)]
    assert digests[0] == digests[1]


@pytest.mark.parametrize("name", ["pt2.yaml", "pt2_inference.yaml", "pt2_sample.yaml"])
def test_the_sweeps_for_gpus_share_them(name):
    execution = load_manifest(MANIFESTS / name).manifest.execution

    assert (execution.device, execution.sharing) == ("cuda", "auto")


def test_the_sample_is_part_of_the_reference_sweep_as_it_is_there():
    whole, sample = (
        {
            task.spec.task_id: dataclasses.replace(task.spec, measure=dataclasses.replace(task.spec.measure, processes=1))
            for task in plan_tasks(load_manifest(MANIFESTS / name), "cuda").tasks
        }
        for name in ("pt2.yaml", "pt2_sample.yaml")
    )

    assert len(sample) == 40
    assert {task_id: digest(spec) for task_id, spec in sample.items()} == {task_id: digest(whole[task_id]) for task_id in sample}


@pytest.mark.parametrize(("name", "mode"), [("pt2.yaml", "training"), ("pt2_inference.yaml", "inference")])
def test_the_reference_sweep_has_326_tasks_at_the_settings_of_the_announcement(name, mode):
    loaded = load_manifest(MANIFESTS / name)
    planned = plan_tasks(loaded, "cuda")

    assert len(planned.to_run) == len({task.spec.task_id for task in planned.tasks}) == 326
    assert loaded.manifest.weights == {"amp": 0.75, "float32": 0.25}
    for task in planned.tasks:
        assert task.spec.mode == mode
        assert task.spec.optimizer == "none"
        assert task.spec.precision.tf32
        assert task.spec.precision.autocast_dtype == ("float16" if task.spec.precision.dtype == "amp" else None)
        assert task.spec.compile.options == {"triton.cudagraphs": False}
        assert not task.spec.compile.suppress_errors


@pytest.mark.parametrize(("name", "mode"), [("pt2.yaml", "training"), ("pt2_inference.yaml", "inference")])
def test_batch_sizes_and_lengths_are_those_of_the_tables(name, mode):
    tables = {"huggingface": reference.HUGGINGFACE, "timm": reference.TIMM, "torchbench": torchbench.MODELS}

    for task in plan_tasks(load_manifest(MANIFESTS / name), "cuda").tasks:
        entry = tables[task.spec.model.suite][task.spec.model.name]
        assert task.spec.model.batch_size == entry.default_batch_size(mode), task.spec.task_id
        lengths = {"seq_len": entry.seq_len} if task.spec.model.suite == "huggingface" else {}
        assert task.spec.model.options == lengths, task.spec.task_id


def test_tolerances_are_those_of_the_tables():
    for suite, table in (("huggingface", reference.HUGGINGFACE), ("timm", reference.TIMM)):
        for model in models("pt2.yaml")[suite]:
            entry = table[model.name]
            given = (model.tolerance.training, model.tolerance.inference) if model.tolerance else (None, None)
            assert given == (entry.training_tolerance, getattr(entry, "inference_tolerance", None)), model.name


def test_the_smoke_sweep_is_eight_small_tasks_of_all_real_suites():
    planned = plan_tasks(load_manifest(MANIFESTS / "smoke.yaml"), "cpu")

    assert len(planned.to_run) == 8
    assert {task.spec.model.suite for task in planned.tasks} == set(REFERENCE_SIZES)
    assert {task.spec.precision.dtype for task in planned.tasks} == {"amp", "float32"}


def test_the_toy_sweep_has_every_kind_of_toy_and_short_deadlines():
    planned = plan_tasks(load_manifest(MANIFESTS / "toy.yaml"), "cpu")

    assert {toy.kind_of(task.spec.model.name) for task in planned.tasks} == set(toy.MODELS)
    assert len(planned.tasks) >= 40
    assert any(task.skip for task in planned.tasks)
    assert max(task.spec.deadlines.task_s for task in planned.tasks) <= 60


def test_the_examples_of_the_documentation_are_sound(tmp_path, monkeypatch):
    monkeypatch.setattr("orchestrator.catalogue._installed_models", lambda suite: None)
    blocks = re.findall(r"^```yaml\n(.*?)^```$", (MANIFESTS.parent / "docs/manifest.md").read_text(), re.MULTILINE | re.DOTALL)
    (tmp_path / "suites").symlink_to(MANIFESTS / "suites")

    for index, block in enumerate(blocks):
        (tmp_path / f"{index}.yaml").write_text(block)
        jsonschema.Draft202012Validator(json_schema()).validate(document(tmp_path / f"{index}.yaml").data)
    least, complete = (load_manifest(tmp_path / f"{index}.yaml").manifest for index in range(2))

    assert names(least.suites["torchbench"]) == ["dcgan"]
    assert [model.batch_size for model in complete.suites["timm"] if model.name == "lcnet_050"] == [256]
    assert set(complete.model_fields_set) == set(type(complete).model_fields)


def test_the_documentation_names_every_field():
    text = (MANIFESTS.parent / "docs/manifest.md").read_text()
    properties = {field for kind in json_schema()["$defs"].values() for field in kind.get("properties", {})}

    assert {field for field in properties if not re.search(rf"\b{field}\b", text)} == set()

"""Expected device memory: measured peaks of the reference sweep, and estimates for everything else."""

from __future__ import annotations

import json
import statistics
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator import memory
from orchestrator.manifest import load_manifest
from orchestrator.memory import CONTEXT_MIB, PASSING, estimated_mib, recorded_mib
from orchestrator.plan import plan_tasks
from tasks.spec import PrecisionSpec

ROOT = Path(__file__).parents[2]
MEASURED = json.loads((ROOT / "docs/data/models-h200.json").read_text())["models"]


@pytest.fixture(scope="module")
def specs():
    return {task.spec.task_id: task.spec for task in plan_tasks(load_manifest(ROOT / "manifests/pt2.yaml"), "cuda").tasks}


def measured_mib(spec):
    return MEASURED[f"{spec.model.suite}/{spec.model.name}"].get(spec.precision.dtype, {}).get("peak_mib")


def test_the_shipped_peaks_are_those_that_were_published():
    published = {name: {dtype: one["peak_mib"] for dtype, one in found.items() if one.get("peak_mib")} for name, found in MEASURED.items()}

    assert json.loads(memory.PEAKS.read_text()) == {name: peaks for name, peaks in published.items() if peaks}


def test_a_model_of_the_reference_sweep_needs_what_was_measured(specs):
    known = [spec for spec in specs.values() if measured_mib(spec)]

    assert len(known) > 310
    for spec in known:
        assert estimated_mib(spec) == pytest.approx(measured_mib(spec) + CONTEXT_MIB), spec.task_id


def test_without_the_measured_peaks_the_estimates_are_of_the_right_size(specs, monkeypatch):
    monkeypatch.setattr(memory, "_peaks", dict)
    ratios = [estimated_mib(spec) / (measured_mib(spec) + CONTEXT_MIB) for spec in specs.values() if measured_mib(spec)]

    assert 1.0 < statistics.median(ratios) < 1.6
    assert statistics.quantiles(ratios, n=20)[1] > 0.6


def test_memory_grows_with_the_batch_and_is_less_in_inference(specs):
    usual = specs["timm/resmlp_12_224/float32/training/inductor"]
    twice = replace(usual, model=replace(usual.model, batch_size=2 * usual.model.batch_size))

    assert 1.8 < (estimated_mib(twice) - CONTEXT_MIB) / (estimated_mib(usual) - CONTEXT_MIB) <= 2.0
    assert estimated_mib(replace(usual, mode="inference")) < 0.3 * estimated_mib(usual)


def test_another_size_of_a_measured_model_is_estimated(specs):
    short = specs["huggingface/BertForMaskedLM/float32/training/inductor"]
    long = replace(short, model=replace(short.model, options={"seq_len": 4096}))

    assert estimated_mib(long) != estimated_mib(short)


def test_a_dtype_that_could_not_be_measured_needs_as_much_as_the_other(specs):
    spec = specs["huggingface/DebertaForMaskedLM/amp/training/inductor"]

    assert measured_mib(spec) is None
    assert estimated_mib(spec) == estimated_mib(replace(spec, precision=PrecisionSpec("float32")))


@pytest.mark.parametrize(
    ("peaks", "needed"),
    [
        ((4000.0, 3000.0, 5000.0), 4000.0),
        ((4000.0, 3000.0, 12_000.0), PASSING * 12_000.0),
        ((None, None, 6000.0), 3000.0),
        ((4000.0, None, None), 4000.0),
    ],
)
def test_of_recorded_peaks_the_steps_count_whole_and_the_accuracy_reference_in_part(peaks, needed):
    assert recorded_mib(*peaks) == needed + CONTEXT_MIB


def test_without_a_recorded_peak_none_is_made_up():
    assert recorded_mib(None, None, None) is None

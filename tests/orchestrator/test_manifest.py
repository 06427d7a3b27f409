"""Manifests: every problem at its place and at once; merging; what a resolved manifest is."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jsonschema
import pytest

from orchestrator import fields, source
from orchestrator.errors import ExitCode, ManifestError
from orchestrator.manifest import expanded, json_schema, load_manifest
from tasks.spec import AccuracySpec, CompileSpec, DeadlineSpec, MeasureSpec

HEAD = "schema_version: 1\nname: test\n"
STOPPED = (
    "a neighbour that is stopped while another task is timed may hold a lock in a shared cache, and that task would wait for it: "
    "use cold or bundle, or sharing: 1"
)
BUNDLE = "with execution.cache: bundle no process would compile afresh, which is what several are for; use cold or shared"
TOY = "suites: {toy: [pass]}\n"


def load(tmp_path, text, **files):
    """Load ``text``, which comes after a sound head of two lines, with ``files`` beside it."""
    for name, content in files.items():
        (tmp_path / f"{name}.yaml").write_text(content)
    (tmp_path / "m.yaml").write_text(text)
    return load_manifest(tmp_path / "m.yaml")


def problems(tmp_path, text, **files):
    with pytest.raises(ManifestError) as raised:
        load(tmp_path, text, **files)
    assert raised.value.exit_code == ExitCode.USAGE
    return [line.replace(f"{tmp_path}/", "") for line in str(raised.value).splitlines()]


def given(loaded):
    """SUITE/NAME -> what was set for the model anywhere."""
    models = {f"{suite}/{model.name}": model for suite, listed in loaded.manifest.suites.items() for model in listed}
    return {key: model.model_dump(exclude_unset=True, exclude={"name"}) for key, model in models.items()}


BAD = {
    # What holds for any file.
    "syntax": ("a: [", "m.yaml:1:5: did not find expected node content while parsing a flow node"),
    "empty": ("", "m.yaml:1:1: expected a mapping, got null"),
    "list": ("- a", "m.yaml:1:1: expected a mapping, got a list"),
    "duplicate": (HEAD + TOY + "seed: 1\nseed: 2", "m.yaml:5:1: seed: duplicate key, first given in line 4"),
    # Fields of the manifest.
    "no version": ("name: x\n" + TOY, "m.yaml:1:1: the field 'schema_version' is missing"),
    "future": ("schema_version: 2\nname: x\n" + TOY, "m.yaml:1:17: schema_version: version 2 is not known; this program reads version 1"),
    "no name": ("schema_version: 1\n" + TOY, "m.yaml:1:1: the field 'name' is missing"),
    "name": (
        "schema_version: 1\nname: a b\n" + TOY,
        "m.yaml:2:7: name: 'a b' must begin with a letter or digit and hold only these and . _ + -",
    ),
    "number as name": ("schema_version: 1\nname: 7\n" + TOY, "m.yaml:2:7: name: expected a string, got 7 (quote it)"),
    "unknown field": (HEAD + TOY + "matrx: {}", "m.yaml:4:1: matrx: unknown field (did you mean 'matrix'?)"),
    "strange field": (HEAD + TOY + "zzz: {}", "m.yaml:4:1: zzz: unknown field"),
    "no models": (HEAD, "m.yaml:1:1: no models: give them under 'suites' or 'include' files that do"),
    "seed": (HEAD + TOY + "seed: 1.5", "m.yaml:4:7: seed: expected an integer, got 1.5"),
    "true as seed": (HEAD + TOY + "seed: true", "m.yaml:4:7: seed: expected an integer, got true"),
    # Matrix and backends.
    "dtype": (
        HEAD + TOY + "matrix: {dtype: [fp32]}",
        "m.yaml:4:18: matrix.dtype[0]: 'fp32' is not one of amp, float32 (did you mean 'float32'?)",
    ),
    "empty axis": (HEAD + TOY + "matrix: {mode: []}", "m.yaml:4:16: matrix.mode: must not be empty"),
    "no list": (HEAD + TOY + "matrix: {mode: training}", "m.yaml:4:16: matrix.mode: expected a list, got 'training'"),
    "twice in axis": (HEAD + TOY + "matrix: {dtype: [amp, amp]}", "m.yaml:4:23: matrix.dtype[1]: 'amp' is already in the list"),
    "axis": (HEAD + TOY + "matrix: {dtypes: [amp]}", "m.yaml:4:10: matrix.dtypes: unknown field (did you mean 'dtype'?)"),
    "backend": (
        HEAD + TOY + "matrix: {backend: [inductor, reduce]}\nbackends: {reduced: {mode: reduce-overhead}}",
        "m.yaml:4:30: matrix.backend[1]: no backend 'reduce' under 'backends' (did you mean 'reduced'?)",
    ),
    "backend mode": (
        HEAD + TOY + "backends: {x: {mode: reduce}}",
        (
            "m.yaml:4:22: backends.x.mode: 'reduce' is not one of default, reduce-overhead, max-autotune, max-autotune-no-cudagraphs"
            " (did you mean 'reduce-overhead'?)"
        ),
    ),
    "mode and options": (
        HEAD + TOY + "backends: {x: {mode: default, options: {a: 1}}}",
        "m.yaml:4:40: backends.x.options: torch.compile takes a mode or options, not both",
    ),
    "backend name": (
        HEAD + TOY + "backends: {a/b: {}}",
        "m.yaml:4:12: backends.a/b: 'a/b' must begin with a letter or digit and hold only these and . _ + -",
    ),
    "backend argument": (
        HEAD + TOY + "backends: {inductor: {backend: inducto}}",
        "m.yaml:4:32: backends.inductor.backend: torch has no backend 'inducto' (did you mean 'inductor'?)",
    ),
    "option": (
        HEAD + TOY + "backends: {x: {options: {a: [1]}}}",
        "m.yaml:4:29: backends.x.options.a: must be a string, a number, true, false or null, got a list",
    ),
    # Weights.
    "weight of nothing": (
        HEAD + TOY + "matrix: {dtype: [amp]}\nweights: {float32: 1}",
        "m.yaml:5:11: weights.float32: not a dtype of the matrix: amp",
    ),
    "weight misspelt": (
        HEAD + TOY + "weights: {float23: 0.25, amp: 0.75}",
        "m.yaml:4:11: weights.float23: not a dtype of the matrix: amp, float32 (did you mean 'float32'?)",
    ),
    "weight sum": (HEAD + TOY + "weights: {amp: 0.75, float32: 0.2}", "m.yaml:4:10: weights: must sum to 1, not 0.95"),
    "weight sign": (HEAD + TOY + "weights: {amp: 1.5, float32: -0.5}", "m.yaml:4:30: weights.float32: must be more than 0, got -0.5"),
    "weight infinite": (HEAD + TOY + "weights: {amp: .inf}", "m.yaml:4:16: weights.amp: input should be a finite number"),
    # Measurement, deadlines, execution.
    "float": (HEAD + TOY + "measurement: {max_time_s: yes}", "m.yaml:4:27: measurement.max_time_s: expected a number, got 'yes'"),
    "bound": (HEAD + TOY + "measurement: {half_width: 1}", "m.yaml:4:27: measurement.half_width: must be less than 1, got 1"),
    "pairs": (
        HEAD + TOY + "measurement: {min_pairs: 20, max_pairs: 10}",
        "m.yaml:4:14: measurement: min_pairs 20 is more than max_pairs 10",
    ),
    "bundle in several processes": (
        HEAD + TOY + "execution: {cache: bundle}\nmeasurement: {processes: 3}",
        f"m.yaml:5:26: measurement.processes: {BUNDLE}",
    ),
    "shared cache beside neighbours": (
        HEAD + TOY + "execution: {cache: shared, sharing: auto}",
        f"m.yaml:4:20: execution.cache: {STOPPED}",
    ),
    "deadline": (HEAD + TOY + "deadlines: {compil_s: 3}", "m.yaml:4:13: deadlines.compil_s: unknown field (did you mean 'compile_s'?)"),
    "sharing": (
        HEAD + TOY + "execution: {sharing: automatic}",
        "m.yaml:4:22: execution.sharing: must be 'auto' or an integer of at least 1, got 'automatic'",
    ),
    "sharing several": (
        HEAD + TOY + "execution: {num_gpus: 2, sharing: 4}",
        "m.yaml:4:35: execution.sharing: a task with several GPUs shares none: needs num_gpus: 1",
    ),
    "inline": (
        HEAD + "execution: {isolation: inline}\nsuites: {toy: [pass], torchbench: [dcgan]}",
        "m.yaml:3:24: execution.isolation: inline is only for toys that finish at once, and there is torchbench/dcgan",
    ),
    "inline hang": (
        HEAD + "execution: {isolation: inline}\nsuites: {toy: [pass, hang]}",
        "m.yaml:3:24: execution.isolation: inline is only for toys that finish at once, and there is toy/hang",
    ),
    "null mapping": (HEAD + TOY + "execution:", "m.yaml:4:11: execution: expected a mapping, got null"),
    # Models.
    "suite": (
        HEAD + "suites: {timmm: [x]}",
        "m.yaml:3:10: suites.timmm: unknown suite; there are huggingface, timm, torchbench, toy (did you mean 'timm'?)",
    ),
    "model": (
        HEAD + "suites:\n  torchbench:\n    - dcgan\n    - lenard_jones",
        "m.yaml:6:7: suites.torchbench[1]: no model 'lenard_jones' in suite torchbench (did you mean 'lennard_jones'?)",
    ),
    "model in a mapping": (
        HEAD + "suites: {toy: [{batch_size: 2, name: bass}]}",
        "m.yaml:3:38: suites.toy[0].name: no model 'bass' in suite toy (did you mean 'pass'?)",
    ),
    "empty suite": (HEAD + "suites: {toy: []}", "m.yaml:3:15: suites.toy: must not be empty"),
    "no name of model": (HEAD + "suites: {toy: [{batch_size: 1}]}", "m.yaml:3:16: suites.toy[0]: the field 'name' is missing"),
    "number as model": (HEAD + "suites: {toy: [3]}", "m.yaml:3:16: suites.toy[0]: expected a name or a mapping, got 3"),
    "model field": (
        HEAD + "suites: {toy: [{name: pass, bach_size: 1}]}",
        "m.yaml:3:29: suites.toy[0].bach_size: unknown field (did you mean 'batch_size'?)",
    ),
    "batch": (HEAD + "suites: {toy: [{name: pass, batch_size: 0}]}", "m.yaml:3:41: suites.toy[0].batch_size: must be at least 1, got 0"),
    "nested field": (
        HEAD + "suites: {toy: [{name: pass, measurement: {pairs: 3}}]}",
        "m.yaml:3:43: suites.toy[0].measurement.pairs: unknown field (did you mean 'min_pairs'?)",
    ),
    "pairs of a model": (
        HEAD + "suites: {toy: [{name: pass, measurement: {max_pairs: 3}}]}",
        "m.yaml:3:42: suites.toy[0].measurement: min_pairs 8 is more than max_pairs 3",
    ),
    "bundle in several processes of a model": (
        HEAD + "execution: {cache: bundle}\nsuites: {toy: [{name: pass, measurement: {processes: 3}}]}",
        f"m.yaml:4:42: suites.toy[0].measurement: {BUNDLE}",
    ),
    "tolerance": (
        HEAD + "suites: {toy: [{name: pass, tolerance: -1, tolerance_reason: x}]}",
        "m.yaml:3:40: suites.toy[0].tolerance: must be more than 0, got -1",
    ),
    "tolerance without reason": (
        HEAD + "suites: {toy: [{name: pass, tolerance: 0.1}]}",
        "m.yaml:3:40: suites.toy[0].tolerance: a tolerance needs a tolerance_reason",
    ),
    "tolerance mode": (
        HEAD + "suites: {toy: [{name: pass, tolerance: {train: 0.1}, tolerance_reason: x}]}",
        "m.yaml:3:41: suites.toy[0].tolerance.train: unknown field (did you mean 'training'?)",
    ),
    "factory": (
        HEAD + "suites: {toy: [{name: mine, factory: my.module}]}",
        "m.yaml:3:38: suites.toy[0].factory: 'my.module' must be package.module:function",
    ),
    "option of no toy": (
        HEAD + "suites: {toy: [{name: pass, options: {eagerms: 3}}]}",
        "m.yaml:3:39: suites.toy[0].options.eagerms: toy/pass has no option 'eagerms' (did you mean 'eager_ms'?)",
    ),
    "source": (
        HEAD + "suites: {toy: [{name: pass, source: checkout}]}",
        "m.yaml:3:37: suites.toy[0].source: only torchbench has a choice of sources",
    ),
    "dtypes": (
        HEAD + "matrix: {dtype: [amp]}\nsuites: {toy: [{name: pass, dtypes: [float32]}]}",
        "m.yaml:4:37: suites.toy[0].dtypes: leaves nothing of matrix.dtype (amp)",
    ),
    "listed twice": (HEAD + "suites:\n  toy:\n    - pass\n    - pass", "m.yaml:6:7: suites.toy[1]: toy/pass is already listed in line 5"),
    "defaults with a name": (HEAD + TOY + "defaults: {name: x}", "m.yaml:4:12: defaults.name: unknown field (did you mean 'note'?)"),
    # Exclusions.
    "exclude nothing": (
        HEAD + TOY + "exclude: [{model: toy/bass, reason: x}]",
        "m.yaml:4:19: exclude[0].model: 'toy/bass' matches no model (did you mean 'toy/pass'?)",
    ),
    "exclude without reason": (HEAD + TOY + "exclude: [{model: toy/pass}]", "m.yaml:4:11: exclude[0]: the field 'reason' is missing"),
    "exclude backend": (
        HEAD + TOY + "exclude: [{model: toy/*, backend: inducter, reason: x}]",
        "m.yaml:4:35: exclude[0].backend: no backend 'inducter' under 'backends' (did you mean 'inductor'?)",
    ),
    # Submit.
    "submit": (HEAD + TOY + "submit: {env_vars: {A: 1}}", "m.yaml:4:24: submit.env_vars.A: expected a string, got 1 (quote it)"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_said_at_its_place(case, tmp_path):
    text, expected = BAD[case]

    assert problems(tmp_path, text) == [expected]


def test_all_problems_of_all_files_are_reported_at_once_and_in_order(tmp_path):
    top = """\
schema_version: 1
name: test
include: [a.yaml, missing.yaml, broken.yaml]
sede: 1
matrix: {dtype: [fp32], backend: [indutcor]}
weights: {amp: 2}
suites:
  toy:
    - {name: pass, batch_size: x}
    - bass
    - {name: hang, deadlines: {compile_s: -1}}
exclude:
  - {model: toy/none, reason: x}
"""
    included = "suites:\n  tmm: [x]\n  torchbench: [{name: dcgan, bach_size: 3}, {name: dgcan, batch_size: 4.0}]\nexclude: 3\nname: a\n"

    assert problems(tmp_path, top, a=included, broken="x: {") == [
        "a.yaml:2:3: suites.tmm: unknown suite; there are huggingface, timm, torchbench, toy (did you mean 'timm'?)",
        "a.yaml:3:30: suites.torchbench[0].bach_size: unknown field (did you mean 'batch_size'?)",
        "a.yaml:3:52: suites.torchbench[1].name: no model 'dgcan' in suite torchbench (did you mean 'dcgan'?)",
        "a.yaml:3:71: suites.torchbench[1].batch_size: expected an integer, got 4.0",
        "a.yaml:4:10: exclude: expected a list, got 3",
        "a.yaml:5:1: name: unknown field",
        "broken.yaml:1:5: did not find expected node content while parsing a flow node",
        "m.yaml:3:19: include[1]: no such file: missing.yaml",
        "m.yaml:4:1: sede: unknown field (did you mean 'seed'?)",
        "m.yaml:5:18: matrix.dtype[0]: 'fp32' is not one of amp, float32 (did you mean 'float32'?)",
        "m.yaml:5:35: matrix.backend[0]: no backend 'indutcor' under 'backends' (did you mean 'inductor'?)",
        "m.yaml:6:10: weights: must sum to 1, not 2",
        "m.yaml:9:32: suites.toy[0].batch_size: expected an integer, got 'x'",
        "m.yaml:10:7: suites.toy[1]: no model 'bass' in suite toy (did you mean 'pass'?)",
        "m.yaml:11:43: suites.toy[2].deadlines.compile_s: must be more than 0, got -1",
        "m.yaml:13:13: exclude[0].model: 'toy/none' matches no model (did you mean 'toy/hang'?)",
    ]


def test_a_field_that_is_wrong_is_not_missing_as_well(tmp_path, monkeypatch):
    monkeypatch.setattr("orchestrator.catalogue._installed_models", lambda suite: None)
    model = "{name: Other, batch_size: -1, tolerance: 0.1, tolerance_reason: 3}"

    assert problems(
        tmp_path, HEAD + f"suites: {{timm: [{model}, {{name: mine, factory: 3}}]}}\nexclude: [{{model: timm/mine, reason: x}}]"
    ) == [
        "m.yaml:3:43: suites.timm[0].batch_size: must be at least 1, got -1",
        "m.yaml:3:81: suites.timm[0].tolerance_reason: expected a string, got 3 (quote it)",
        "m.yaml:3:107: suites.timm[1].factory: expected a string, got 3 (quote it)",
    ]


def test_a_field_that_is_wrong_hides_nothing_that_is_wrong_beside_it(tmp_path):
    text = """\
schema_version: 1
name: test
matrix: {dtype: [amp, amp], mode: [trainning]}
backends: {inductor: {mode: default, options: {a: [1], b: 2}}, x: 3}
measurement: {min_pairs: 50, max_pairs: 10, half_width: 2}
execution: {num_gpus: 2, sharing: auto, num_cpus: -1}
suites:
  toy:
    - {name: pass, options: {eagerms: 1, noise: []}, measurement: {min_pairs: 12, half_width: 2}}
"""
    assert problems(tmp_path, text) == [
        "m.yaml:3:23: matrix.dtype[1]: 'amp' is already in the list",
        "m.yaml:3:36: matrix.mode[0]: 'trainning' is not one of inference, training (did you mean 'training'?)",
        "m.yaml:4:47: backends.inductor.options: torch.compile takes a mode or options, not both",
        "m.yaml:4:51: backends.inductor.options.a: must be a string, a number, true, false or null, got a list",
        "m.yaml:4:67: backends.x: expected a mapping, got 3",
        "m.yaml:5:14: measurement: min_pairs 50 is more than max_pairs 10",
        "m.yaml:5:57: measurement.half_width: must be less than 1, got 2",
        "m.yaml:6:35: execution.sharing: a task with several GPUs shares none: needs num_gpus: 1",
        "m.yaml:6:51: execution.num_cpus: must be more than 0, got -1",
        "m.yaml:9:30: suites.toy[0].options.eagerms: toy/pass has no option 'eagerms' (did you mean 'eager_ms'?)",
        "m.yaml:9:49: suites.toy[0].options.noise: must be a string, a number, true, false or null, got a list",
        "m.yaml:9:67: suites.toy[0].measurement: min_pairs 12 is more than max_pairs 10",
        "m.yaml:9:95: suites.toy[0].measurement.half_width: must be less than 1, got 2",
    ]


def test_a_field_that_is_misspelled_is_not_missing_as_well(tmp_path, monkeypatch):
    monkeypatch.setattr("orchestrator.catalogue._installed_models", lambda suite: None)
    text = """\
schema_version: 1
nam: test
backend: {x: {}}
matrix: {backend: [x]}
measurement: {min_pears: 3}
defaults: {batch_sze: 8}
suits: {toy: [pass]}
include: [a.yaml]
exclude: [{modl: x, reason: y}]
"""
    included = (
        "suites: {timm: [{name: x, batch_sze: 4}, {name: y, factry: 'a:b'}, {nme: z}, "
        "{name: x_y, measurement: {max_pairs: 5}, batch_size: 1}]}"
    )

    assert problems(tmp_path, text, a=included) == [
        "a.yaml:1:27: suites.timm[0].batch_sze: unknown field (did you mean 'batch_size'?)",
        "a.yaml:1:52: suites.timm[1].factry: unknown field (did you mean 'factory'?)",
        "a.yaml:1:69: suites.timm[2].nme: unknown field (did you mean 'name'?)",
        "m.yaml:2:1: nam: unknown field (did you mean 'name'?)",
        "m.yaml:3:1: backend: unknown field (did you mean 'backends'?)",
        "m.yaml:5:15: measurement.min_pears: unknown field (did you mean 'min_pairs'?)",
        "m.yaml:6:12: defaults.batch_sze: unknown field (did you mean 'batch_size'?)",
        "m.yaml:7:1: suits: unknown field (did you mean 'suites'?)",
        "m.yaml:9:12: exclude[0].modl: unknown field (did you mean 'model'?)",
    ]


def test_the_least_manifest_has_the_documented_defaults(tmp_path):
    manifest = load(tmp_path, HEAD + TOY).manifest

    assert (manifest.seed, manifest.matrix.dtype, manifest.matrix.mode, manifest.matrix.backend) == (
        1337,
        ["float32", "amp"],
        ["training"],
        ["inductor"],
    )
    assert manifest.weights == {"amp": 0.75, "float32": 0.25}
    assert manifest.retries.infrastructure == 2
    assert (manifest.execution.device, manifest.execution.sharing, manifest.execution.cache) == ("auto", 1, "cold")
    assert manifest.backends["inductor"].backend == "inductor"
    assert manifest.submit is None


def test_a_single_dtype_weighs_all(tmp_path):
    assert load(tmp_path, HEAD + TOY + "matrix: {dtype: [amp]}").manifest.weights == {"amp": 1.0}


def test_a_weight_may_be_left_out_of_the_score(tmp_path):
    assert load(tmp_path, HEAD + TOY + "weights: {amp: 1}").manifest.weights == {"amp": 1.0}


def test_inductor_may_be_given_options(tmp_path):
    loaded = load(tmp_path, HEAD + TOY + "backends: {inductor: {options: {triton.cudagraphs: false}}}")

    assert loaded.manifest.backends["inductor"].options == {"triton.cudagraphs": False}


@pytest.mark.parametrize(
    ("kind", "spec", "values"),
    [
        (fields.Measurement, MeasureSpec, MeasureSpec()),
        (fields.Accuracy, AccuracySpec, AccuracySpec()),
        (fields.Deadlines, DeadlineSpec, DeadlineSpec()),
        (fields.Backend, CompileSpec, CompileSpec()),
    ],
)
def test_manifest_and_wire_have_the_same_fields_and_defaults(kind, spec, values):
    assert kind().model_dump() == dataclasses.asdict(values)
    assert list(kind.model_fields) == [field.name for field in dataclasses.fields(spec)]


def test_defaults_fill_what_models_of_their_own_file_leave_open(tmp_path):
    loaded = load(
        tmp_path,
        HEAD + "include: [a.yaml]\ndefaults: {batch_size: 8, options: {pairs: 1, noise: 1}}\n"
        "suites: {toy: [pass, {name: noisy, batch_size: 4, options: {noise: 2}}]}",
        a="defaults: {num_cpus: 3}\nsuites: {toy: [oom]}\n",
    )

    assert given(loaded) == {
        "toy/oom": {"num_cpus": 3.0},
        "toy/pass": {"batch_size": 8, "options": {"pairs": 1, "noise": 1}},
        "toy/noisy": {"batch_size": 4, "options": {"pairs": 1, "noise": 2}},
    }


def test_the_including_file_wins_field_by_field(tmp_path):
    loaded = load(
        tmp_path,
        HEAD + "include: [a.yaml]\ndefaults: {batch_size: 2, note: top}\n"
        "suites: {toy: [{name: pass, batch_size: 16, options: {noise: 3}, measurement: {min_pairs: 9}}]}",
        a="include: [b.yaml]\nsuites: {toy: [{name: pass, note: of a}]}\n",
        b="defaults: {num_cpus: 3}\n"
        "suites: {toy: [{name: pass, batch_size: 4, options: {pairs: 1, noise: 1}, measurement: {max_pairs: 10}, note: of b}, oom]}\n",
    )

    assert list(given(loaded)) == ["toy/pass", "toy/oom"]
    assert given(loaded)["toy/pass"] == {
        "batch_size": 16,
        "num_cpus": 3.0,
        "note": "of a",
        "options": {"pairs": 1, "noise": 3},
        "measurement": {"min_pairs": 9, "max_pairs": 10},
    }


def test_an_option_from_elsewhere_is_a_problem_of_the_model_that_gets_it(tmp_path):
    text = HEAD + "defaults: {options: {pears: 3}}\nsuites: {torchbench: [{name: mine, factory: my.own:model}, dcgan]}"

    assert problems(tmp_path, text) == ["m.yaml:4:60: suites.torchbench[1]: torchbench/dcgan has no option 'pears'; it has none"]


def test_null_takes_back_what_an_included_file_set(tmp_path):
    loaded = load(
        tmp_path,
        HEAD + "include: [a.yaml]\nsuites: {toy: [{name: pass, batch_size: null}]}",
        a="suites: {toy: [{name: pass, batch_size: 4}]}\n",
    )

    assert loaded.manifest.suites["toy"][0].batch_size is None


def test_siblings_may_not_disagree(tmp_path):
    files = {"a": "suites: {toy: [pass]}\n", "b": "suites:\n  toy:\n    - {name: pass, batch_size: 2}\n"}

    assert problems(tmp_path, HEAD + "include: [a.yaml, b.yaml]", **files) == [
        "b.yaml:3:7: suites.toy[0]: toy/pass is also listed in a.yaml:1; list it in the including file to say what holds"
    ]


def test_a_file_included_along_two_ways_counts_once(tmp_path):
    loaded = load(tmp_path, HEAD + "include: [a.yaml, b.yaml]", a="include: [c.yaml]\n", b="include: [c.yaml]\n", c=TOY)

    assert given(loaded) == {"toy/pass": {}}
    assert [Path(file.path).name for file in loaded.files] == ["m.yaml", "a.yaml", "c.yaml", "b.yaml"]


def test_exclusions_of_included_files_count_for_all_models(tmp_path):
    loaded = load(tmp_path, HEAD + TOY + "include: [a.yaml]", a="exclude: [{model: 'toy/pa*', dtype: amp, reason: slow}]\n")

    assert [exclude.reason for exclude in loaded.manifest.exclude] == ["slow"]


def test_a_tolerance_is_a_number_or_one_for_each_mode(tmp_path):
    toys = (
        "suites: {toy: [{name: pass, tolerance: 1e-3, tolerance_reason: x}, {name: oom, tolerance: {training: 0.1}, tolerance_reason: x}]}"
    )
    loaded = load(tmp_path, HEAD + toys)

    assert [model.tolerance.model_dump() for model in loaded.manifest.suites["toy"]] == [
        {"training": 0.001, "inference": 0.001},
        {"training": 0.1, "inference": None},
    ]


def test_a_factory_frees_the_name(tmp_path):
    loaded = load(tmp_path, HEAD + "suites: {torchbench: [{name: my_own, factory: 'my.models:build'}]}")

    assert loaded.manifest.suites["torchbench"][0].factory == "my.models:build"


@pytest.mark.parametrize("suite", ["huggingface", "timm"])
def test_library_models_outside_the_tables_need_a_batch_size(tmp_path, suite, monkeypatch):
    monkeypatch.setattr("orchestrator.catalogue._installed_models", lambda suite: None)

    assert problems(tmp_path, HEAD + f"suites: {{{suite}: [Other]}}") == [
        f"m.yaml:3:{len(suite) + 13}: suites.{suite}[0]: {suite}/Other has no default batch size: give a batch_size"
    ]
    assert load(tmp_path, HEAD + f"suites: {{{suite}: [{{name: Other, batch_size: 2}}]}}")
    inference = HEAD + f"matrix: {{mode: [inference]}}\nsuites: {{{suite}: [{{name: Other, eval_batch_size: 2}}]}}"
    assert load(tmp_path, inference)


def test_the_digest_is_that_of_the_content(tmp_path):
    plain = load(tmp_path, HEAD + "suites: {toy: [pass, {name: oom, batch_size: 2}]}")
    split = load(
        tmp_path, HEAD + "include: [a.yaml]  # elsewhere\n", a="suites:\n  toy:\n    - name: pass\n    - {batch_size: 2, name: oom}\n"
    )
    spelled_out = load(tmp_path, HEAD + "seed: 1337\nsuites: {toy: [pass, {name: oom, batch_size: 2}]}")
    other = load(tmp_path, HEAD + "suites: {toy: [pass, {name: oom, batch_size: 3}]}")

    assert plain.digest == split.digest == spelled_out.digest
    assert plain.digest != other.digest


def test_files_are_kept_as_they_were_read(tmp_path):
    loaded = load(tmp_path, HEAD + "include: [a.yaml]\n", a=f"# a remark\n{TOY}")

    assert [(Path(file.path).name, file.text) for file in loaded.files] == [
        ("m.yaml", HEAD + "include: [a.yaml]\n"),
        ("a.yaml", f"# a remark\n{TOY}"),
    ]


def test_what_is_expanded_is_the_same_manifest(tmp_path):
    text = HEAD + (
        "description: on\nmatrix: {dtype: [amp], backend: [x]}\nbackends: {x: {options: {a: 1, b: no}}}\ndefaults: {batch_size: 3}\n"
        "submit: {pip: [torch]}\nsuites: {toy: [pass, {name: oom, tolerance: 1e-3, tolerance_reason: 'yes', deadlines: {task_s: 9}}]}\n"
        "exclude: [{model: toy/pass, reason: x}]\n"
    )
    loaded = load(tmp_path, text)
    (tmp_path / "expanded.yaml").write_text(source.dump(expanded(loaded)))
    again = load_manifest(tmp_path / "expanded.yaml")

    assert again.manifest == loaded.manifest
    assert again.digest == loaded.digest


# --- the JSON Schema --------------------------------------------------------------------------------------------------------------------


def schema_errors(text):
    validator = jsonschema.Draft202012Validator(json_schema())
    return list(validator.iter_errors(source.parse(text, "m.yaml", []).data))


def test_the_schema_is_a_schema():
    schema = json_schema()

    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"


def test_every_field_is_described_in_the_schema():
    definitions = json_schema()["$defs"]
    properties = [(name, field, about) for name, kind in definitions.items() for field, about in kind.get("properties", {}).items()]

    assert len(properties) > 80
    assert [(name, field) for name, field, about in properties if not about.get("description")] == []


@pytest.mark.parametrize(
    "text",
    [
        HEAD + TOY,
        HEAD + "suites: {timm: [a, {name: b, batch_size: 2, tolerance: 0.1}, {name: c, tolerance: {training: 0.1}}]}",
        HEAD + TOY + "execution: {sharing: auto}\nbackends: {x: {mode: null, dynamic: null, options: {a: 1, b: true}}}",
        "description: an included file\n" + TOY,
    ],
)
def test_the_schema_accepts_what_the_loader_accepts(text):
    assert schema_errors(text) == []


# What is no business of a schema: syntax, other files, what fields have to say to each other, names of suites and models.
BEYOND_SCHEMA = {
    "syntax", "empty", "duplicate", "no version", "no models", "twice in axis", "backend", "backend argument", "mode and options",
    "backend name", "weight of nothing", "weight misspelt", "weight sum", "weight infinite", "pairs", "sharing several", "inline",
    "inline hang", "suite", "model", "model in a mapping", "option of no toy", "pairs of a model", "tolerance without reason", "source",
    "dtypes", "listed twice", "exclude nothing", "exclude backend", "bundle in several processes",
    "bundle in several processes of a model", "shared cache beside neighbours",
}  # fmt: skip


@pytest.mark.parametrize("case", sorted(set(BAD) - BEYOND_SCHEMA))
def test_the_schema_refuses_what_the_loader_refuses(case):
    assert schema_errors(BAD[case][0])


def test_the_schema_is_plain_json():
    assert json.loads(json.dumps(json_schema())) == json_schema()

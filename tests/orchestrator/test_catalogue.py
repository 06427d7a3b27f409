"""Which names exist: tables for closed suites, the libraries' source text for open ones."""

from __future__ import annotations

import importlib.util
import sys

import pytest

from orchestrator import catalogue


@pytest.fixture
def libraries(tmp_path, monkeypatch):
    """An installed transformers and timm of our making, found first on the path and failing if anybody imports them."""
    for library in ("transformers", "timm"):
        (tmp_path / library).mkdir()
        (tmp_path / library / "__init__.py").write_text("raise AssertionError('imported')\n")
    models = tmp_path / "transformers/models/bert"
    models.mkdir(parents=True)
    (models / "modeling_bert.py").write_text("class BertForCatalogues(PreTrainedModel):\n    class Inner(object): ...\n")
    (models / "configuration_bert.py").write_text("class BertConfig(PretrainedConfig): ...\n")
    (tmp_path / "timm/models").mkdir()
    (tmp_path / "timm/models/resnet.py").write_text(
        "@register_model\ndef resnet_catalogue(pretrained=False, **kwargs): ...\ndef helper(): ...\n"
        "register_model_deprecations(__name__, {\n    'old_resnet': 'resnet_catalogue',\n    'tagged.in1k': 'resnet_catalogue',\n})\n"
    )
    for library in ("transformers", "timm"):
        monkeypatch.delitem(sys.modules, library, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    catalogue._installed_models.cache_clear()
    yield
    catalogue._installed_models.cache_clear()


@pytest.mark.parametrize(
    ("suite", "name"),
    [
        ("huggingface", "BertForMaskedLM"),
        ("huggingface", "BertForCatalogues"),
        ("timm", "lcnet_050"),
        ("timm", "resnet_catalogue"),
        ("timm", "resnet_catalogue.a1_in1k"),
        ("timm", "old_resnet"),
        ("timm", "tagged"),
        ("torchbench", "dcgan"),
        ("torchbench", "dlrm"),
        ("toy", "pass"),
        ("toy", "pass.17"),
    ],
)
def test_names_that_exist(libraries, suite, name):
    assert catalogue.model_problem(suite, name) is None


@pytest.mark.parametrize(
    ("suite", "name", "hint"),
    [
        ("huggingface", "BertForCatalogue", "BertForCatalogues"),
        ("huggingface", "bertformaskedlm", "BertForMaskedLM"),
        ("timm", "lcnet_50", "lcnet_050"),
        ("timm", "resnet_catalog", "resnet_catalogue"),
        ("torchbench", "hf_bert", "hf_Bert"),
        ("torchbench", "dcgan.1", "dcgan"),
        ("toy", "hangs", "hang"),
    ],
)
def test_names_that_do_not_exist_come_with_the_nearest_that_does(libraries, suite, name, hint):
    problem = catalogue.model_problem(suite, name)

    assert problem == f"no model '{name}' in suite {suite} (did you mean '{hint}'?)"


def test_a_configuration_is_no_model(libraries):
    assert catalogue.model_problem("huggingface", "BertConfig") is not None


@pytest.mark.parametrize("suite", ["huggingface", "timm"])
def test_without_the_library_every_name_is_accepted(monkeypatch, suite):
    monkeypatch.setattr(catalogue.importlib.util, "find_spec", lambda name: None)
    catalogue._installed_models.cache_clear()

    assert catalogue.model_problem(suite, "Anything") is None
    catalogue._installed_models.cache_clear()


def test_installed_libraries_have_the_models_of_today():
    for library in ("transformers", "timm"):
        if importlib.util.find_spec(library) is None:
            pytest.skip(f"{library} is not installed")
    for suite, name in (("huggingface", "LlamaForCausalLM"), ("timm", "vit_base_patch16_dinov3"), ("timm", "vit_tiny_r_s16_p8_224")):
        assert catalogue.model_problem(suite, name) is None


def test_packages_can_bring_suites(tmp_path, monkeypatch):
    information = tmp_path / "their_suite-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: their-suite\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text("[compile_sweep.suites]\ntheirs = their_suite:build\n")
    monkeypatch.syspath_prepend(tmp_path)
    catalogue._installed.cache_clear()

    assert catalogue.suite_problem("theirs") is None
    assert catalogue.model_problem("theirs", "whatever they call it") is None
    assert catalogue.default_batch_size("theirs", "x", "training") is None
    catalogue._installed.cache_clear()


def test_a_suite_that_does_not_exist():
    assert catalogue.suite_problem("torchbnch") == (
        "unknown suite; there are huggingface, timm, torchbench, toy (did you mean 'torchbench'?)"
    )


def test_batch_sizes_of_the_tables():
    assert catalogue.default_batch_size("torchbench", "dcgan", "training") == 32
    assert catalogue.default_batch_size("torchbench", "dcgan", "inference") == 256
    assert catalogue.default_batch_size("huggingface", "BertForMaskedLM", "training") == 16
    assert catalogue.default_batch_size("toy", "pass", "training") is None


def test_what_a_library_has_beyond_the_tables_needs_a_batch_size():
    assert catalogue.needs_batch_size("timm", "lcnet_100")
    assert not catalogue.needs_batch_size("timm", "lcnet_050")
    assert not catalogue.needs_batch_size("torchbench", "dcgan")
    assert not catalogue.needs_batch_size("theirs", "x")


def test_only_toys_that_finish_at_once_run_inline():
    assert catalogue.runs_inline("toy", "pass.3")
    assert not catalogue.runs_inline("toy", "hang")
    assert not catalogue.runs_inline("torchbench", "dcgan")


def test_a_backend_is_one_of_torchs_or_unlike_them(monkeypatch):
    assert catalogue.backend_problem("inducto") == "torch has no backend 'inducto' (did you mean 'inductor'?)"
    assert [name for name in ("inductor", "aot_eager", "cudagraphs", "hidet", "onnxrt") if catalogue.backend_problem(name)] == []
    monkeypatch.setattr(catalogue, "_installed", lambda group: {"inductor2"} if group == "torch_dynamo_backends" else set())
    assert catalogue.backend_problem("inductor2") is None

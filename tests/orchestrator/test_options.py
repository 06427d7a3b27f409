"""Which options a model takes: a slip is told from what only a build can judge."""

from __future__ import annotations

import pytest

from orchestrator import options
from orchestrator.options import option_problems


def problems(key, given, source=None):
    return [message for _, message in option_problems(*key.split("/"), source, given)]


@pytest.mark.parametrize(
    ("key", "option", "message"),
    [
        ("torchbench/dcgan", "bogus", "torchbench/dcgan has no option 'bogus'; it has none"),
        ("torchbench/resnet18", "imge_size", "torchbench/resnet18 has no option 'imge_size' (did you mean 'image_size'?)"),
        ("torchbench/hf_Bert", "seqlen", "no option 'seqlen' (did you mean 'seq_len'?)"),
        ("timm/lcnet_050", "imge_size", "timm/lcnet_050 has no option 'imge_size' (did you mean 'image_size'?)"),
        ("timm/lcnet_050", "zzz", "timm/lcnet_050 has no option 'zzz'; it has image_size"),
        ("toy/pass.3", "eagerms", "toy/pass.3 has no option 'eagerms' (did you mean 'eager_ms'?)"),
        ("toy/fail_eager", "phase", "toy/fail_eager has no option 'phase'; it has none"),
        ("huggingface/BertForMaskedLM", "seq_length", "no option 'seq_length' (did you mean 'seq_len'?)"),
    ],
)
def test_an_option_that_a_model_does_not_have_comes_with_the_nearest_or_with_all(key, option, message):
    assert problems(key, {option: 3}) == [message]


@pytest.mark.parametrize(
    ("key", "given", "message"),
    [
        ("timm/lcnet_050", {"image_size": "big"}, "the option 'image_size' must be an integer of at least 1, got 'big'"),
        ("torchbench/pytorch_unet", {"height": 0}, "the option 'height' must be an integer of at least 1, got 0"),
        ("huggingface/T5Small", {"seq_len": True}, "the option 'seq_len' must be an integer of at least 1, got true"),
        ("toy/pass", {"eager_ms": "fast"}, "option 'eager_ms' must be a number, not 'fast'"),
        ("toy/crash", {"phase": "lunch"}, "option 'phase' must be one of start, build, eager, compile, verify, time, write, not 'lunch'"),
    ],
)
def test_a_value_that_no_model_can_take(key, given, message):
    assert problems(key, given) == [message]


def test_a_configuration_knows_what_transformers_knows(tmp_path, monkeypatch):
    (tmp_path / "transformers/models/bert").mkdir(parents=True)
    (tmp_path / "transformers/__init__.py").write_text("raise AssertionError('imported')\n")
    (tmp_path / "transformers/configuration_utils.py").write_text("    num_labels: int = 2\n")
    (tmp_path / "transformers/models/bert/configuration_bert.py").write_text('    num_hidden_layers: int = 12\n    map = {"n_layer": 1}\n')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(options.importlib.util, "find_spec", options.importlib.machinery.PathFinder.find_spec)
    options._configurations.cache_clear()

    assert problems("huggingface/BertForMaskedLM", {"num_hidden_layers": 2, "num_labels": 3, "n_layer": 4, "seq_len": 64}) == []
    assert problems("torchbench/hf_Bert", {"num_hiden_layers": 2}) == [
        "no configuration of transformers has 'num_hiden_layers' (did you mean 'num_hidden_layers'?)"
    ]
    options._configurations.cache_clear()


def test_without_transformers_a_build_decides(monkeypatch):
    monkeypatch.setattr(options, "_configurations", lambda: ())

    assert problems("huggingface/BertForMaskedLM", {"num_hiden_layers": 2}) == []


def test_a_checkout_has_one_option_and_others_check_their_own():
    assert problems("torchbench/dcgan", {"checkout": "/srv"}, "checkout") == []
    assert problems("torchbench/dcgan", {"chekout": "/srv"}, "checkout") != []
    assert problems("theirs/x", {"whatever": 1}) == []

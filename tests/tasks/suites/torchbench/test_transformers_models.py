from __future__ import annotations

import pytest
import torch

from tasks.dropout import NEGLIGIBLE_RATE
from tasks.spec import ModelSpec, PrecisionSpec
from tasks.step import prepare
from tasks.suites.loader import load
from tests.tasks.suites.fake import fake_tensors

CPU = torch.device("cpu")
TINY_GPT2 = {"seq_len": 8, "n_layer": 1, "n_embd": 16, "n_head": 2, "vocab_size": 50}
TINY_BIGBIRD = {
    "num_hidden_layers": 1,
    "hidden_size": 24,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "vocab_size": 50,
    "block_size": 2,
}


def build(name, mode="training", batch_size=None, **options):
    return load(ModelSpec("torchbench", name, batch_size=batch_size, options=options), mode, CPU, 1)


@pytest.mark.parametrize(
    ("name", "training", "inference"),
    [
        ("hf_Albert", (8, 512), (1, 512)),
        ("hf_Bart", (4, 512), (1, 512)),
        ("hf_BigBird", (2, 1024), (1, 4096)),
        ("hf_GPT2", (4, 512), (1, 1024)),
        ("hf_Longformer", (2, 1024), (1, 4096)),
        ("hf_Reformer", (4, 4096), (1, 4096)),
        ("hf_T5", (8, 1024), (1, 2048)),
    ],
)
def test_inputs_have_torchbenchs_shapes(name, training, inference):
    with fake_tensors():
        shapes = [build(name, mode).kwargs["input_ids"].shape for mode in ("training", "inference")]
    assert shapes == [training, inference]


def test_there_are_no_labels_and_the_loss_is_the_mean_of_the_logits():
    benchmark = build("hf_GPT2", batch_size=2, **TINY_GPT2)
    assert set(benchmark.kwargs) == {"input_ids"}
    outputs = benchmark.module(**benchmark.kwargs)
    assert outputs.loss is None
    torch.testing.assert_close(benchmark.loss(outputs), outputs.logits.mean())


def test_a_sequence_to_sequence_model_gets_tokens_for_both_sides():
    benchmark = build("hf_T5", batch_size=2, seq_len=8, d_model=16, num_layers=1, num_heads=2)
    assert set(benchmark.kwargs) == {"input_ids", "decoder_input_ids"}
    assert not torch.equal(*benchmark.kwargs.values())


def test_dropout_is_there_as_configured_and_negligible_in_what_is_timed():
    benchmark = build("hf_GPT2", batch_size=1, **TINY_GPT2)

    def rates():
        return {part.p for part in benchmark.module.modules() if isinstance(part, torch.nn.Dropout)}

    assert rates() == {0.1}
    prepare(benchmark, "training", PrecisionSpec("float32"), "none", CPU)
    assert rates() == {NEGLIGIBLE_RATE}


@pytest.mark.parametrize("mode", ["training", "inference"])
def test_reformer_is_always_in_train_mode_and_others_are_not(mode):
    with fake_tensors():
        assert build("hf_Reformer", mode).module.training
        assert build("hf_DistilBert", mode).module.training is (mode == "training")


@pytest.mark.parametrize("autocast", [False, True])
def test_block_sparse_attention_steps_in_both_precisions(autocast):
    benchmark = build("hf_BigBird", batch_size=1, seq_len=32, **TINY_BIGBIRD)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        outputs = benchmark.module(**benchmark.kwargs)
    assert benchmark.module.config.attention_type == "block_sparse"  # a sequence too short for it would have changed that
    benchmark.loss(outputs).backward()

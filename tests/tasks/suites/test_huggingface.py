from __future__ import annotations

import pytest
import torch

from tasks.spec import ModelSpec
from tasks.suites.benchmark import BuildRequest, UnsupportedModelError
from tasks.suites.huggingface import configure
from tasks.suites.huggingface_configs import CONFIGS, FIDELITY
from tasks.suites.loader import load
from tasks.suites.reference import HUGGINGFACE
from tests.tasks.suites.fake import fake_tensors

CPU = torch.device("cpu")
TINY = {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 50}
TINY_BART = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}


def tiny(name, mode="training", batch_size=2, **options):
    return load(ModelSpec("huggingface", name, batch_size=batch_size, options=options), mode, CPU, 1)


def at_full_size(name, mode="training", device=CPU):
    with fake_tensors():
        return load(ModelSpec("huggingface", name), mode, device, 1)


def test_a_masked_language_model_gets_tokens_and_labels_of_the_vocabulary():
    benchmark = tiny("BertForMaskedLM", batch_size=40, seq_len=20, **TINY)
    assert set(benchmark.kwargs) == {"input_ids", "labels"}
    for tokens in benchmark.kwargs.values():
        assert tokens.shape == (40, 20)
        assert (tokens.min(), tokens.max(), tokens.dtype) == (0, 49, torch.int64)


def test_the_loss_is_the_models_own():
    benchmark = tiny("BertForMaskedLM", seq_len=8, **TINY)
    outputs = benchmark.module(**benchmark.kwargs)
    expected = torch.nn.functional.cross_entropy(outputs.logits.flatten(0, 1), benchmark.kwargs["labels"].flatten())
    torch.testing.assert_close(benchmark.loss(outputs), expected)


def test_labels_are_given_in_inference_too():
    benchmark = tiny("BertForMaskedLM", mode="inference", seq_len=8, **TINY)
    assert not benchmark.module.training
    assert "labels" in benchmark.kwargs


def test_question_answering_gets_positions():
    benchmark = tiny("BertForQuestionAnswering", batch_size=100, seq_len=4, **TINY)
    for key in ("start_positions", "end_positions"):
        assert benchmark.kwargs[key].shape == (100,)
        assert (benchmark.kwargs[key].min(), benchmark.kwargs[key].max()) == (0, 3)


def test_classification_gets_one_label_per_sequence_and_a_padding_token():
    benchmark = tiny("GPT2ForSequenceClassification", seq_len=8, n_layer=1, n_embd=16, n_head=2, vocab_size=50)
    assert benchmark.kwargs["labels"].tolist() == [0, 0]
    assert benchmark.module.config.pad_token_id == 0


def test_roberta_reads_zeros_that_are_padding():
    benchmark = tiny("RobertaForCausalLM", seq_len=8, **TINY)
    assert benchmark.kwargs["input_ids"].count_nonzero() == 0
    assert benchmark.module.config.pad_token_id == 0


def test_the_bart_family_ends_with_its_end_of_sequence():
    benchmark = tiny("BartForConditionalGeneration", seq_len=8, **TINY_BART)
    assert benchmark.kwargs["input_ids"][:, -1].tolist() == [2, 2]
    assert "decoder_input_ids" not in benchmark.kwargs


def test_t5_decodes_what_it_encodes():
    benchmark = tiny("T5ForConditionalGeneration", seq_len=8, d_model=16, num_layers=1, num_heads=2, vocab_size=50)
    assert torch.equal(benchmark.kwargs["decoder_input_ids"], benchmark.kwargs["input_ids"])


def test_dropout_stays_as_an_operator_that_drops_nothing():
    benchmark = tiny("BertForMaskedLM", seq_len=8, **TINY)
    rates = {module.p for module in benchmark.module.modules() if isinstance(module, torch.nn.Dropout)}
    assert rates == {1e-30}
    first, again = (benchmark.module(**benchmark.kwargs).loss for _ in range(2))
    assert torch.equal(first, again)


def test_layer_drop_and_caching_are_off():
    config = tiny("BartForCausalLM", seq_len=8, **TINY_BART).module.config
    assert (config.decoder_layerdrop, config.use_cache) == (1e-30, False)


def test_an_option_reaches_the_configuration_under_either_of_its_names():
    assert tiny("GPT2LMHeadModel", seq_len=8, num_hidden_layers=1, n_embd=16, n_head=2).module.config.n_layer == 1


def test_an_unknown_option_names_the_nearest():
    with pytest.raises(ValueError, match=r"unknown option 'hiden_size' .did you mean 'hidden_size'"):
        tiny("BertForMaskedLM", hiden_size=8)


@pytest.mark.parametrize("seq_len", [0, "long", True])
def test_a_length_is_a_positive_integer(seq_len):
    with pytest.raises(ValueError, match="seq_len must be a positive integer"):
        tiny("BertForMaskedLM", seq_len=seq_len, **TINY)


def test_any_other_class_works_but_needs_a_batch_size():
    benchmark = tiny("ErnieForMaskedLM", **TINY, max_position_embeddings=30)
    assert benchmark.kwargs["input_ids"].shape == (2, 30)
    benchmark.loss(benchmark.module(**benchmark.kwargs)).backward()
    with pytest.raises(ValueError, match="no default batch size"):
        tiny("ErnieForMaskedLM", batch_size=None, **TINY)


def test_a_modern_decoder_works():
    benchmark = tiny("LlamaForCausalLM", seq_len=8, **TINY, num_key_value_heads=1, head_dim=8)
    benchmark.loss(benchmark.module(**benchmark.kwargs)).backward()


def test_whisper_hears_half_a_minute_and_writes_labels():
    tiny_layers = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    benchmark = tiny("WhisperForConditionalGeneration", seq_len=8, **tiny_layers)
    assert benchmark.kwargs["input_features"].shape == (2, 80, 3000)
    assert benchmark.kwargs["labels"].shape == (2, 8)
    benchmark.loss(benchmark.module(**benchmark.kwargs)).backward()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("NoSuchModelForMaskedLM", "has no model class NoSuchModelForMaskedLM"),
        ("BertForTokenClassification", "known heads: ForMaskedLM"),
        ("ViTForImageClassification", "known heads"),
        ("Speech2TextForConditionalGeneration", "reads input_features"),
    ],
)
def test_what_has_no_inputs_here_is_unsupported(name, message):
    with pytest.raises(UnsupportedModelError, match=message):
        tiny(name)


def test_mt5_has_one_table_of_embeddings_and_an_output_layer_of_its_own():
    module = at_full_size("MT5ForConditionalGeneration").module
    assert module.encoder.embed_tokens is module.decoder.embed_tokens is module.shared
    assert module.lm_head.weight is not module.shared.weight


def test_the_substitute_for_speech2text2_has_its_layers():
    # From the paper's widths: embedding, 6 layers of two attentions, a feed-forward net and three norms; the output layer is tied.
    width, inner = 256, 2048
    attention = 4 * (width * width + width)
    layer = 2 * attention + (width * inner + inner) + (inner * width + width) + 3 * 2 * width
    module = at_full_size("Speech2Text2ForCausalLM").module
    assert sum(parameter.numel() for parameter in module.parameters()) == 10000 * width + 6 * layer


def test_a_fourier_transform_keeps_out_of_half_precision():
    benchmark = tiny("GoogleFnet", seq_len=6, num_hidden_layers=1, hidden_size=12, intermediate_size=16, vocab_size=50)
    transforms = [module.fourier_transform for module in benchmark.module.modules() if hasattr(module, "fourier_transform")]
    assert len(transforms) == 1
    hidden = torch.randn(2, 6, 12)
    for dtype, tolerance in ((torch.float16, 1e-1), (torch.bfloat16, 1e0), (torch.float32, 1e-4), (torch.float64, 1e-10)):
        expected = torch.fft.fftn(hidden.double(), dim=(1, 2))
        assert (transforms[0](hidden.to(dtype)) - expected).abs().max() < tolerance
    assert transforms[0](hidden.double()).dtype == torch.complex128  # an accuracy reference stays one


@pytest.mark.parametrize("name", ["DebertaForMaskedLM", "DebertaForQuestionAnswering"])
def test_deberta_masks_its_scores_under_float16(name):
    benchmark = tiny(name, seq_len=8, num_hidden_layers=1, vocab_size=100, hidden_size=48, intermediate_size=64, num_attention_heads=4)
    with torch.autocast("cpu", torch.float16):
        loss = benchmark.loss(benchmark.module(**benchmark.kwargs))
    loss.backward()
    assert loss.isfinite()
    assert benchmark.loss(benchmark.module.double()(**benchmark.kwargs)).dtype == torch.float64  # an accuracy reference stays one


def test_all_of_xlnet_is_on_its_device():
    module = load(ModelSpec("huggingface", "XLNetLMHeadModel", 1, options={"n_layer": 1}), "training", torch.device("meta"), 1).module
    assert {tensor.device.type for tensor in (*module.parameters(), *module.buffers())} == {"meta"}


def test_tolerances_are_those_of_the_historical_harness():
    training = at_full_size("AlbertForQuestionAnswering")
    inference = at_full_size("RobertaForQuestionAnswering", "inference")
    on_cpu = at_full_size("LayoutLMForSequenceClassification", "inference")
    assert (training.tolerance, inference.tolerance, on_cpu.tolerance) == (2e-2, 4e-3, 5e-3)
    assert at_full_size("AlbertForQuestionAnswering", "inference").tolerance is None
    assert "2e-02" in training.tolerance_reason or "0.02" in training.tolerance_reason


def test_every_name_of_a_table_is_one_of_the_46():
    assert {entry.config for entry in HUGGINGFACE.values() if entry.config} == set(CONFIGS)
    assert set(FIDELITY) <= set(HUGGINGFACE)


def test_a_configuration_that_overrules_its_arguments_is_overruled():
    from transformers import MT5Config

    request = BuildRequest("MT5ForConditionalGeneration", "training", CPU)
    assert configure(request, MT5Config, {"tie_word_embeddings": False}).tie_word_embeddings is False

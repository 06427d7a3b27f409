"""The TorchBench models that are transformers': eleven language models, and two later ones, from configurations written out here.

Inputs are uniform random token ids and nothing else, as in 2022: no labels, and for sequence-to-sequence models a second draw as the
decoder's input. The loss is the mean of the logits. Dropout is built as the configuration has it; the step that is timed makes its rates
negligible, as those of every other model (``tasks.dropout``).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from tasks.suites.benchmark import Benchmark, BuildRequest
from tasks.suites.huggingface import configure
from tasks.suites.huggingface_configs import CONFIGS
from tasks.suites.torchbench.library import assemble
from tasks.suites.torchbench.rebuilt import batch_size_of


@dataclass(frozen=True, slots=True)
class _LanguageModel:
    """``seq_len`` and ``eval_seq_len`` are in tokens; ``always_train``: TorchBench's harness never runs the model in eval mode."""

    model_class: str
    seq_len: int
    eval_seq_len: int
    config: dict[str, Any] = field(default_factory=dict)
    always_train: bool = False


_MODELS = {
    "hf_Albert": _LanguageModel(
        "AlbertForMaskedLM",
        512,
        512,
        {
            "hidden_size": 768,
            "num_attention_heads": 12,
            "intermediate_size": 3072,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        },
    ),
    "hf_Bart": _LanguageModel(
        "BartForConditionalGeneration",
        512,
        512,
        {
            "d_model": 768,
            "encoder_layers": 6,
            "decoder_layers": 6,
            "encoder_attention_heads": 12,
            "decoder_attention_heads": 12,
            "encoder_ffn_dim": 3072,
            "decoder_ffn_dim": 3072,
        },
    ),
    "hf_Bert": _LanguageModel("BertForMaskedLM", 512, 512),
    # Not BERT-large: TorchBench leaves the feed-forward layers at the width that they have in BERT-base.
    "hf_Bert_large": _LanguageModel(
        "BertForMaskedLM", 512, 512, {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 3072}
    ),
    "hf_BigBird": _LanguageModel("BigBirdForMaskedLM", 1024, 4096, {"attention_type": "block_sparse"}),
    "hf_DistilBert": _LanguageModel("DistilBertForMaskedLM", 512, 512),
    "hf_GPT2": _LanguageModel("GPT2LMHeadModel", 512, 1024),
    "hf_GPT2_large": _LanguageModel("GPT2LMHeadModel", 512, 1024, {"n_embd": 1280, "n_layer": 36, "n_head": 20}),
    "hf_Longformer": _LanguageModel("LongformerForMaskedLM", 1024, 4096, CONFIGS["longformer-base-4096"]),
    "hf_Reformer": _LanguageModel("ReformerForMaskedLM", 4096, 4096, {"num_buckets": 128}, always_train=True),
    "hf_T5": _LanguageModel("T5ForConditionalGeneration", 1024, 2048, CONFIGS["t5-small"]),
    "hf_T5_base": _LanguageModel(
        "T5ForConditionalGeneration",
        1024,
        2048,
        {"d_model": 768, "d_ff": 3072, "num_layers": 12, "num_heads": 12, "decoder_start_token_id": 0},
    ),
    "hf_T5_large": _LanguageModel(
        "T5ForConditionalGeneration",
        512,
        512,
        {"d_model": 1024, "d_ff": 4096, "num_layers": 24, "num_heads": 16, "decoder_start_token_id": 0},
    ),
}


def build_language_model(request: BuildRequest) -> Benchmark:
    """Token ids int64 [batch, seq_len]; options are ``seq_len`` and any scalar attribute of the configuration."""
    import transformers

    facts = _MODELS[request.name]
    model_class = getattr(transformers, facts.model_class)
    config = configure(request, model_class.config_class, facts.config)
    module = model_class(config).train(request.training or facts.always_train)
    if request.device.type == "cpu":
        _give_block_masks_the_autocast_dtype(module)
    batch_size = batch_size_of(request)
    seq_len = request.integer_option("seq_len", facts.seq_len if request.training else facts.eval_seq_len)
    inputs = {"input_ids": torch.randint(0, config.vocab_size, (batch_size, seq_len))}
    if config.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.randint(0, config.vocab_size, (batch_size, seq_len))
    return assemble(request, module, batch_size, kwargs=inputs, loss=mean_of_logits)


def mean_of_logits(outputs: Any) -> torch.Tensor:
    """The mean over every logit, in float32."""
    mean: torch.Tensor = outputs["logits"].float().mean()
    return mean


def _give_block_masks_the_autocast_dtype(module: nn.Module) -> None:
    """BigBird scatters attention weights into a tensor of its mask's dtype. CPU autocast leaves the two apart, CUDA's does not."""
    for part in module.modules():
        if type(part).__name__ == "BigBirdBlockSparseAttention":
            part.register_forward_pre_hook(_cast_from_mask)


def _cast_from_mask(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    if not torch.is_autocast_enabled("cpu"):
        return args
    hidden, band_mask, from_mask, *rest = args
    return (hidden, band_mask, from_mask.to(torch.get_autocast_dtype("cpu")), *rest)

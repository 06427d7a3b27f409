"""The TorchBench models that are transformers': eleven language models built from configurations that are written out here.

Inputs are uniform random token ids and nothing else, as in 2022: no labels, and for sequence-to-sequence models a second draw as the
decoder's input. The loss is the mean of the logits. Dropout stays as the configuration has it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from tasks.suites.benchmark import Benchmark, BuildRequest
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
    "hf_BigBird": _LanguageModel("BigBirdForMaskedLM", 1024, 4096, {"attention_type": "block_sparse"}),
    "hf_DistilBert": _LanguageModel("DistilBertForMaskedLM", 512, 512),
    "hf_GPT2": _LanguageModel("GPT2LMHeadModel", 512, 1024),
    "hf_GPT2_large": _LanguageModel("GPT2LMHeadModel", 512, 1024, {"n_embd": 1280, "n_layer": 36, "n_head": 20}),
    "hf_Longformer": _LanguageModel("LongformerForMaskedLM", 1024, 4096, CONFIGS["longformer-base-4096"]),
    "hf_Reformer": _LanguageModel("ReformerForMaskedLM", 4096, 4096, {"num_buckets": 128}, always_train=True),
    "hf_T5": _LanguageModel("T5ForConditionalGeneration", 1024, 2048, CONFIGS["t5-small"]),
    "hf_T5_large": _LanguageModel(
        "T5ForConditionalGeneration",
        512,
        512,
        {"d_model": 1024, "d_ff": 4096, "num_layers": 24, "num_heads": 16, "decoder_start_token_id": 0},
    ),
}


def build_language_model(request: BuildRequest) -> Benchmark:
    """Token ids int64 [batch, seq_len]; the option ``seq_len`` sets another length."""
    import transformers

    request.check_options(("seq_len",))
    facts = _MODELS[request.name]
    model_class = getattr(transformers, facts.model_class)
    config = model_class.config_class(**facts.config)
    config.use_cache = False
    module = model_class(config).train(request.training or facts.always_train)
    batch_size = batch_size_of(request)
    seq_len = request.integer_option("seq_len", facts.seq_len if request.training else facts.eval_seq_len)
    inputs = {"input_ids": torch.randint(0, config.vocab_size, (batch_size, seq_len))}
    if config.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.randint(0, config.vocab_size, (batch_size, seq_len))
    return assemble(request, module, batch_size, loss=mean_of_logits, **inputs)


def mean_of_logits(outputs: Any) -> torch.Tensor:
    """The mean over every logit, in float32."""
    mean: torch.Tensor = outputs["logits"].float().mean()
    return mean

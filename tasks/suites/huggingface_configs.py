"""Configurations written out where a historical name meant a checkpoint's configuration, so that none is fetched from a hub.

The values are the checkpoints' published hyper-parameters. Those that equal the library's default today are written out all the same:
defaults move with the library, checkpoints do not. Standard library only.
"""

from __future__ import annotations

from typing import Any

CONFIGS: dict[str, dict[str, Any]] = {
    "camembert-base": {
        "vocab_size": 32005,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "max_position_embeddings": 514,
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-5,
        "pad_token_id": 1,
        "bos_token_id": 5,
        "eos_token_id": 6,
    },
    "conv-bert-base": {
        "vocab_size": 30522,
        "hidden_size": 768,
        "embedding_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "head_ratio": 2,
        "conv_kernel_size": 9,
        "num_groups": 1,
    },
    "distilgpt2": {"vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 6, "n_head": 12},
    "fnet-base": {
        "vocab_size": 32000,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "intermediate_size": 3072,
        "max_position_embeddings": 512,
        "type_vocab_size": 4,
        "use_tpu_fourier_optimizations": False,
        "pad_token_id": 3,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "longformer-base-4096": {
        "vocab_size": 50265,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "max_position_embeddings": 4098,
        "type_vocab_size": 1,
        "attention_window": 512,
        "layer_norm_eps": 1e-5,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "sep_token_id": 2,
    },
    # MT5's output layer has weights of its own (arXiv 2010.11934); the default configuration said so until transformers 5.
    "mt5-small": {"tie_word_embeddings": False},
    # The decoder of arXiv 2104.06678, in the words of TrOCR's configuration.
    "speech2text2": {
        "vocab_size": 10000,
        "d_model": 256,
        "decoder_layers": 6,
        "decoder_attention_heads": 4,
        "decoder_ffn_dim": 2048,
        "activation_function": "relu",
        "max_position_embeddings": 1024,
        "scale_embedding": True,
        "use_learned_position_embeddings": False,
        "layernorm_embedding": False,
        "cross_attention_hidden_size": 256,
    },
    "t5-small": {
        "vocab_size": 32128,
        "d_model": 512,
        "d_kv": 64,
        "d_ff": 2048,
        "num_layers": 6,
        "num_heads": 8,
        "decoder_start_token_id": 0,
    },
}

FIDELITY: dict[str, str] = {
    "GoogleFnet": "under autocast the Fourier transform runs in float32: half precision has no transform for these lengths",
    "Speech2Text2ForCausalLM": "TrOCR's decoder, the same architecture, with Speech2Text2's configuration: the class has left transformers",
}

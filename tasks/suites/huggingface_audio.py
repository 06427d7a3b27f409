"""Inputs of the huggingface suite's speech models: Whisper, which reads the log-mel spectrogram of half a minute of sound."""

from __future__ import annotations

from typing import Any

import torch

_POSITIONS_PER_FRAME_PAIR = 2  # the second convolution of the encoder halves the number of frames


def reads_features(model_class: Any) -> bool:
    """Whether ``features`` fit the model."""
    return bool(model_class.main_input_name == "input_features" and model_class.__name__.startswith("Whisper"))


def features(config: Any, batch_size: int) -> dict[str, torch.Tensor]:
    """``input_features`` float32 [batch, mel bins, frames], normal; as many frames as the encoder has positions for."""
    frames = config.max_source_positions * _POSITIONS_PER_FRAME_PAIR
    return {"input_features": torch.randn(batch_size, config.num_mel_bins, frames)}

"""Speaker verification: the LSTM encoder of Wan et al., arXiv 1710.10467, with the projections of Sak et al., arXiv 1402.1128."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from tasks.suites.benchmark import Benchmark, BuildRequest
from tasks.suites.torchbench.rebuilt import assemble, batch_size_of

_MEL_BANDS = 40
_FRAMES = 50


class ProjectedLstm(nn.Module):
    """Sequences [B, T, in] -> [B, T, out]: an LSTM and a linear map of its hidden states.

    The projection is not fed back into the recurrence, unlike ``nn.LSTM(proj_size=...)``.
    """

    def __init__(self, input_size: int, hidden_size: int, projection_size: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(input_size, hidden_size, batch_first=True)
        self.projection = nn.Linear(hidden_size, projection_size, bias=False)

    def forward(self, sequence: torch.Tensor) -> torch.Tensor:
        # On every call, as the original does: weights moved or replaced since are laid out for cuDNN again, and compilers must cope.
        self.lstm.flatten_parameters()
        hidden, _ = self.lstm(sequence)
        result: torch.Tensor = self.projection(hidden)
        return result


class SpeakerEncoder(nn.Module):
    """Mel spectrograms [B, T, 40] -> embeddings [B, 256] of unit length, taken from the last frame."""

    def __init__(self, input_size: int = _MEL_BANDS, hidden_size: int = 768, projection_size: int = 256, layers: int = 3) -> None:
        super().__init__()
        sizes = [input_size] + [projection_size] * (layers - 1)
        self.layers = nn.Sequential(*(ProjectedLstm(size, hidden_size, projection_size) for size in sizes))
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_normal_(parameter)
            else:
                nn.init.zeros_(parameter)

    def forward(self, spectrograms: torch.Tensor) -> torch.Tensor:
        return functional.normalize(self.layers(spectrograms)[:, -1], p=2.0, dim=1)


def build_tts_angular(request: BuildRequest) -> Benchmark:
    """Random spectrograms; option ``frames`` is their length."""
    request.check_options(("frames",))
    batch_size = batch_size_of(request)
    frames = request.integer_option("frames", _FRAMES)
    return assemble(
        request,
        SpeakerEncoder(),
        (torch.rand(batch_size, frames, _MEL_BANDS),),
        batch_size,
        fidelity="random spectrograms in place of speech; train mode in inference too, as in the historical harness",
        always_train=True,
    )

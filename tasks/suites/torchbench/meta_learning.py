"""Meta-learning: the four-layer convolutional learner of Finn, Abbeel and Levine, arXiv 1703.03400, on 28x28 characters.

The sweep steps this network as it is. The inner loop, with its gradients per task or through an optimizer, is no part of it.
"""

from __future__ import annotations

import torch
from torch import nn

from tasks.suites.benchmark import Benchmark, BuildRequest
from tasks.suites.torchbench.rebuilt import assemble, batch_size_of

_WAYS = 5  # classes of a task, with one image each
_RANDOM_IMAGES = "random images in place of Omniglot's"


class OmniglotLearner(nn.Sequential):
    """Images [B, 1, 28, 28] -> logits [B, 5].

    ``track_running_stats`` False normalises by the batch in eval mode too, which a functional copy of the network needs.
    """

    def __init__(self, *, track_running_stats: bool, width: int = 64) -> None:
        layers: list[nn.Module] = []
        channels = 1
        for _ in range(3):
            layers += [
                nn.Conv2d(channels, width, 3),
                nn.BatchNorm2d(width, momentum=1.0, track_running_stats=track_running_stats),
                nn.ReLU(inplace=True),
                nn.MaxPool2d(2),
            ]
            channels = width
        super().__init__(*layers, nn.Flatten(), nn.Linear(width, _WAYS))


def build_maml_omniglot(request: BuildRequest) -> Benchmark:
    """Batch norm keeps the statistics of the last batch; the batch size counts images."""
    request.check_options(())
    batch_size = batch_size_of(request)
    return assemble(
        request, OmniglotLearner(track_running_stats=True), (torch.rand(batch_size, 1, 28, 28),), batch_size, fidelity=_RANDOM_IMAGES
    )


def build_functorch_maml_omniglot(request: BuildRequest) -> Benchmark:
    """Batch norm keeps no statistics; the batch size counts tasks of five images each."""
    request.check_options(())
    batch_size = batch_size_of(request)
    images = torch.rand(batch_size * _WAYS, 1, 28, 28)
    fidelity = f"{_RANDOM_IMAGES}; a batch of {batch_size} is {batch_size * _WAYS} images"
    return assemble(request, OmniglotLearner(track_running_stats=False), (images,), batch_size, fidelity=fidelity)

"""``moco``: momentum contrast of He et al., arXiv 1911.05722, with two ResNet-50 and a queue of 32,000 keys.

Each step updates the key encoder from the query encoder, shuffles the batch for it, and replaces the oldest keys of the queue, all of it
in place and inside the forward pass; the pointer into the queue becomes a Python number. The model is wrapped for data-parallel
training over one process, so gathers and broadcasts run although there is nobody to talk to. Whoever compares two runs has to restore
``state_dict`` and the random generator in between: it holds everything that a step changes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from tasks.suites import torchvision_compat
from tasks.suites.benchmark import Benchmark, BuildRequest, UnsupportedModelError
from tasks.suites.torchbench.rebuilt import assemble, batch_size_of

_SIZE = 224
_DIMENSIONS = 128
_KEYS = 32000
_MOMENTUM = 0.999
_TEMPERATURE = 0.07


class MomentumContrast(nn.Module):
    """Two views [B, 3, H, W] of the same images -> logits [B, 1 + keys], the positive first, and its index, int64 zeros [B].

    ``encoder()`` makes a network [B, 3, H, W] -> [B, dimensions]. ``keys`` has to be a multiple of B.
    """

    queue: torch.Tensor
    pointer: torch.Tensor

    def __init__(
        self,
        encoder: Callable[[], nn.Module],
        dimensions: int = _DIMENSIONS,
        keys: int = _KEYS,
        momentum: float = _MOMENTUM,
        temperature: float = _TEMPERATURE,
    ) -> None:
        super().__init__()
        self.momentum = momentum
        self.temperature = temperature
        self.query_encoder = encoder()
        self.key_encoder = encoder()
        self.key_encoder.load_state_dict(self.query_encoder.state_dict())
        self.key_encoder.requires_grad_(requires_grad=False)
        self.register_buffer("queue", functional.normalize(torch.randn(dimensions, keys), dim=0))
        self.register_buffer("pointer", torch.zeros(1, dtype=torch.int64))

    def forward(self, queries: torch.Tensor, keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        query = functional.normalize(self.query_encoder(queries), dim=1)
        key = self._encode_keys(keys)
        positive = torch.einsum("nc,nc->n", [query, key]).unsqueeze(-1)
        negative = torch.einsum("nc,ck->nk", [query, self.queue.clone().detach()])
        logits = torch.cat([positive, negative], dim=1) / self.temperature
        labels = torch.zeros(logits.size(0), dtype=torch.int64, device=logits.device)
        self._enqueue(key)
        return logits, labels

    @torch.no_grad()
    def _encode_keys(self, images: torch.Tensor) -> torch.Tensor:
        self._follow()
        images, order = shuffle(images)
        key = functional.normalize(self.key_encoder(images), dim=1)
        return unshuffle(key, order)

    @torch.no_grad()
    def _follow(self) -> None:
        """Moves the key encoder's parameters towards the query encoder's (equation 2 of the paper)."""
        for followed, follower in zip(self.query_encoder.parameters(), self.key_encoder.parameters(), strict=True):
            follower.data.mul_(self.momentum).add_(followed.data, alpha=1.0 - self.momentum)

    @torch.no_grad()
    def _enqueue(self, key: torch.Tensor) -> None:
        """Overwrites the oldest keys of the queue by those of all processes and moves the pointer."""
        key = gather(key)
        pointer = int(self.pointer)
        if self.queue.size(1) % key.size(0):
            raise ValueError(f"a queue of {self.queue.size(1)} keys is no multiple of the batch of {key.size(0)}")
        self.queue[:, pointer : pointer + key.size(0)] = key.T
        self.pointer[0] = (pointer + key.size(0)) % self.queue.size(1)


@torch.no_grad()
def gather(x: torch.Tensor) -> torch.Tensor:
    """The tensors of all processes, joined along the first axis."""
    parts = [torch.ones_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, x, async_op=False)
    return torch.cat(parts, dim=0)


@torch.no_grad()
def shuffle(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """This process's share of all images in a random order, and the order that undoes it (section 3.3 of the paper)."""
    everything = gather(images)
    order = torch.randperm(everything.size(0), device=images.device)
    dist.broadcast(order, src=0)
    share = order.view(dist.get_world_size(), -1)[dist.get_rank()]
    return everything[share], torch.argsort(order)


@torch.no_grad()
def unshuffle(x: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """This process's rows in their original order."""
    everything = gather(x)
    share = order.view(dist.get_world_size(), -1)[dist.get_rank()]
    return everything[share]


def join_process_group(device: torch.device) -> None:
    """A default process group of this process alone, without a port: NCCL on CUDA, Gloo elsewhere. An existing group is kept.

    Raises:
        UnsupportedModelError: torch was built without ``torch.distributed`` or without the backend.
    """
    if not dist.is_available():
        raise UnsupportedModelError("moco needs torch.distributed, and this torch was built without it")
    if dist.is_initialized():
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    if not (dist.is_nccl_available() if backend == "nccl" else dist.is_gloo_available()):
        raise UnsupportedModelError(f"moco on {device.type} needs torch.distributed with {backend}, and this torch was built without it")
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]


def build_moco(request: BuildRequest) -> Benchmark:
    """Two views [B, 3, 224, 224]; ``ValueError`` unless B divides the 32,000 keys of the queue."""
    request.check_options(())
    batch_size = batch_size_of(request)
    if _KEYS % batch_size:
        raise ValueError(f"{request.name}: batch_size must divide the queue's {_KEYS} keys, {batch_size} does not")
    join_process_group(request.device)
    module = DistributedDataParallel(MomentumContrast(resnet50), init_sync=False)  # there is no other process to agree with
    args = (torch.randn(batch_size, 3, _SIZE, _SIZE), torch.randn(batch_size, 3, _SIZE, _SIZE))
    return assemble(request, module, args, batch_size, fidelity=None)


def resnet50() -> nn.Module:
    """ResNet-50 whose last layer gives 128 features."""
    torchvision_compat.prepare()
    from torchvision.models import resnet50 as build

    network: nn.Module = build(weights=None, num_classes=_DIMENSIONS)
    return network

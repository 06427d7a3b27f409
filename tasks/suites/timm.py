"""The timm suite: any name that ``timm.create_model`` knows, with random weights.

The 61 names of the reference sweep have their sizes in ``reference.TIMM``, which also maps the names that timm has changed since.
Images are random bytes, normalised by their own mean and deviation, at the size of the model's data configuration (its training size in
training, its test size in inference) or of the option ``image_size``. The loss is the mean of the logits. Dropout is off and every
stochastic-depth path is kept.
"""

from __future__ import annotations

import difflib
from typing import Any

import torch
from torch import nn

from tasks.suites.benchmark import Benchmark, BuildRequest, UnsupportedModelError, mean_of_outputs
from tasks.suites.reference import TIMM, TimmEntry

_LOSS_SCALE = 1000.0


def build(request: BuildRequest) -> Benchmark:
    """Build ``request.name``: one of the 61, or any name that timm knows.

    Raises:
        UnsupportedModelError: timm has no such model.
        ValueError: an option is unknown or does not fit, or a model outside the 61 comes without a batch size.
    """
    request.check_options(("image_size",))
    entry = TIMM.get(request.name)
    module = _module(request, entry).train(request.training)
    batch_size = request.batch_size_or(entry.default_batch_size(request.mode) if entry else None)
    return Benchmark(
        module=module,
        args=(random_images(batch_size, *_input_size(request, module)),),
        kwargs={},
        loss=scaled_mean_of_outputs if entry and entry.scaled_loss else mean_of_outputs,
        batch_size=batch_size,
        source="library",
        fidelity=entry.fidelity if entry else None,
        **_tolerance(request, entry),
    )


def scaled_mean_of_outputs(outputs: Any) -> torch.Tensor:
    """The mean of the outputs over 1000, for models whose gradients are too large to compare otherwise."""
    return mean_of_outputs(outputs) / _LOSS_SCALE


def random_images(batch_size: int, channels: int, height: int, width: int) -> torch.Tensor:
    """Random bytes as float32 [batch, channels, height, width] of mean 0 and standard deviation 1."""
    images = torch.randint(0, 256, (batch_size, channels, height, width)).float()
    return (images - images.mean()) / images.std()


def _module(request: BuildRequest, entry: TimmEntry | None) -> nn.Module:
    import timm

    name = (entry.timm_name if entry else None) or request.name
    if not timm.is_model(name):
        raise UnsupportedModelError(f"timm {timm.__version__} has no model {name}{_nearest(name)}")
    size = {"img_size": request.options["image_size"]} if _sized_at_construction(request, name) else {}
    module: nn.Module = timm.create_model(name, pretrained=False, drop_rate=0.0, **size)
    _keep_every_path(module)
    return module


def _sized_at_construction(request: BuildRequest, name: str) -> bool:
    """Whether the model has to know another image size when it is built; convolutional ones take any."""
    import timm

    return "image_size" in request.options and bool(timm.get_pretrained_cfg(name).fixed_input_size)


def _keep_every_path(module: nn.Module) -> None:
    for part in module.modules():
        if isinstance(getattr(part, "drop_prob", None), float):
            part.drop_prob = 0.0  # type: ignore[assignment]


def _input_size(request: BuildRequest, module: nn.Module) -> tuple[int, int, int]:
    """Channels, height and width."""
    from timm.data import resolve_data_config

    channels, height, width = resolve_data_config({}, model=module, use_test_size=not request.training)["input_size"]
    entry = TIMM.get(request.name)
    if entry and entry.test_size and not request.training:
        height = width = entry.test_size
    if "image_size" in request.options:
        height = width = request.integer_option("image_size", height)
    return channels, height, width


def _nearest(name: str) -> str:
    import timm

    near = difflib.get_close_matches(name, timm.list_models(), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _tolerance(request: BuildRequest, entry: TimmEntry | None) -> dict[str, Any]:
    if entry is None or entry.training_tolerance is None or not request.training:
        return {}
    reason = f"pytorch/benchmarks/dynamo allows this model {entry.training_tolerance:g} in training"
    return {"tolerance": entry.training_tolerance, "tolerance_reason": reason}

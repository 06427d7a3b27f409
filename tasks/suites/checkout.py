"""``source: checkout``: the torchbench suite from a real TorchBench checkout instead of this project's own builders.

The checkout is a directory that holds the package ``torchbenchmark``; the option ``checkout`` or the environment variable
``TORCHBENCH_ROOT`` names it. Its models are asked for their module and inputs, as the historical harness asked; the loss is the mean of
the outputs. The class ``Model`` may have the signature of 2022 (with ``jit``) or today's.

TorchBench changes what belongs to the process: the search path, the working directory, process groups. That is why this runs in a
worker of its own and in nothing else. The data and weights that a model wants must be there already: nothing is fetched.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from torch.utils import _pytree as pytree

from tasks.suites.benchmark import Benchmark, BuildRequest, UnsupportedModelError, mean_of_outputs
from tasks.suites.torchbench import EXTRA, MODELS

ROOT_VARIABLE = "TORCHBENCH_ROOT"
_PACKAGES = ("torchbenchmark.models", "torchbenchmark.canary_models", "torchbenchmark.models.fb")
_ALWAYS_TRAIN = {"demucs", "hf_Reformer", "modded_nanogpt", "pytorch_struct", "tacotron2", "tts_angular", "yolov3"}
_ALWAYS_EVAL = {"vision_maskrcnn"}
_OWN_BATCH_SIZE = {"pytorch_struct", "pyhpc_turbulent_kinetic_energy", "vision_maskrcnn"}  # though they do not say so
_OMNIGLOT_BATCH_SIZE = 5
_YOLO_IMAGE = (3, 384, 512)
_DETECTIONS_PER_IMAGE = 4
_NOT_INSTALLED = re.compile(r"install\.py|No such file|\b(?:data|datasets?|checkpoints?)\b")
_GATED = ("HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN", "gated repo")


def build(request: BuildRequest) -> Benchmark:
    """``request.name`` out of the checkout, in float32.

    Raises:
        UnsupportedModelError: there is no checkout, it has no such model, or the model lacks a package, data, a token or this mode.
        ValueError: an option is unknown.
    """
    request.check_options(("checkout",))
    root = find_root(request)
    _enter(root)
    with _failures_as_unsupported(request), torch.device("cpu"), _private_process_groups():
        model_class = _import_model(request.name).Model
        asked_for = _batch_size(request, model_class)
        made = _construct(model_class, request, asked_for)
        module, inputs = made.get_module()
        args, kwargs = _split(_replaced_inputs(request, inputs, getattr(made, "batch_size", None)))
    batch_size = _actual_batch_size(made, [*args, *kwargs.values()])
    train = request.training and request.name not in _ALWAYS_EVAL
    return Benchmark(
        module=_in_float32(module).train(train or request.name in _ALWAYS_TRAIN),
        args=args,
        kwargs=kwargs,
        loss=scalar_loss,
        batch_size=batch_size,
        source="checkout",
        fidelity=f"TorchBench {revision(root)}" + ("" if asked_for else f"; batch size {batch_size} is TorchBench's own choice"),
    )


def find_root(request: BuildRequest) -> Path:
    """The checkout's directory; ``UnsupportedModelError`` if none is named or it is no checkout."""
    named = request.options.get("checkout") or os.environ.get(ROOT_VARIABLE)
    if not named:
        message = f"source: checkout needs a TorchBench checkout: set the environment variable {ROOT_VARIABLE} or the option checkout"
        raise UnsupportedModelError(message)
    root = Path(str(named)).expanduser().resolve()
    if not (root / "torchbenchmark").is_dir():
        raise UnsupportedModelError(f"{root} is no TorchBench checkout: it has no directory torchbenchmark")
    return root


def revision(root: Path) -> str:
    """The commit of the checkout, shortened, and whether files that it tracks were changed."""
    try:
        commit = _git(root, "rev-parse", "--short=8", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return "of an unknown commit"
    return f"{commit} with changes" if changed else commit


def scalar_loss(outputs: Any) -> torch.Tensor:
    """The historical harness's loss: the mean of the logits where there are any, else of every output; of a distribution its mean's sum."""
    logits = getattr(outputs, "logits", None)
    if isinstance(logits, torch.Tensor):
        return logits.float().mean()
    if type(outputs).__name__ == "SquashedNormal":
        total: torch.Tensor = outputs.mean.sum()
        return total
    return mean_of_outputs(outputs)


def _enter(root: Path) -> None:
    """TorchBench's code finds itself by the search path and its data by the working directory."""
    if str(root) not in sys.path:
        sys.path.append(str(root))
    os.chdir(root)
    os.environ.setdefault("KALDI_ROOT", "/tmp")  # noqa: S108 - speech_transformer wants the variable, not the directory


def _import_model(name: str) -> ModuleType:
    for package in _PACKAGES:
        candidate = f"{package}.{name}"
        try:
            return importlib.import_module(candidate)
        except ModuleNotFoundError as error:
            if not _is_or_holds(error.name, candidate):
                raise  # the model is there, something that it needs is not
    raise UnsupportedModelError(f"this TorchBench checkout has no model {name}")


def _is_or_holds(missing: str | None, candidate: str) -> bool:
    return missing is not None and missing != "torchbenchmark" and (candidate == missing or candidate.startswith(f"{missing}."))


def _batch_size(request: BuildRequest, model_class: Any) -> int | None:
    """What to ask the model for; None leaves it to the model."""
    if not getattr(model_class, "ALLOW_CUSTOMIZE_BSIZE", True) or request.name in _OWN_BATCH_SIZE:
        return None
    if request.batch_size is not None:
        return request.batch_size
    entry = MODELS.get(request.name) or EXTRA.get(request.name)
    return entry.default_batch_size(request.mode) if entry else None


def _construct(model_class: Any, request: BuildRequest, batch_size: int | None) -> Any:
    known = inspect.signature(model_class.__init__).parameters  # the class's own: its metaclass overrides the signature of a call
    arguments: dict[str, Any] = {"test": "train" if request.training else "eval", "device": request.device.type, "batch_size": batch_size}
    if "jit" in known:
        arguments["jit"] = False
    if "extra_args" in known:
        arguments["extra_args"] = []
    if "model_kwargs" in known and request.name == "vision_maskrcnn":
        arguments["model_kwargs"] = {"box_detections_per_img": _DETECTIONS_PER_IMAGE}
    return model_class(**arguments)


def _replaced_inputs(request: BuildRequest, inputs: Any, batch_size: int | None) -> Any:
    """What the historical harness put in the place of a model's own inputs."""
    if request.name == "yolov3":
        return (torch.rand(batch_size or 1, *_YOLO_IMAGE, device=request.device),)
    if request.name == "maml_omniglot":
        return tuple(tensor[:_OMNIGLOT_BATCH_SIZE] for tensor in inputs)
    if request.name.startswith("basic_gnn_"):
        return pytree.tree_map_only(torch.Tensor, _as_leaf, inputs)
    return inputs


def _as_leaf(tensor: torch.Tensor) -> torch.Tensor:
    return torch.nn.Parameter(tensor.detach(), requires_grad=tensor.is_floating_point())


def _split(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    inputs = pytree.tree_map_only(torch.Tensor, _tensor_in_float32, inputs)
    if isinstance(inputs, dict):
        return (), dict(inputs)
    return (tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)), {}


def _in_float32(module: torch.nn.Module) -> torch.nn.Module:
    """TorchBench gives some models in half precision; a float64 model stays one."""
    halves = {parameter.dtype for parameter in module.parameters()} & {torch.float16, torch.bfloat16}
    return module.float() if halves else module


def _tensor_in_float32(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _actual_batch_size(made: Any, inputs: list[Any]) -> int:
    size = getattr(made, "batch_size", None)
    if isinstance(size, int) and not isinstance(size, bool):
        return size
    return next((len(value) for value in inputs if isinstance(value, torch.Tensor) and value.ndim > 0), 1)


@contextlib.contextmanager
def _failures_as_unsupported(request: BuildRequest) -> Iterator[None]:
    """What a checkout lacks is this machine's state and not the model's failure. Running out of memory, and all else, stays what it is."""
    where = f"TorchBench's {request.name}"
    try:
        yield
    except NotImplementedError as error:
        raise UnsupportedModelError(f"{where} cannot do {request.mode} on {request.device.type}: {error or 'not implemented'}") from error
    except ImportError as error:
        raise UnsupportedModelError(f"{where} is not installed: {error}; run its install.py, or install what it needs") from error
    except (AssertionError, OSError, RuntimeError, ValueError) as error:
        text = str(error)
        if any(sign in text for sign in _GATED):
            raise UnsupportedModelError(f"{where} is gated: it wants a token of its hub: {text}") from error
        if isinstance(error, (AssertionError, OSError)) and _NOT_INSTALLED.search(text):
            raise UnsupportedModelError(f"{where} lacks data: {text}; run its install.py") from error
        raise


@contextlib.contextmanager
def _private_process_groups() -> Iterator[None]:
    """Models that open a process group do so on a fixed port, where two of them on one machine would meet. A store in memory serves one."""
    distributed = torch.distributed
    if not distributed.is_available():
        yield
        return
    original = distributed.init_process_group

    def alone(backend: str | None = None, *_: Any, **__: Any) -> None:
        original(backend=backend, store=distributed.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]

    with mock.patch.object(distributed, "init_process_group", alone):
        yield


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()

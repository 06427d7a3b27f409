"""Every model of the reference sweep builds, has its number of parameters, and takes a training step in float32 and in AMP."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from torch.utils import _pytree as pytree

from tasks.spec import ModelSpec
from tasks.suites.benchmark import UnsupportedModelError
from tasks.suites.loader import load
from tasks.suites.reference import HUGGINGFACE, TIMM
from tasks.suites.torchbench import MODELS
from tests.tasks.suites.fake import fake_tensors
from tests.tasks.suites.parameter_counts import PARAMETERS

CPU = torch.device("cpu")
META = torch.device("meta")
SEED = 1337
CATALOGUE = [f"{suite}/{name}" for suite, names in (("huggingface", HUGGINGFACE), ("timm", TIMM), ("torchbench", MODELS)) for name in names]
OPTIONAL_PACKAGES = {"torchbench/timm_efficientdet": "effdet"}


@dataclass(frozen=True)
class RealData:
    """Why a model's step needs real numbers, and at which size it then runs."""

    reason: str
    options: dict[str, int] = field(default_factory=dict)
    batch_size: int | None = 1


SMALL_LONGFORMER = {"seq_len": 64, "num_hidden_layers": 2, "attention_window": 32}
NEED_REAL_DATA = {
    "huggingface/AllenaiLongformerBase": RealData("asks whether any token attends globally", SMALL_LONGFORMER),
    "torchbench/hf_Longformer": RealData("asks whether any token attends globally", SMALL_LONGFORMER),
    "torchbench/fastNLP_Bert": RealData("pads to the longest sentence in word pieces"),
    "torchbench/moco": RealData("reads the queue's position"),
    "torchbench/speech_transformer": RealData("strips and pads each target sequence", batch_size=None),
    "torchbench/tacotron2": RealData("packs sequences by their lengths", {"mel_frames": 8}),
    "torchbench/timm_efficientdet": RealData("matches anchors and boxes"),
    "torchbench/vision_maskrcnn": RealData(
        "selects boxes by score and overlap", {"min_size": 96, "max_size": 128, "rpn_post_nms_top_n_test": 20}
    ),
}
NEED_OPERATORS = ("torchbench/timm_efficientdet", "torchbench/vision_maskrcnn")  # whose detection operators have no kernel without data
ONE_PER_FAMILY = [
    "huggingface/BertForMaskedLM",
    "huggingface/GoogleFnet",
    "huggingface/T5Small",
    "timm/lcnet_050",
    "timm/visformer_small",
    "torchbench/hf_DistilBert",
    "torchbench/resnet18",
]


def build(task, batch_size=None, options=None, device=CPU):
    suite, name = task.split("/")
    try:
        return load(ModelSpec(suite, name, batch_size=batch_size, options=options or {}), "training", device, SEED)
    except UnsupportedModelError as error:
        package = OPTIONAL_PACKAGES.get(task)
        if package is None or f"pip install {package}" not in str(error):
            raise
        pytest.skip(f"{package} is an optional package and not installed")


def assert_steps(benchmark, autocast=None):
    benchmark.module.zero_grad()
    with torch.autocast("cpu", autocast, enabled=autocast is not None):
        loss = benchmark.loss(benchmark.module(*benchmark.args, **benchmark.kwargs))
    loss.backward()
    assert loss.shape == ()
    gradients = [parameter.grad for parameter in benchmark.module.parameters() if parameter.grad is not None]
    assert gradients
    assert {gradient.dtype for gradient in gradients} == {torch.float32}
    return loss


def assert_model_works(task):
    with fake_tensors():
        benchmark = build(task)
        assert sum(parameter.numel() for parameter in benchmark.module.parameters()) == PARAMETERS[task]
        assert {parameter.dtype for parameter in benchmark.module.parameters()} == {torch.float32}
        if task not in NEED_REAL_DATA:
            for autocast in (None, torch.float16):  # as the sweep has it
                assert_steps(benchmark, autocast)
            return
    small = NEED_REAL_DATA[task]
    benchmark = build(task, small.batch_size, small.options)
    for autocast in (None, torch.bfloat16):  # the arithmetic of float16 takes a CPU minutes
        assert torch.isfinite(assert_steps(benchmark, autocast))


def test_the_reference_sweep_has_163_models():
    assert (len(HUGGINGFACE), len(TIMM), len(MODELS)) == (46, 61, 56)
    assert set(CATALOGUE) == set(PARAMETERS)


@pytest.mark.parametrize("task", ONE_PER_FAMILY)
def test_one_model_per_family_works(task):
    assert_model_works(task)


@pytest.mark.models
@pytest.mark.parametrize("task", [task for task in CATALOGUE if task not in ONE_PER_FAMILY])
def test_every_model_works(task):
    assert_model_works(task)


def tensors_of(benchmark):
    """All of a model's: parameters, buffers, what its parts hold as plain attributes, and the inputs."""
    attributes = [vars(part) for part in benchmark.module.modules()]
    plain = [{name: value for name, value in held.items() if name not in ("_parameters", "_buffers", "_modules")} for held in attributes]
    held = (*benchmark.module.parameters(), *benchmark.module.buffers(), plain, benchmark.args, benchmark.kwargs)
    return [leaf for leaf in pytree.tree_leaves(held) if isinstance(leaf, torch.Tensor)]


@pytest.mark.models
@pytest.mark.parametrize("task", [task for task in CATALOGUE if task not in NEED_OPERATORS])
def test_all_of_a_model_is_on_its_device(task):
    assert {tensor.device.type for tensor in tensors_of(build(task, device=META))} == {"meta"}

"""What holds for every small rebuilt model: parameters, shapes at the historical batch, and a finite training step at a small one."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import import_module

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from tasks.spec import Scalar
from tasks.suites.benchmark import Benchmark, BuildRequest
from tasks.suites.torchbench import EXTRA, MODELS

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Expected:
    parameters: int
    inputs: list[tuple[int, ...]]
    outputs: list[tuple[int, ...]]
    small_batch: int = 2
    small_options: dict[str, Scalar] = field(default_factory=dict)
    real: bool = True  # fits into a test without FakeTensorMode


EXPECTED = {
    "dcgan": Expected(2_765_568, [(32, 3, 64, 64)], [(32, 1, 1, 1)]),
    "dlrm": Expected(514_499_137, [(1024, 512), (8, 1024)], [(1024, 1)], small_options={"table_rows": 500}),
    "drq": Expected(3_094_392, [(1, 9, 84, 84)], [(1, 1)]),
    "functorch_maml_omniglot": Expected(75_205, [(5, 1, 28, 28)], [(5, 5)]),
    "LearningToPaint": Expected(11_209_857, [(96, 9, 128, 128)], [(96, 65)]),
    "lennard_jones": Expected(865, [(1000, 1)], [(1000, 1)]),
    "maml_omniglot": Expected(75_205, [(5, 1, 28, 28)], [(5, 5)]),
    "nvidia_deeprecommender": Expected(204_475_711, [(256, 197_951)], [(256, 197_951)], real=False),
    "phlippe_densenet": Expected(239_146, [(128, 3, 32, 32)], [(128, 10)]),
    "phlippe_resnet": Expected(272_378, [(128, 3, 32, 32)], [(128, 10)]),
    "pytorch_CycleGAN_and_pix2pix": Expected(11_378_179, [(1, 3, 256, 256)], [(1, 3, 256, 256)], real=False),
    "pytorch_stargan": Expected(8_430_528, [(16, 3, 128, 128), (16, 5)], [(16, 3, 128, 128)], small_batch=1),
    "pytorch_struct": Expected(2_824_192, [(40, 29)], [(40, 29, 30), (40, 30, 60, 60), (40, 30)], small_batch=10),
    "pytorch_unet": Expected(17_267_458, [(1, 3, 640, 959)], [(1, 2, 640, 959)], small_options={"height": 32, "width": 47}),
    "soft_actor_critic": Expected(1_055_746, [(256, 3)], [(256, 1)]),
    "tts_angular": Expected(9_381_888, [(64, 50, 40)], [(64, 256)], small_options={"frames": 5}),
}
ALWAYS_TRAINING = {"pytorch_struct", "tts_angular"}
REAL = [name for name, expected in EXPECTED.items() if expected.real]


def build(name: str, mode: str = "training", batch_size: int | None = None, options: dict[str, Scalar] | None = None) -> Benchmark:
    module, function = (MODELS | EXTRA)[name].builder.split(":")
    builder = getattr(import_module(f"tasks.suites.torchbench.{module}"), function)
    torch.manual_seed(0)
    with CPU:
        benchmark: Benchmark = builder(BuildRequest(name, mode, CPU, batch_size, options or {}))
    return benchmark


def tensors_of(outputs: object) -> list[torch.Tensor]:
    if isinstance(outputs, torch.distributions.Distribution):
        return [outputs.mean]
    return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, torch.Tensor)]


@pytest.mark.parametrize("name", EXPECTED)
def test_parameters_shapes_and_gradients_at_the_historical_batch(name):
    expected = EXPECTED[name]
    with FakeTensorMode():
        benchmark = build(name)
        outputs = benchmark.module(*benchmark.args, **benchmark.kwargs)
        loss = benchmark.loss(outputs)
        loss.backward()
    assert sum(parameter.numel() for parameter in benchmark.module.parameters()) == expected.parameters
    assert [tuple(leaf.shape) for leaf in benchmark.args if isinstance(leaf, torch.Tensor)] == expected.inputs
    assert [tuple(output.shape) for output in tensors_of(outputs)] == expected.outputs
    assert loss.shape == ()
    assert all(parameter.grad is not None for parameter in benchmark.module.parameters())
    assert benchmark.batch_size == (MODELS | EXTRA)[name].batch_size
    assert benchmark.source == "rebuilt"


@pytest.mark.parametrize("amp", [False, True], ids=["float32", "amp"])
@pytest.mark.parametrize("name", REAL)
def test_a_training_step_is_finite(name, amp):
    expected = EXPECTED[name]
    benchmark = build(name, batch_size=expected.small_batch, options=expected.small_options)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=amp):
        loss = benchmark.loss(benchmark.module(*benchmark.args, **benchmark.kwargs))
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    gradients = [
        parameter.grad.coalesce().values() if parameter.grad.is_sparse else parameter.grad for parameter in benchmark.module.parameters()
    ]
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert any(gradient.abs().max() > 0 for gradient in gradients)


@pytest.mark.parametrize("name", EXPECTED)
def test_inference_uses_eval_mode_unless_the_harness_did_not_and_its_own_batch(name):
    with FakeTensorMode():
        training, inference = build(name), build(name, "inference")
    assert training.module.training
    assert {module.training for module in inference.module.modules()} == {name in ALWAYS_TRAINING}
    assert inference.batch_size == (MODELS | EXTRA)[name].eval_batch_size


@pytest.mark.parametrize("name", EXPECTED)
def test_unknown_options_and_empty_batches_are_refused(name):
    with FakeTensorMode():
        with pytest.raises(ValueError, match="unknown option 'sequence_length'"):
            build(name, options={"sequence_length": 3})
        with pytest.raises(ValueError, match="batch_size must be at least 1"):
            build(name, batch_size=0)


@pytest.mark.parametrize("value", [0, -1, True, "3", 2.0, None])
def test_sizes_must_be_positive_integers(value):
    with pytest.raises(ValueError, match="option frames must be a positive integer"):
        build("tts_angular", options={"frames": value})


def test_a_seed_makes_weights_and_inputs():
    first, second = build("dcgan", batch_size=2), build("dcgan", batch_size=2)
    assert torch.equal(first.args[0], second.args[0])
    assert all(torch.equal(one, two) for one, two in zip(first.module.parameters(), second.module.parameters(), strict=True))

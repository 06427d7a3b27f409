from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from tasks.spec import ModelSpec
from tasks.suites.benchmark import BuildRequest, UnsupportedModelError
from tasks.suites.loader import load
from tasks.suites.torchbench.scientific import build_lennard_jones
from tasks.suites.torchbench.seawater import enthalpy_slope

CPU = torch.device("cpu")
FIELD, SLOPES, LEVELS = (204, 204, 26), (204, 204, 26, 2, 2), (204, 204, 26, 3)
KERNELS = {
    "pyhpc_equation_of_state": (3, [FIELD]),
    "pyhpc_isoneutral_mixing": (23, [FIELD] * 3 + [SLOPES] * 4),
    "pyhpc_turbulent_kinetic_energy": (21, [LEVELS, LEVELS, (204, 204)]),
}


def test_the_potential_is_its_formula_on_evenly_spaced_distances():
    torch.manual_seed(0)
    benchmark = build_lennard_jones(BuildRequest("lennard_jones", "training", CPU, batch_size=6))
    (distances,) = benchmark.args
    torch.testing.assert_close(distances, torch.tensor([[0.5], [0.6], [0.7], [0.8], [0.9], [1.0]]))
    layers = [layer for layer in benchmark.module if isinstance(layer, torch.nn.Linear)]
    hidden = distances
    for layer in layers[:-1]:
        hidden = torch.tanh(hidden @ layer.weight.T + layer.bias)
    energies = hidden @ layers[-1].weight.T + layers[-1].bias
    torch.testing.assert_close(benchmark.module(distances), energies)
    torch.testing.assert_close(benchmark.loss(energies), energies.sum() / 6)


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernels_arrays_at_the_historical_size(name):
    arguments, shapes = KERNELS[name]
    with FakeTensorMode():
        benchmark = load(ModelSpec("torchbench", name), "inference", CPU, 0)
        outputs = benchmark.module(*benchmark.args)
    assert len(benchmark.args) == arguments
    assert benchmark.batch_size == 1_048_576
    assert [tuple(output.shape) for output in (outputs if isinstance(outputs, tuple) else (outputs,))] == shapes
    assert not list(benchmark.module.parameters())
    assert {argument.dtype for argument in benchmark.args if argument.is_floating_point()} == {torch.float64}


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernels_results_are_finite_and_repeat(name):
    benchmark = load(ModelSpec("torchbench", name, batch_size=2000), "inference", CPU, 0)
    first, second = (benchmark.module(*benchmark.args) for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert benchmark.loss(first).isfinite()


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_cannot_be_trained(name):
    with pytest.raises(UnsupportedModelError, match="nothing to train"):
        load(ModelSpec("torchbench", name), "training", CPU, 0)


def test_the_equation_of_state_takes_salinity_temperature_and_pressure():
    benchmark = load(ModelSpec("torchbench", "pyhpc_equation_of_state", batch_size=512), "inference", CPU, 0)
    assert [tuple(argument.shape) for argument in benchmark.args] == [(16, 16, 2), (16, 16, 2), (1, 1, 2)]
    torch.testing.assert_close(benchmark.module(*benchmark.args), enthalpy_slope(*benchmark.args))

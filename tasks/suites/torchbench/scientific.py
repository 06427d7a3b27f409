"""Scientific computing: a neural interatomic potential and three kernels of an ocean model.

* ``lennard_jones``: the small fully connected network that stands in for a pair potential, distance in, energy out. It is bound by
  launch overhead alone. TorchBench's own training loop also fits forces by differentiating the network twice; the sweep steps the
  network only.
* ``pyhpc_equation_of_state``, ``pyhpc_isoneutral_mixing``, ``pyhpc_turbulent_kinetic_energy``: the kernels of ``seawater``,
  ``isoneutral`` and ``turbulence`` on random float64 fields. They have no parameters, so there is inference only. The batch size is
  the approximate number of grid cells.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from tasks.suites.benchmark import Benchmark, BuildRequest, UnsupportedModelError
from tasks.suites.torchbench.isoneutral import IsoneutralMixing
from tasks.suites.torchbench.rebuilt import assemble, batch_size_of
from tasks.suites.torchbench.seawater import enthalpy_slope
from tasks.suites.torchbench.turbulence import TurbulentKineticEnergy

_HIDDEN_WIDTH = 16
_HIDDEN_LAYERS = 4
_DISTANCES = (0.5, 1.0)
_OCEAN_FIDELITY = "written from the published equations and run on random fields; float64 in every precision"


class PairPotential(nn.Sequential):
    """Distances [N, 1] -> energies [N, 1]; tanh after each hidden layer."""

    def __init__(self) -> None:
        layers: list[nn.Module] = []
        width = 1
        for _ in range(_HIDDEN_LAYERS):
            layers += [nn.Linear(width, _HIDDEN_WIDTH), nn.Tanh()]
            width = _HIDDEN_WIDTH
        super().__init__(*layers, nn.Linear(width, 1))


class EquationOfState(nn.Module):
    """Salinity [X, Y, Z], temperature [X, Y, Z] and pressure [1, 1, Z] -> dynamic enthalpy's derivative by temperature [X, Y, Z]."""

    def forward(self, salinity: torch.Tensor, temperature: torch.Tensor, pressure: torch.Tensor) -> torch.Tensor:
        return enthalpy_slope(salinity, temperature, pressure)


def build_lennard_jones(request: BuildRequest) -> Benchmark:
    """Evenly spaced distances; the batch size is their number."""
    request.check_options(())
    batch_size = batch_size_of(request)
    distances = torch.linspace(*_DISTANCES, batch_size).unsqueeze(1)
    return assemble(request, PairPotential(), (distances,), batch_size)


def build_pyhpc_equation_of_state(request: BuildRequest) -> Benchmark:
    """Random seawater at the pressures of the upper kilometre."""
    batch_size, shape = _ocean(request)
    args = (_uniform(0.01, 40, shape), _uniform(-2, 30, shape), _uniform(0, 1000, (1, 1, shape[2])))
    return assemble(request, EquationOfState(), args, batch_size, fidelity=_OCEAN_FIDELITY)


def build_pyhpc_isoneutral_mixing(request: BuildRequest) -> Benchmark:
    """Random masks, metrics and tracers: 23 arrays."""
    batch_size, shape = _ocean(request)
    slopes = (*shape, 2, 2)
    args = (
        *(_random_mask(shape) for _ in range(4)),
        *_random_metrics(shape),
        _uniform(30, 40, (*shape, 3)),
        _uniform(-2, 20, (*shape, 3)),
        _uniform(-1000, 0, shape[2:]),
        _uniform(0, 1000, shape),
        *(torch.zeros(shape, dtype=torch.float64) for _ in range(3)),
        *(torch.zeros(slopes, dtype=torch.float64) for _ in range(4)),
    )
    return assemble(request, IsoneutralMixing(), args, batch_size, fidelity=_OCEAN_FIDELITY)


def build_pyhpc_turbulent_kinetic_energy(request: BuildRequest) -> Benchmark:
    """Random masks, metrics, currents and energy: 21 arrays."""
    batch_size, shape = _ocean(request)
    levels = (*shape, 3)
    args = (
        *(_uniform(-0.1, 0.1, levels) for _ in range(3)),
        *(_random_mask(shape) for _ in range(3)),
        *_random_metrics(shape),
        torch.randint(0, shape[2], shape[:2]),
        _uniform(0, 0.1, shape),
        _uniform(0.1, 10, shape),
        _uniform(0, 1e-4, shape),
        _uniform(0, 1e-4, shape[:2]),
        _uniform(0, 1e-2, levels),
        _uniform(-1e-4, 1e-4, levels),
    )
    return assemble(request, TurbulentKineticEnergy(), args, batch_size, fidelity=_OCEAN_FIDELITY)


def _ocean(request: BuildRequest) -> tuple[int, tuple[int, int, int]]:
    """The batch size and the grid of about that many cells, eight times as wide as deep."""
    request.check_options(())
    if request.training:
        raise UnsupportedModelError(f"{request.name} has no parameters: there is nothing to train; run it with mode inference")
    batch_size = batch_size_of(request)
    side = batch_size ** (1 / 3)
    return batch_size, (math.ceil(2 * side), math.ceil(2 * side), math.ceil(0.25 * side))


def _random_metrics(shape: tuple[int, int, int]) -> list[torch.Tensor]:
    """Cell widths dxt and dxu, dyt and dyu, thicknesses dzt and dzw in m, and the cosines cost and cosu of the latitude."""
    sizes = [(1e4, 1e5, shape[0])] * 2 + [(1e4, 1e5, shape[1])] * 2 + [(10, 100, shape[2])] * 2 + [(0.1, 1, shape[1])] * 2
    return [_uniform(low, high, (count,)) for low, high, count in sizes]


def _random_mask(shape: tuple[int, ...]) -> torch.Tensor:
    return (torch.rand(shape) > 0.1).double()


def _uniform(low: float, high: float, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.rand(shape, dtype=torch.float64) * (high - low) + low

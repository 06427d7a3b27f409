from __future__ import annotations

import numpy as np
import pytest
import torch

from tasks.suites.torchbench.seawater import density, density_slopes, enthalpy_slope

# The example that TEOS-10 publishes with the 48-term expression, and its densities.
SALINITY = torch.tensor([34.7118, 34.8915, 35.0256, 34.8472, 34.7366, 34.7324], dtype=torch.float64)
TEMPERATURE = torch.tensor([28.8099, 28.4392, 22.7862, 10.2262, 6.8272, 4.3236], dtype=torch.float64)
PRESSURE = torch.tensor([10, 50, 125, 250, 600, 1000], dtype=torch.float64)
DENSITY = torch.tensor(
    [1021.840446566116, 1022.262985174925, 1024.427770449335, 1027.790499661129, 1029.837753532120, 1032.002083264508],
    dtype=torch.float64,
)


def test_density_is_the_published_one():
    torch.testing.assert_close(density(SALINITY, TEMPERATURE, PRESSURE), DENSITY, rtol=1e-15, atol=0)


def test_density_slopes_are_the_derivatives():
    salinity, temperature = SALINITY.clone().requires_grad_(), TEMPERATURE.clone().requires_grad_()
    by_salinity, by_temperature = torch.autograd.grad(density(salinity, temperature, PRESSURE).sum(), (salinity, temperature))
    slopes = density_slopes(SALINITY, TEMPERATURE, PRESSURE)
    torch.testing.assert_close(slopes, (by_temperature, by_salinity), rtol=1e-12, atol=0)


@pytest.mark.parametrize("salinity", [0.01, 10.0, 40.0])
@pytest.mark.parametrize("temperature", [-2.0, 0.0, 30.0])
def test_enthalpys_slope_is_that_of_the_integral_of_volume(salinity, temperature):
    """Gauss and Legendre's quadrature and automatic differentiation, against the closed form."""
    pressure = torch.tensor([0.0, 1.0, 300.0, 1000.0, 4000.0], dtype=torch.float64)
    salt = torch.full_like(pressure, salinity)
    temp = torch.full_like(pressure, temperature).requires_grad_()
    nodes, weights = np.polynomial.legendre.leggauss(20)
    volume = sum(0.5 * weight / density(salt, temp, 0.5 * (node + 1) * pressure) for node, weight in zip(nodes, weights, strict=True))
    (expected,) = torch.autograd.grad((1e4 * pressure * volume).sum(), temp)
    torch.testing.assert_close(enthalpy_slope(salt, temp.detach(), pressure), expected, rtol=1e-8, atol=1e-10)


def test_enthalpys_slope_broadcasts_pressure():
    salt, temp = SALINITY.expand(2, 3, 6), TEMPERATURE.expand(2, 3, 6)
    result = enthalpy_slope(salt, temp, PRESSURE.view(1, 1, 6))
    torch.testing.assert_close(result[1, 2], enthalpy_slope(SALINITY, TEMPERATURE, PRESSURE))

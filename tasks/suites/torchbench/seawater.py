"""Thermodynamics of seawater: the 48-term expression for density of McDougall, Barker, Feistel and Jackett (2013), as in TEOS-10.

Density is a ratio of two polynomials in pressure whose coefficients are polynomials in Conservative Temperature and in the square root
of Absolute Salinity. Units throughout: salinity g/kg, temperature degrees Celsius, sea pressure dbar, density kg/m^3, enthalpy J/kg.
Arguments are float64 tensors that broadcast against each other; salinity is positive.
"""

from __future__ import annotations

import torch

# One coefficient of the powers of pressure: half-powers of salinity -> coefficients of ascending powers of temperature.
Coefficient = dict[int, tuple[float, ...]]

_PASCAL_PER_DECIBAR = 1e4

_NUMERATOR: tuple[Coefficient, ...] = (
    {
        0: (9.998420897506056e2, 2.839940833161907, -3.147759265588511e-2, 1.181805545074306e-3),
        2: (-6.698001071123802, -2.986498947203215e-2, 2.327859407479162e-4),
        3: (-3.988822378968490e-2, 5.095422573880500e-4, -1.426984671633621e-5, 1.645039373682922e-7),
    },
    {
        0: (-2.233269627352527e-2, -3.436090079851880e-4, 3.726050720345733e-6),
        2: (-1.806789763745328e-4, 6.876837219536232e-7),
    },
    {0: (-3.087032500374211e-7, -1.988366587925593e-8, -1.061519070296458e-11), 2: (1.550932729220080e-10,)},
)
_DENOMINATOR: tuple[Coefficient, ...] = (
    {
        0: (1.0, 2.775927747785646e-3, -2.349607444135925e-5, 1.119513357486743e-6, 6.743689325042773e-10),
        2: (-7.521448093615448e-3, -2.764306979894411e-5, 1.262937315098546e-7, 9.527875081696435e-10, -1.811147201949891e-11),
        3: (-3.303308871386421e-5, 3.801564588876298e-7, -7.672876869259043e-9, -4.634182341116144e-11, 2.681097235569143e-12),
        4: (5.419326551148740e-6,),
    },
    {
        0: (-2.742185394906099e-5, -3.212746477974189e-7, 3.191413910561627e-9, -1.931012931541776e-12),
        2: (-1.105097577149576e-7, 6.211426728363857e-10),
    },
    {0: (-1.119011592875110e-10, -1.941660213148725e-11, -1.864826425365600e-14), 2: (0.0, 1.119522344879478e-14)},
    {0: (-1.200507748551599e-15, 6.057902487546866e-17)},
)


def density(salinity: torch.Tensor, temperature: torch.Tensor, pressure: torch.Tensor) -> torch.Tensor:
    """In-situ density."""
    return _in_pressure(_NUMERATOR, salinity, temperature, pressure) / _in_pressure(_DENOMINATOR, salinity, temperature, pressure)


def density_slopes(salinity: torch.Tensor, temperature: torch.Tensor, pressure: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The derivatives of density with respect to temperature and to salinity."""
    numerator = _in_pressure(_NUMERATOR, salinity, temperature, pressure)
    denominator = _in_pressure(_DENOMINATOR, salinity, temperature, pressure)

    def slope(derivative: int) -> torch.Tensor:
        upper = _in_pressure(_NUMERATOR, salinity, temperature, pressure, derivative)
        lower = _in_pressure(_DENOMINATOR, salinity, temperature, pressure, derivative)
        return (upper - numerator / denominator * lower) / denominator

    return slope(_BY_TEMPERATURE), slope(_BY_SALINITY)


def enthalpy_slope(salinity: torch.Tensor, temperature: torch.Tensor, pressure: torch.Tensor) -> torch.Tensor:
    """The derivative with respect to temperature of dynamic enthalpy, the integral of specific volume from pressure 0 to ``pressure``.

    Specific volume is ``(d0 + d1 p + d2 p^2 + d3 p^3) / (n0 + n1 p + n2 p^2)``. Polynomial division leaves ``q0 + q1 p`` and the
    remainder ``r0 + r1 p``, whose integral is a logarithm of the denominator and, its roots being real, one of a ratio of linear terms.
    Each line below is followed by its derivative, marked ``_t``.
    """
    n0, n1, n2 = (_coefficient(table, salinity, temperature) for table in _NUMERATOR)
    n0_t, n1_t, n2_t = (_coefficient(table, salinity, temperature, _BY_TEMPERATURE) for table in _NUMERATOR)
    d0, d1, d2, d3 = (_coefficient(table, salinity, temperature) for table in _DENOMINATOR)
    d0_t, d1_t, d2_t, d3_t = (_coefficient(table, salinity, temperature, _BY_TEMPERATURE) for table in _DENOMINATOR)

    q1 = d3 / n2
    q1_t = (d3_t - q1 * n2_t) / n2
    q0 = (d2 - q1 * n1) / n2
    q0_t = (d2_t - q1_t * n1 - q1 * n1_t - q0 * n2_t) / n2
    r1_t = d1_t - q0_t * n1 - q0 * n1_t - q1_t * n0 - q1 * n0_t
    r1 = d1 - q0 * n1 - q1 * n0
    r0 = d0 - q0 * n0
    r0_t = d0_t - q0_t * n0 - q0 * n0_t

    half = 0.5 * r1 / n2
    half_t = (0.5 * r1_t - half * n2_t) / n2
    rest = r0 - half * n1
    rest_t = r0_t - half_t * n1 - half * n1_t

    ratio = 1 + pressure * (n1 + n2 * pressure) / n0
    ratio_t = (pressure * (n1_t + n2_t * pressure) - (ratio - 1) * n0_t) / n0

    root = torch.sqrt(n1 * n1 - 4 * n0 * n2)
    root_t = (n1 * n1_t - 2 * (n0_t * n2 + n0 * n2_t)) / root
    shift = 2 * n2 * pressure / (n1 + root)
    shift_t = (2 * n2_t * pressure - shift * (n1_t + root_t)) / (n1 + root)
    tilt = 2 * n2 * pressure / (n1 - root)
    tilt_t = (2 * n2_t * pressure - tilt * (n1_t - root_t)) / (n1 - root)
    area = (torch.log1p(tilt) - torch.log1p(shift)) / root
    area_t = (tilt_t / (1 + tilt) - shift_t / (1 + shift) - area * root_t) / root

    polynomial_t = pressure * (q0_t + 0.5 * q1_t * pressure)
    logarithm_t = half_t * torch.log(ratio) + half * ratio_t / ratio
    return _PASCAL_PER_DECIBAR * (polynomial_t + logarithm_t + rest_t * area + rest * area_t)


_VALUE, _BY_TEMPERATURE, _BY_SALINITY = range(3)


def _in_pressure(
    tables: tuple[Coefficient, ...], salinity: torch.Tensor, temperature: torch.Tensor, pressure: torch.Tensor, derivative: int = _VALUE
) -> torch.Tensor:
    result = _coefficient(tables[-1], salinity, temperature, derivative)
    for table in reversed(tables[:-1]):
        result = result * pressure + _coefficient(table, salinity, temperature, derivative)
    return result


def _coefficient(table: Coefficient, salinity: torch.Tensor, temperature: torch.Tensor, derivative: int = _VALUE) -> torch.Tensor:
    result = torch.zeros_like(temperature)
    for half_power, factors in table.items():
        if derivative == _BY_SALINITY:
            if half_power > 0:
                result = result + 0.5 * half_power * _half_power(salinity, half_power - 2) * _horner(factors, temperature)
            continue
        if derivative == _BY_TEMPERATURE:
            factors = tuple(power * factor for power, factor in enumerate(factors))[1:]  # noqa: PLW2901 - the derivative's own factors
        result = result + _half_power(salinity, half_power) * _horner(factors, temperature)
    return result


def _half_power(salinity: torch.Tensor, half_power: int) -> torch.Tensor | float:
    """``salinity ** (half_power / 2)``, by products and at most one square root."""
    if half_power == 0:
        return 1.0
    root = torch.sqrt(salinity) if half_power % 2 else 1.0
    for _ in range(half_power // 2):
        root = root * salinity
    return root


def _horner(factors: tuple[float, ...], argument: torch.Tensor) -> torch.Tensor | float:
    result: torch.Tensor | float = 0.0
    for factor in reversed(factors):
        result = result * argument + factor
    return result

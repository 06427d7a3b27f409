"""Turbulent kinetic energy in an ocean model: one time step of the closure of Gaspar, Gregoris and Lefevre (1990), J. Geophys. Res. 95.

Energy lives on the top faces of cells. It is mixed vertically and dissipated implicitly, mixed horizontally and advected explicitly:
advection with the superbee limiter of Roe (1985), its tendency stepped by the scheme of Adams and Bashforth.
Axes are west to east (x), south to north (y), bottom to top (z) and time level: current, next, previous.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

_TIME_STEP_S = 1.0
_ENERGY_TO_MOMENTUM_MIXING = 1.0
_DISSIPATION = 0.7
_HORIZONTAL_DIFFUSIVITY = 2000.0  # m^2/s
_ADAMS_BASHFORTH_OFFSET = 0.1
_TINY = 1e-20

_EAST, _NORTH, _UP = range(3)
_NOW, _NEXT, _BEFORE = range(3)
_INTERIOR = (slice(2, -2), slice(2, -2))


class TurbulentKineticEnergy(nn.Module):
    """Velocities, masks, metrics, mixing and energy -> energy, its advective tendency, and the flux that keeps the surface positive.

    ``u``, ``v``, ``w``, ``tke`` and ``dtke`` are [X, Y, Z, 3]; masks, ``kappa_m`` (m^2/s), ``mxl`` (m) and ``forc`` (m^2/s^3) are
    [X, Y, Z]; ``kbot``, int64 [X, Y], is the number of the lowest wet cell counted from 1, 0 on land; ``forc_tke_surface`` is [X, Y].
    The first two results are [X, Y, Z, 3], copies of ``tke`` and ``dtke`` with one time level computed anew; the last one is [X, Y].
    """

    def forward(
        self,
        u: torch.Tensor,
        v: torch.Tensor,
        w: torch.Tensor,
        mask_u: torch.Tensor,
        mask_v: torch.Tensor,
        mask_w: torch.Tensor,
        dxt: torch.Tensor,
        dxu: torch.Tensor,
        dyt: torch.Tensor,
        dyu: torch.Tensor,
        dzt: torch.Tensor,
        dzw: torch.Tensor,
        cost: torch.Tensor,
        cosu: torch.Tensor,
        kbot: torch.Tensor,
        kappa_m: torch.Tensor,
        mxl: torch.Tensor,
        forc: torch.Tensor,
        forc_tke_surface: torch.Tensor,
        tke: torch.Tensor,
        dtke: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        energy = tke[..., _NOW]
        thickness = _thickness(dzw)
        spacings = (dxu[:, None, None] * cost[:, None], dyu[:, None], functional.pad(dzt[1:], (0, 1), value=1.0))
        walls = (mask_u, mask_v * cosu[:, None], functional.pad(mask_w[..., :-1], (0, 1)))
        areas = (cost[:, None] * dxt[:, None, None], (cost * dyt)[:, None], thickness)

        mixed = mix_vertically(energy, kappa_m, mxl, forc, forc_tke_surface, dzt, dzw, kbot)
        wet = _wet(kbot, energy.size(2))
        following = torch.where(wet, mixed, tke[..., _NEXT])
        surface = following[..., -1]
        correction = torch.where(surface < 0, -surface * thickness[-1] / _TIME_STEP_S, 0.0)
        following = torch.cat([following[..., :-1], surface.clamp(min=0)[..., None]], dim=-1)

        diffusive = [_HORIZONTAL_DIFFUSIVITY * _gradient(energy, spacings[axis], axis) * walls[axis] for axis in (_EAST, _NORTH)]
        following = following + _TIME_STEP_S * mask_w * _convergence([-flux for flux in diffusive], areas)
        velocities = (u[..., _NOW], v[..., _NOW], w[..., _NOW])
        advective = [superbee_flux(energy, velocities[axis] * walls[axis], spacings[axis], axis) for axis in (_EAST, _NORTH, _UP)]
        tendency = mask_w * _convergence(advective, areas)
        offset = _ADAMS_BASHFORTH_OFFSET
        following = following + _TIME_STEP_S * ((1.5 + offset) * tendency - (0.5 + offset) * dtke[..., _BEFORE])
        return _with_level(tke, following, _NEXT), _with_level(dtke, tendency, _NOW), _interior_only(correction)


def mix_vertically(
    energy: torch.Tensor,
    kappa_m: torch.Tensor,
    mxl: torch.Tensor,
    forc: torch.Tensor,
    forc_tke_surface: torch.Tensor,
    dzt: torch.Tensor,
    dzw: torch.Tensor,
    kbot: torch.Tensor,
) -> torch.Tensor:
    """Energy [X, Y, Z] after one implicit step of forcing, dissipation and vertical mixing; 0 below the bottom."""
    thickness = _thickness(dzw)
    exchange = _TIME_STEP_S * _ENERGY_TO_MOMENTUM_MIXING * 0.5 * (kappa_m[..., :-1] + kappa_m[..., 1:]) / dzt[1:]
    wet, lowest = _wet(kbot, energy.size(2)), _lowest(kbot, energy.size(2))
    below = torch.where(wet & ~lowest, -functional.pad(exchange, (1, 0)) / thickness, 0.0)
    above = torch.where(wet, -functional.pad(exchange, (0, 1)) / thickness, 0.0)
    dissipation = _TIME_STEP_S * _DISSIPATION * energy.clamp(min=0).sqrt() / mxl
    diagonal = torch.where(wet, 1 + dissipation - below - above, 1.0)
    surface = functional.pad(forc_tke_surface[..., None] / thickness[-1], (energy.size(2) - 1, 0))
    known = torch.where(wet, energy + _TIME_STEP_S * (forc + surface), 0.0)
    return solve_tridiagonal(below, diagonal, above, known)


def solve_tridiagonal(below: torch.Tensor, diagonal: torch.Tensor, above: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """The solution along the last axis by the algorithm of Thomas, level by level; ``below[..., 0]`` and ``above[..., -1]`` are unused."""
    factors = [above[..., 0] / diagonal[..., 0]]
    partial = [known[..., 0] / diagonal[..., 0]]
    for level in range(1, known.size(-1)):
        pivot = diagonal[..., level] - below[..., level] * factors[-1]
        factors.append(above[..., level] / pivot)
        partial.append((known[..., level] - below[..., level] * partial[-1]) / pivot)
    solution = [partial[-1]]
    for level in range(known.size(-1) - 2, -1, -1):
        solution.append(partial[level] - factors[level] * solution[-1])
    return torch.stack(solution[::-1], dim=-1)


def superbee_flux(field: torch.Tensor, velocity: torch.Tensor, spacing: torch.Tensor, axis: int) -> torch.Tensor:
    """Flux of ``field`` through the far faces along ``axis``; ``velocity`` is that on these faces, 0 on closed ones."""
    step = _next(field, axis) - field
    upwind = torch.where(velocity > 0, _previous(step, axis), _next(step, axis))
    ratio = upwind / torch.where(step.abs() < _TINY, _TINY, step)
    limiter = torch.maximum((2 * ratio).clamp(max=1), ratio.clamp(max=2)).clamp(min=0)
    courant = velocity.abs() * _TIME_STEP_S / spacing
    return 0.5 * (velocity * (field + _next(field, axis)) - velocity.abs() * (1 - limiter + courant * limiter) * step)


def _convergence(fluxes: list[torch.Tensor], areas: tuple[torch.Tensor, ...]) -> torch.Tensor:
    parts = [(_previous(flux, axis) - flux) / areas[axis] for axis, flux in enumerate(fluxes)]
    return torch.stack(parts).sum(0)


def _gradient(field: torch.Tensor, spacing: torch.Tensor, axis: int) -> torch.Tensor:
    return (_next(field, axis) - field) / spacing


def _next(field: torch.Tensor, axis: int) -> torch.Tensor:
    """The neighbour ahead of each cell; the last cell is its own."""
    return torch.cat([field.narrow(axis, 1, field.size(axis) - 1), field.narrow(axis, field.size(axis) - 1, 1)], dim=axis)


def _previous(field: torch.Tensor, axis: int) -> torch.Tensor:
    """The neighbour behind each cell; behind the first is 0."""
    return torch.cat([torch.zeros_like(field.narrow(axis, 0, 1)), field.narrow(axis, 0, field.size(axis) - 1)], dim=axis)


def _thickness(dzw: torch.Tensor) -> torch.Tensor:
    """What each top face stands for; the surface has water on one side only."""
    return torch.cat([dzw[:-1], 0.5 * dzw[-1:]])


def _wet(kbot: torch.Tensor, levels: int) -> torch.Tensor:
    return (kbot[..., None] > 0) & (torch.arange(levels, device=kbot.device) >= kbot[..., None] - 1)


def _lowest(kbot: torch.Tensor, levels: int) -> torch.Tensor:
    return torch.arange(levels, device=kbot.device) == kbot[..., None] - 1


def _with_level(field: torch.Tensor, values: torch.Tensor, level: int) -> torch.Tensor:
    """A copy of ``field`` with time level ``level`` replaced, but for the two outermost columns on each side."""
    result = field.clone()
    result[(*_INTERIOR, slice(None), level)] = values[_INTERIOR]
    return result


def _interior_only(field: torch.Tensor) -> torch.Tensor:
    result = torch.zeros_like(field)
    result[_INTERIOR] = field[_INTERIOR]
    return result

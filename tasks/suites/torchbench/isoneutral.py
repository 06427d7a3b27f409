"""Mixing along surfaces of neutral density in an ocean model, after Griffies et al. (1998), J. Phys. Oceanogr. 28, 805-830.

Axes are west to east (x), south to north (y) and bottom to top (z). ``mask_t`` marks wet cells; ``mask_u``, ``mask_v`` and ``mask_w``
mark the open faces to the east, to the north and above. Each slope is taken on four *triads*: a cell, one of its two horizontal faces
and one of its two vertical faces. Steep slopes are tapered after Danabasoglu and McWilliams (1995).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from tasks.suites.torchbench.seawater import density_slopes

_TINY = 1e-20
_STEEPEST_SLOPE = 1e-3
_TAPER_WIDTH = 1e-3
_LEAST_DIFFUSIVITY = 50.0  # m^2/s

_EAST, _NORTH, _UP = range(3)
_INTERIOR = slice(1, -1)

Fields = tuple[torch.Tensor, ...]


@dataclass(frozen=True, slots=True)
class Tracers:
    """How density follows temperature and salinity in each cell, and both tracers' gradients through each of its three far faces."""

    by_temperature: torch.Tensor
    by_salinity: torch.Tensor
    temperature_gradients: Fields
    salinity_gradients: Fields


class IsoneutralMixing(nn.Module):
    """Masks, metrics and tracers -> the diffusivities ``K_11, K_22, K_33`` and tapered slopes ``Ai_ez, Ai_nz, Ai_bx, Ai_by``.

    Fields are [X, Y, Z]; ``salt`` and ``temp`` are [X, Y, Z, 3] with the current time level first; the metrics ``dxt`` ... ``cosu``
    and ``zt`` (m) run along one axis; slopes are [X, Y, Z, 2, 2] over the triads' horizontal and vertical sides. The last seven
    arguments are the previous results: copies of them are returned, with all cells but the outermost computed anew.
    """

    def forward(
        self,
        mask_t: torch.Tensor,
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
        salt: torch.Tensor,
        temp: torch.Tensor,
        zt: torch.Tensor,
        k_iso: torch.Tensor,
        *previous: torch.Tensor,
    ) -> Fields:
        masks = (mask_u, mask_v, mask_w)
        distances = (dxu[:, None, None] * cost[:, None], dyu[:, None], dzw)
        tracers = _tracers(salt[..., 0], temp[..., 0], zt, mask_t, masks, distances)
        k_11, ai_ez = _through_sides(tracers, k_iso, mask_u, dzt, dzw, _EAST)
        k_22, ai_nz = _through_sides(tracers, k_iso, mask_v, dzt, dzw, _NORTH)
        from_x, ai_bx = _through_top(tracers, k_iso, mask_w, dxu[:, None, None].expand_as(mask_w), _EAST)
        from_y, ai_by = _through_top(tracers, k_iso, mask_w, (dyu * cosu)[:, None].expand_as(mask_w), _NORTH)
        k_33 = from_x / (4 * dxt[_INTERIOR, None, None]) + from_y / (4 * (dyt * cost)[_INTERIOR, None])
        results = []
        for old, new in zip(previous, (k_11, k_22, k_33, ai_ez, ai_nz, ai_bx, ai_by), strict=True):
            result = old.clone()
            result[_INTERIOR, _INTERIOR] = new
            results.append(result)
        return tuple(results)


def taper(slope: torch.Tensor) -> torch.Tensor:
    """1 for gentle slopes, 0 for steep ones."""
    return 0.5 * (1 + torch.tanh((_STEEPEST_SLOPE - slope.abs()) / _TAPER_WIDTH))


def _tracers(salt: torch.Tensor, temp: torch.Tensor, zt: torch.Tensor, mask_t: torch.Tensor, masks: Fields, distances: Fields) -> Tracers:
    by_temperature, by_salinity = density_slopes(salt, temp, zt.abs())  # a metre of depth is about a decibar
    gradients = [
        tuple(
            mask * (_following(tracer, axis) - tracer) / distance
            for axis, (mask, distance) in enumerate(zip(masks, distances, strict=True))
        )
        for tracer in (temp, salt)
    ]
    return Tracers(by_temperature * mask_t, by_salinity * mask_t, *gradients)


def _through_sides(
    tracers: Tracers, k_iso: torch.Tensor, mask: torch.Tensor, dzt: torch.Tensor, dzw: torch.Tensor, axis: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Diffusivity through the far faces along ``axis``, and the slopes there: [X-2, Y-2, Z] and [X-2, Y-2, Z, 2, 2]."""
    total = torch.zeros_like(_inner(mask))
    slopes: list[list[torch.Tensor]] = [[], []]
    for side in (0, 1):  # the cell on the near side of the face, or the one on the far side
        for level in (0, 1):  # that cell's vertical face below, or above
            slope = _slope(
                (_inner(tracers.by_temperature, axis, side), _inner(tracers.by_salinity, axis, side)),
                (_inner(tracers.temperature_gradients[axis]), _inner(tracers.salinity_gradients[axis])),
                (
                    _inner(_at_level(tracers.temperature_gradients[_UP], level), axis, side),
                    _inner(_at_level(tracers.salinity_gradients[_UP], level), axis, side),
                ),
            )
            k_level = _at_level(k_iso, level)
            diffusivity = 0.5 * (_inner(k_level) + _inner(k_level, axis, 1)) * taper(slope)
            total = total + _at_level(dzw, level) * _inner(mask) * diffusivity.clamp(min=_LEAST_DIFFUSIVITY)
            slopes[side].append(taper(slope) * slope * _inner(mask))
    return total / (4 * dzt), torch.stack([torch.stack(pair, dim=-1) for pair in slopes], dim=-2)


def _through_top(
    tracers: Tracers, k_iso: torch.Tensor, mask_w: torch.Tensor, weight: torch.Tensor, axis: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted sum of the diffusivities through the top faces that slopes along ``axis`` cause, and those slopes."""
    total = torch.zeros_like(_inner(mask_w))
    slopes: list[list[torch.Tensor]] = [[], []]
    for side in (0, 1):  # the horizontal face on the near side of the column, or on the far side
        for level in (0, 1):  # the cell below the top face, or the one above
            slope = _slope(
                (_inner(_above(tracers.by_temperature, level)), _inner(_above(tracers.by_salinity, level))),
                (
                    _inner(_above(tracers.temperature_gradients[axis], level), axis, side - 1),
                    _inner(_above(tracers.salinity_gradients[axis], level), axis, side - 1),
                ),
                (_inner(tracers.temperature_gradients[_UP]), _inner(tracers.salinity_gradients[_UP])),
            )
            total = total + _inner(weight, axis, side - 1) * _inner(k_iso) * taper(slope) * slope**2 * _inner(mask_w)
            slopes[side].append(taper(slope) * slope * _inner(mask_w))
    return total, torch.stack([torch.stack(pair, dim=-1) for pair in slopes], dim=-2)


def _slope(density: Fields, along: Fields, upward: Fields) -> torch.Tensor:
    """Rise over run of the neutral surface of one triad; where the water is unstable, as good as infinite."""
    horizontal = density[0] * along[0] + density[1] * along[1]
    vertical = density[0] * upward[0] + density[1] * upward[1]
    return -horizontal / (vertical.clamp(max=0) - _TINY)


def _inner(field: torch.Tensor, axis: int = _EAST, offset: int = 0) -> torch.Tensor:
    """All but the outermost columns, or their neighbours ``offset`` columns further along ``axis``."""
    moved = slice(1 + offset, field.size(axis) - 1 + offset)
    return field[moved, _INTERIOR] if axis == _EAST else field[_INTERIOR, moved]


def _following(field: torch.Tensor, axis: int) -> torch.Tensor:
    """Each cell's next one along ``axis``; the last cell is its own."""
    return torch.cat([field.narrow(axis, 1, field.size(axis) - 1), field.narrow(axis, field.size(axis) - 1, 1)], dim=axis)


def _at_level(on_top_faces: torch.Tensor, level: int) -> torch.Tensor:
    """The value on each cell's top face (1) or bottom face (0); nothing comes through the bottom of the lowest."""
    return on_top_faces if level == 1 else functional.pad(on_top_faces[..., :-1], (1, 0))


def _above(in_cells: torch.Tensor, level: int) -> torch.Tensor:
    """Each cell's value (0) or that of the cell above (1); above the highest is nothing."""
    return in_cells if level == 0 else functional.pad(in_cells[..., 1:], (0, 1))

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from tasks.spec import ModelSpec
from tasks.suites.loader import load
from tasks.suites.torchbench.isoneutral import IsoneutralMixing, taper
from tasks.suites.torchbench.seawater import density_slopes

CPU = torch.device("cpu")


def small():
    return load(ModelSpec("torchbench", "pyhpc_isoneutral_mixing", batch_size=1000), "inference", CPU, 0)


def weight(slope):
    return 0.5 * (1 + math.tanh((1e-3 - abs(slope)) / 1e-3))


class Loops:
    """The scheme in numpy, one triad at a time."""

    def __init__(self, args):
        slopes = density_slopes(args[12][..., 0], args[13][..., 0], args[14].abs())
        self.mt, self.mu, self.mv, self.mw, *metrics, self.salt, self.temp, _, self.k_iso = (tensor.numpy() for tensor in args[:16])
        self.dxt, self.dxu, self.dyt, self.dyu, self.dzt, self.dzw, self.cost, self.cosu = metrics
        self.by_t, self.by_s = (slope.numpy() * self.mt for slope in slopes)
        self.shape = self.mt.shape

    def gradient(self, field, i, j, k, axis):
        if axis == 0:
            return self.mu[i, j, k] * (field[i + 1, j, k, 0] - field[i, j, k, 0]) / (self.dxu[i] * self.cost[j])
        if axis == 1:
            return self.mv[i, j, k] * (field[i, j + 1, k, 0] - field[i, j, k, 0]) / self.dyu[j]
        if k < 0 or k == self.shape[2] - 1:
            return 0.0
        return self.mw[i, j, k] * (field[i, j, k + 1, 0] - field[i, j, k, 0]) / self.dzw[k]

    def triad(self, cell, side_face, axis, top_face):
        """The slope in ``cell`` between the gradients on a side face and on a top face."""
        rise = self.by_t[cell] * self.gradient(self.temp, *side_face, axis) + self.by_s[cell] * self.gradient(self.salt, *side_face, axis)
        run = self.by_t[cell] * self.gradient(self.temp, *top_face, 2) + self.by_s[cell] * self.gradient(self.salt, *top_face, 2)
        return -rise / (min(run, 0) - 1e-20)

    def inner(self):
        nx, ny, nz = self.shape
        return itertools.product(range(1, nx - 1), range(1, ny - 1), range(nz), (0, 1), (0, 1))

    def through_sides(self, axis):
        mask = (self.mu, self.mv)[axis]
        diffusivity, slopes = np.zeros(self.shape), np.zeros((*self.shape, 2, 2))
        for i, j, k, side, level in self.inner():
            column, far = step(i, j, axis, side), step(i, j, axis, 1)
            slope = self.triad((*column, k), (i, j, k), axis, (*column, k - 1 + level))
            if k - 1 + level >= 0:
                between = 0.5 * (self.k_iso[i, j, k - 1 + level] + self.k_iso[(*far, k - 1 + level)])
                amount = max(50.0, between * weight(slope))
                diffusivity[i, j, k] += self.dzw[k - 1 + level] * mask[i, j, k] * amount / (4 * self.dzt[k])
            slopes[i, j, k, side, level] = weight(slope) * slope * mask[i, j, k]
        return diffusivity, slopes

    def through_top(self, axis):
        diffusivity, slopes = np.zeros(self.shape), np.zeros((*self.shape, 2, 2))
        for i, j, k, side, level in self.inner():
            if k + level == self.shape[2]:
                continue
            column = step(i, j, axis, side - 1)
            slope = self.triad((i, j, k + level), (*column, k + level), axis, (i, j, k))
            west, south = self.dxu[column[0]] / self.dxt[i], self.dyu[column[1]] * self.cosu[column[1]] / (self.dyt[j] * self.cost[j])
            share = (west, south)[axis] / 4
            diffusivity[i, j, k] += share * self.k_iso[i, j, k] * weight(slope) * slope**2 * self.mw[i, j, k]
            slopes[i, j, k, side, level] = weight(slope) * slope * self.mw[i, j, k]
        return diffusivity, slopes

    def results(self):
        (k_11, ai_ez), (k_22, ai_nz) = self.through_sides(0), self.through_sides(1)
        (from_x, ai_bx), (from_y, ai_by) = self.through_top(0), self.through_top(1)
        return {"k_11": k_11, "k_22": k_22, "k_33": from_x + from_y, "ai_ez": ai_ez, "ai_nz": ai_nz, "ai_bx": ai_bx, "ai_by": ai_by}


def step(i, j, axis, count):
    return (i + count, j) if axis == 0 else (i, j + count)


def test_the_kernel_is_the_scheme():
    benchmark = small()
    results = benchmark.module(*benchmark.args)
    for result, (name, expected) in zip(results, Loops(benchmark.args).results().items(), strict=True):
        assert expected.any(), name
        np.testing.assert_allclose(result.numpy(), expected, rtol=1e-9, atol=1e-18, err_msg=name)


def test_a_plane_neutral_surface_has_its_slope_everywhere():
    """Temperature that is linear in x and z, constant salt: every triad has the slope of the isotherms."""
    shape, slope, k = (6, 5, 4), 4e-4, 800.0
    ones = torch.ones(shape, dtype=torch.float64)
    x, z = (torch.arange(count, dtype=torch.float64) for count in (6, 4))
    temp = (10 + 0.01 * (z[None, None, :] * 50 - slope * x[:, None, None] * 1e4)).expand(shape).unsqueeze(-1).expand(*shape, 3)
    metrics = [torch.full((count,), size, dtype=torch.float64) for count, size in ((6, 1e4),) * 2 + ((5, 1e4),) * 2 + ((4, 50.0),) * 2]
    cosines = [torch.ones(5, dtype=torch.float64)] * 2
    previous = [torch.zeros(shape, dtype=torch.float64)] * 3 + [torch.zeros(*shape, 2, 2, dtype=torch.float64)] * 4
    salt, zt = torch.full_like(temp, 35.0), torch.linspace(-200, -50, 4, dtype=torch.float64)
    results = IsoneutralMixing()(ones, ones, ones, ones, *metrics, *cosines, salt, temp, zt, k * ones, *previous)
    k_11, k_22, k_33, ai_ez, _, ai_bx, ai_by = (result[1:-1, 1:-1, 1:-1] for result in results)
    torch.testing.assert_close(k_11, torch.full_like(k_11, k * weight(slope)))
    torch.testing.assert_close(k_22, torch.full_like(k_22, k * weight(0)))
    torch.testing.assert_close(k_33[..., 0], torch.full_like(k_33[..., 0], k * weight(slope) * slope**2))
    torch.testing.assert_close(ai_ez[..., 0, :, :], torch.full_like(ai_ez[..., 0, :, :], weight(slope) * slope))
    torch.testing.assert_close(ai_bx[..., 0, :, :], torch.full_like(ai_bx[..., 0, :, :], weight(slope) * slope))
    assert not ai_by.any()


@pytest.mark.parametrize("slope", [-2.0, -1e-3, 0.0, 5e-4, 1e16])
def test_taper(slope):
    assert taper(torch.tensor(slope, dtype=torch.float64)).item() == pytest.approx(weight(slope), abs=1e-15)


def test_the_arguments_stay_as_they_are():
    benchmark = small()
    before = [argument.clone() for argument in benchmark.args]
    benchmark.module(*benchmark.args)
    assert all(torch.equal(one, two) for one, two in zip(before, benchmark.args, strict=True))

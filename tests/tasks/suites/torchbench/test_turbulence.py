from __future__ import annotations

import inspect
import math

import pytest
import torch

from tasks.spec import ModelSpec
from tasks.suites.loader import load
from tasks.suites.torchbench.turbulence import TurbulentKineticEnergy, mix_vertically, solve_tridiagonal, superbee_flux

CPU = torch.device("cpu")


@pytest.fixture
def ocean():
    benchmark = load(ModelSpec("torchbench", "pyhpc_turbulent_kinetic_energy", batch_size=1000), "inference", CPU, 0)
    return dict(zip(inspect.signature(benchmark.module.forward).parameters, benchmark.args, strict=True))


def test_the_tridiagonal_solver_solves():
    torch.manual_seed(0)
    below, above, known = (torch.rand(3, 2, 9, dtype=torch.float64) for _ in range(3))
    diagonal = 3 + torch.rand(3, 2, 9, dtype=torch.float64)
    matrix = torch.diag_embed(diagonal) + torch.diag_embed(below[..., 1:], -1) + torch.diag_embed(above[..., :-1], 1)
    torch.testing.assert_close(solve_tridiagonal(below, diagonal, above, known), torch.linalg.solve(matrix, known))


def test_still_unmixed_water_only_gains_and_dissipates(ocean):
    for name in ("u", "v", "w", "kappa_m", "dtke", "forc_tke_surface"):
        ocean[name] = torch.zeros_like(ocean[name])
    ocean["tke"] = torch.full_like(ocean["tke"], 4e-3)
    ocean["kbot"] = torch.ones_like(ocean["kbot"])
    following = TurbulentKineticEnergy()(**ocean)[0][2:-2, 2:-2, :, 1]
    expected = (4e-3 + ocean["forc"]) / (1 + 0.7 * math.sqrt(4e-3) / ocean["mxl"])
    torch.testing.assert_close(following, expected[2:-2, 2:-2])


def test_vertical_mixing_conserves_energy_above_the_bottom(ocean):
    energy, nothing = torch.rand_like(ocean["forc"]), torch.zeros_like(ocean["forc"])
    endless, calm = torch.full_like(energy, 1e30), torch.zeros_like(ocean["forc_tke_surface"])
    mixed = mix_vertically(energy, 1e3 * ocean["kappa_m"], endless, nothing, calm, ocean["dzt"], ocean["dzw"], ocean["kbot"])
    thickness = torch.cat([ocean["dzw"][:-1], ocean["dzw"][-1:] / 2])
    for column, bottom in enumerate(ocean["kbot"].flatten().tolist()):
        before, after = energy.flatten(0, 1)[column], mixed.flatten(0, 1)[column]
        if bottom == 0:
            assert not after.any(), "there is no water on land"
            continue
        wet = slice(bottom - 1, None)
        assert not after[: bottom - 1].any()
        torch.testing.assert_close((after * thickness)[wet].sum(), (before * thickness)[wet].sum())
        assert bottom == len(before) or after[wet].std() < before[wet].std()


def test_the_winds_energy_enters_at_the_surface(ocean):
    energy, nothing = torch.zeros_like(ocean["forc"]), torch.zeros_like(ocean["forc"])
    ocean["kbot"] = torch.ones_like(ocean["kbot"])
    mixed = mix_vertically(
        energy, 1e3 * ocean["kappa_m"], ocean["mxl"], nothing, ocean["forc_tke_surface"], ocean["dzt"], ocean["dzw"], ocean["kbot"]
    )
    thickness = torch.cat([ocean["dzw"][:-1], ocean["dzw"][-1:] / 2])
    torch.testing.assert_close((mixed * thickness).sum(-1), ocean["forc_tke_surface"])


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("direction", [1, -1])
def test_advection_at_one_cell_per_step_moves_by_one_cell(axis, direction):
    torch.manual_seed(0)
    field = torch.rand(9, 9, 9, dtype=torch.float64)
    velocity = torch.full_like(field, 3.0 * direction)
    flux = superbee_flux(field, velocity, torch.tensor(3.0, dtype=torch.float64), axis)
    moved = field + (flux.roll(1, axis) - flux) / 3.0
    inner = (slice(3, -3),) * 3
    torch.testing.assert_close(moved[inner], field.roll(direction, axis)[inner])


def test_the_limiter_makes_no_new_extremes():
    field = torch.zeros(40, 1, 1, dtype=torch.float64)
    field[10:20] = 1
    total = field.sum()
    for _ in range(30):
        flux = superbee_flux(field, torch.full_like(field, 0.4), torch.tensor(1.0, dtype=torch.float64), 0)
        field = field + flux.roll(1, 0) - flux
    assert field.min() >= -1e-12
    assert field.max() <= 1 + 1e-12
    torch.testing.assert_close(field.sum(), total)
    assert field.flatten().argmax() > 15, "the block moved by twelve cells"


def test_a_constant_field_in_a_uniform_current_has_no_tendency(ocean):
    for name in ("mask_u", "mask_v", "mask_w", "cost", "cosu"):
        ocean[name] = torch.ones_like(ocean[name])
    for name in ("u", "v"):
        ocean[name] = torch.full_like(ocean[name], 0.3)
    ocean["w"], ocean["tke"] = torch.zeros_like(ocean["w"]), torch.full_like(ocean["tke"], 2e-3)
    _, tendency, _ = TurbulentKineticEnergy()(**ocean)
    assert tendency[2:-2, 2:-2, :, 0].abs().max() < 1e-15


def test_the_step_combines_tendencies_after_adams_and_bashforth(ocean):
    following, tendency, _ = TurbulentKineticEnergy()(**ocean)
    still = {**ocean, **{name: torch.zeros_like(ocean[name]) for name in ("u", "v", "w", "dtke")}}
    without, none, _ = TurbulentKineticEnergy()(**still)
    inner = (slice(2, -2), slice(2, -2))
    expected = 1.6 * tendency[(*inner, ..., 0)] - 0.6 * ocean["dtke"][(*inner, ..., 2)]
    torch.testing.assert_close((following - without)[(*inner, ..., 1)], expected, rtol=1e-6, atol=1e-15)
    assert not none[(*inner, ..., 0)].any()


def test_horizontal_mixing_smooths_and_conserves(ocean):
    for name in ("u", "v", "w", "kappa_m", "dtke", "forc", "forc_tke_surface"):
        ocean[name] = torch.zeros_like(ocean[name])
    for name in ("mask_u", "mask_v", "mask_w", "cost", "cosu"):
        ocean[name] = torch.ones_like(ocean[name])
    for name in ("dxt", "dxu", "dyt", "dyu"):
        ocean[name] = torch.full_like(ocean[name], 100.0)
    ocean["mxl"], ocean["kbot"] = torch.full_like(ocean["mxl"], 1e30), torch.ones_like(ocean["kbot"])
    spike = torch.zeros_like(ocean["tke"])
    spike[8, 9] = 1.0
    ocean["tke"] = spike
    following = TurbulentKineticEnergy()(**ocean)[0][..., 1]
    share = 2000 / 100**2
    assert following[8, 9, 0].item() == pytest.approx(1 - 4 * share)
    assert [following[8 + i, 9 + j, 0].item() for i, j in ((1, 0), (-1, 0), (0, 1), (0, -1))] == pytest.approx([share] * 4)


def test_a_negative_surface_is_lifted_and_accounted_for(ocean):
    for name in ("u", "v", "w", "kappa_m", "dtke", "forc"):
        ocean[name] = torch.zeros_like(ocean[name])
    ocean["kbot"] = torch.ones_like(ocean["kbot"])
    ocean["tke"] = torch.zeros_like(ocean["tke"])
    ocean["forc_tke_surface"] = torch.full_like(ocean["forc_tke_surface"], -2e-3)
    following, _, correction = TurbulentKineticEnergy()(**ocean)
    assert not following[2:-2, 2:-2, -1, 1].any()
    torch.testing.assert_close(correction[2:-2, 2:-2], torch.full_like(correction[2:-2, 2:-2], 2e-3))
    assert not correction[:2].any()

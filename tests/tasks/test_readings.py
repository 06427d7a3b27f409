"""Numbers about tensors, computed where these are and read together."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tasks.readings import read, root_mean_square


def test_a_root_mean_square_neither_overflows_nor_vanishes():
    assert float(root_mean_square(torch.tensor([3e200, 4e200], dtype=torch.float64))) == pytest.approx(math.sqrt(12.5) * 1e200)
    assert float(root_mean_square(torch.tensor([3e-200, 4e-200], dtype=torch.float64))) == pytest.approx(math.sqrt(12.5) * 1e-200)
    assert float(root_mean_square(torch.zeros(0))) == 0.0
    assert float(root_mean_square(torch.full((100_000,), 200.0, dtype=torch.float16))) == pytest.approx(200.0)


@given(st.lists(st.floats(-1e30, 1e30), max_size=9), st.integers(0, 9))
def test_elements_that_do_not_count_are_zeros(values, others):
    alone = root_mean_square(torch.tensor(values, dtype=torch.float64))
    among = root_mean_square(torch.tensor([*values, *[0.0] * others], dtype=torch.float64), torch.tensor(len(values)))
    assert float(among) == pytest.approx(float(alone))


@given(st.lists(st.lists(st.floats(allow_nan=False), max_size=4), max_size=6))
def test_each_row_gets_its_own_numbers(rows):
    assert read([torch.tensor(row, dtype=torch.float64) for row in rows]) == rows


def test_scalars_counts_and_truths_are_numbers():
    assert read([torch.tensor(2.5), torch.tensor(7), torch.tensor(True), torch.zeros(0)]) == [[2.5], [7.0], [1.0], []]

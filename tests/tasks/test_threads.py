"""How many threads the arithmetic of a step uses, beside neighbours and alone."""

from __future__ import annotations

import pytest
import torch

from tasks import threads


def test_as_many_as_before_when_the_block_has_ended_or_failed():
    before = torch.get_num_threads()

    def fails():
        with threads.using(before + 1):
            assert torch.get_num_threads() == before + 1
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert torch.get_num_threads() == before


def test_a_compiled_step_has_those_with_which_it_was_compiled():
    count = torch.get_num_threads()
    compiled = threads.with_all(torch.get_num_threads)
    with threads.using(count + 1):
        assert compiled() == count
        assert torch.get_num_threads() == count + 1

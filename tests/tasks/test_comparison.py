"""Two tensors, or two outputs of any kind: whether they differ by more than their limit, and how the difference is told."""

from __future__ import annotations

import dataclasses
import enum
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks import comparison
from tasks.comparison import Distances, Errors, Finding, Rule, compare_plain, errors_of, judged, leaves, paired
from tasks.readings import read, root_mean_square

RULE = Rule(tolerance=1e-3, multiplier=2.0, epsilon=2.0**-23)


def compare(eager, compiled, reference=None, rule=RULE, **more):
    known = errors_of(eager, reference) if reference is not None else Errors(0.0, rms(eager.double()))
    name = more.pop("name", "value")
    pair = paired(name, eager, compiled, reference, rule)
    if isinstance(pair, Finding):
        return pair
    [numbers] = read([pair.numbers])
    return judged(name, pair, Distances(*numbers), rule, **({"errors": known} | more))


def rms(tensor):
    return float(root_mean_square(tensor))


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def roundings(size, seed):
    """Uniform, with a root mean square of 1."""
    return math.sqrt(3) * (2 * torch.rand(size, generator=torch.Generator().manual_seed(seed)) - 1)


class TestTensors:
    def test_equal_tensors_use_nothing_of_their_limit(self):
        assert compare(normal(50), normal(50)).ratio == 0.0

    @pytest.mark.parametrize("scale", [1e-30, 1e-6, 1.0, 1e6])
    def test_the_size_of_a_tensor_does_not_matter(self, scale):
        value = normal(2000).double()
        off, close = (compare(value * scale, value * scale * factor, value * scale) for factor in (1.02, 1.0005))
        assert (off.passes, close.passes) == (False, True)
        assert off.ratio == pytest.approx(compare(value, value * 1.02, value).ratio, rel=1e-6)

    @settings(max_examples=40)
    @given(st.integers(0, 10_000), st.integers(1, 3000))
    def test_rounding_no_worse_than_eager_passes(self, seed, size):
        """As roundings are, within a bound: a single element in a normal law's tail may as well be a fault."""
        truth = normal(size, seed=seed).double()
        eager, compiled = (truth + 0.01 * rms(truth) * roundings(size, seed=seed + other) for other in (1, 2))
        assert compare(eager, compiled, truth, kind_error=0.01).passes

    def test_rounding_much_worse_than_eager_fails(self):
        truth = normal(5000).double()
        eager, compiled = truth + 0.01 * normal(5000, seed=1), truth + 0.03 * normal(5000, seed=2)
        assert not compare(eager, compiled, truth).passes
        assert compare(eager, compiled, truth, dataclasses.replace(RULE, multiplier=4.0)).passes

    def test_a_small_tensor_borrows_the_error_of_its_kind(self):
        truth = normal(3).double()
        compiled = truth * 1.01
        assert not compare(truth, compiled, truth).passes
        assert compare(truth, compiled, truth, kind_error=0.005).passes

    def test_a_large_tensor_does_not(self):
        truth = normal(5000).double()
        assert not compare(truth, truth * 1.01, truth, kind_error=0.005).passes

    def test_noise_passes_as_noise(self):
        """The gradient of a bias in front of a normalisation: zero, but for rounding."""
        truth, eager, compiled = (scale * normal(64, seed=seed) for seed, scale in ((0, 1e-18), (1, 1e-9), (2, 6e-9)))
        assert compare(eager, compiled, truth.double(), kind_size=1.0).passes
        assert not compare(eager, compiled * 1e5, truth.double(), kind_size=1.0).passes

    def test_a_sum_that_is_zero_by_luck_is_judged_by_its_siblings(self):
        truth, eager, compiled = (scale * normal(64, seed=seed) for seed, scale in ((0, 1e-18), (1, 1e-9), (2, 5e-8)))
        assert not compare(eager, compiled, truth.double()).passes
        assert compare(eager, compiled, truth.double(), sibling_error=2e-8).passes
        assert not compare(eager, compiled * 2, truth.double(), sibling_error=2e-8).passes

    def test_a_signal_has_no_use_for_its_siblings(self):
        truth = 1e-9 * normal(64).double()
        assert not compare(truth, truth * 1.05, truth, sibling_error=1.0).passes

    def test_a_buffer_that_cancels_has_the_roundings_of_its_kind(self):
        """As the mean of a normalisation's inputs beside their variance: eager is exact by luck, compiled off by less than a rounding."""
        truth, rule = 1e-7 * normal(32), dataclasses.replace(RULE, epsilon=2.0**-10)
        off, far = truth + 1e-6 * normal(32, seed=1), truth + 1e-3 * normal(32, seed=1)
        assert compare(truth, off, truth, rule, kind_size=0.1, name="buffer.bn.running_mean").passes
        assert not compare(truth, far, truth, rule, kind_size=0.1, name="buffer.bn.running_mean").passes
        assert not compare(truth, off, truth, RULE, kind_size=0.1, name="buffer.bn.running_mean").passes  # not in float32
        assert not compare(truth, off, truth, rule, kind_size=0.1, name="gradient.bn.weight").passes

    def test_a_signal_is_not_noise_however_small(self):
        truth = 1e-9 * normal(64).double()
        assert not compare(truth, truth * 1.05, truth, kind_size=1.0).passes

    def test_zeros_may_be_noise(self):
        zero = torch.zeros(64)
        assert compare(zero, 1e-9 * normal(64), zero.double(), kind_size=1.0).passes
        assert not compare(zero, 1e-3 * normal(64), zero.double(), kind_size=1.0).passes

    def test_one_wrong_element_of_many_fails(self):
        eager = normal(100, 100)
        compiled = eager.clone()
        compiled[3, 4] += 10
        assert not compare(eager, compiled, eager.double()).passes

    def test_without_a_reference_eager_is_it(self):
        value = normal(2000)
        assert compare(value, value * 1.0005).passes
        assert not compare(value, value * 1.02).passes
        assert compare(value, value * 1.02, errors=Errors(0.05, rms(value.double()))).passes

    def test_without_a_reference_direction_and_size_are_enough(self):
        value = normal(5000)
        rounded = value + 0.02 * normal(5000, seed=1)
        assert compare(value, rounded / rms(rounded.double()) * rms(value.double())).passes
        assert not compare(value, rounded, value.double()).passes
        assert not compare(value, value + 0.3 * normal(5000, seed=1)).passes
        assert compare(1e-9 * value, 1e-9 * normal(5000, seed=2), kind_size=1.0).passes

    def test_dtype_and_shape_must_agree(self):
        assert "float64" in compare(normal(3), normal(3).double()).reason
        assert "(3, 1)" in compare(normal(3), normal(3, 1)).reason

    @pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.uint8])
    def test_few_of_many_integers_may_differ(self, dtype):
        eager = torch.zeros(10_000).to(dtype)
        compiled = eager.clone()
        compiled[:10] = 1
        assert compare(eager, compiled).passes
        compiled[:11] = 1
        assert not compare(eager, compiled).passes
        assert "11 of 10000" in compare(eager, compiled).reason

    def test_a_wide_tolerance_does_not_let_more_of_them_differ(self):
        eager, wide = torch.zeros(10_000).bool(), dataclasses.replace(RULE, tolerance=0.16)
        compiled = eager.clone()
        compiled[:10] = True
        assert compare(eager, compiled, rule=wide).passes
        compiled[:11] = True
        assert not compare(eager, compiled, rule=wide).passes

    def test_a_single_integer_must_be_right(self):
        assert not compare(torch.tensor(3), torch.tensor(4)).passes

    def test_empty_tensors_are_equal(self):
        found = compare(torch.zeros(0), torch.zeros(0))
        assert (found.passes, found.finite) == (True, True)

    def test_complex_sparse_and_quantised_tensors_are_compared(self):
        complex_one, sparse = torch.complex(normal(4), normal(4)), normal(4, 4).relu().to_sparse()
        quantised = torch.quantize_per_tensor(normal(4), 0.1, 0, torch.qint8)
        for value in (complex_one, sparse, quantised):
            [(_, plain)] = leaves(value, "value")
            assert compare(plain, plain).passes
            assert not compare(plain, plain * 1.1).passes


INF, NAN = math.inf, math.nan


class TestNotFinite:
    @pytest.mark.parametrize(
        ("eager", "compiled", "reference", "passes"),
        [
            ([1, NAN], [1, NAN], [1, NAN], True),
            ([1, NAN], [1, NAN], [1, 2], True),
            ([1, INF], [1, INF], [1, INF], True),
            ([1, INF], [1, -INF], [1, INF], False),
            ([1, INF], [1, NAN], [1, INF], False),
            ([1, NAN], [1, INF], [1, INF], False),
            ([1, 2], [1, NAN], [1, 2], False),
            ([1, 2], [1, INF], [1, 2], False),
            ([1, NAN], [1, 2], [1, 2], True),  # eager overflowed, compiled did not, and is right
            ([1, INF], [1, 2], [1, 2.5], False),
            ([1, NAN], [1, 2], [1, NAN], False),
            ([1, INF], [1, 3e38], [1, INF], False),
            ([1, 2], [1, 2], [1, NAN], True),
            ([1, 2], [1, 3], [1, NAN], False),
            ([NAN, 2], [NAN, 2.2], [1, 2], False),
        ],
    )
    def test_what_is_not_finite(self, eager, compiled, reference, passes):
        one, other, truth = (torch.tensor(values, dtype=torch.float32) for values in (eager, compiled, reference))
        assert compare(one, other, truth.double()).passes is passes

    def test_nothing_but_nan_is_no_evidence(self):
        nothing = torch.full((3,), NAN)
        found = compare(nothing, nothing, nothing.double())
        assert (found.passes, found.finite) == (True, False)


class Color(enum.Enum):
    RED = 1


@dataclasses.dataclass
class Output:
    logits: torch.Tensor
    extra: object = None


class Cache:
    def __init__(self, value):
        self.layers = [value]
        self.parent = self
        self._private = 1


class TestOutputs:
    def names(self, value):
        return dict(leaves(value, "output"))

    def test_containers_are_opened(self):
        from transformers.modeling_outputs import BaseModelOutput

        tensor = torch.ones(2)
        assert "output.logits" in self.names(Output(tensor))
        assert "output.last_hidden_state" in self.names(BaseModelOutput(last_hidden_state=tensor))
        assert "output[0].boxes" in self.names([{"boxes": tensor, "labels": tensor.long()}])
        assert "output[1][0]" in self.names((1, [tensor]))

    def test_distributions_are_their_parameters(self):
        found = self.names(torch.distributions.Normal(torch.zeros(2), torch.ones(2)))
        assert {"output.loc", "output.scale"} <= found.keys()
        assert found["output<kind>"].startswith("Normal")

    def test_objects_of_unknown_kinds_are_opened_once(self):
        found = self.names(Cache(torch.ones(2)))
        assert "output.layers[0]" in found
        assert "output.parent" in found
        assert not any("_private" in name for name in found)

    def test_a_container_of_another_kind_or_length_is_another_result(self):
        kinds = [self.names(value)["output<kind>"] for value in ([1, 2], (1, 2), [1], {"a": 1})]
        assert len(set(kinds)) == 4

    @pytest.mark.parametrize("value", [1, 1.5, True, "text", None, Color.RED, NAN, torch.float32, torch.Size([2])])
    def test_plain_values_must_be_equal(self, value):
        [(name, found)] = leaves(value, "output")
        assert compare_plain(name, found, found).passes
        assert not compare_plain(name, found, "another").passes


def test_ratios_have_a_ceiling():
    assert compare(torch.ones(1), torch.full((1,), 1e30)).ratio == comparison.MAX_RATIO

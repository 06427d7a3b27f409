import pytest
import torch
from torch import nn
from torch.nn import functional

from tasks import accuracy, judgement, step
from tasks.comparison import Rule
from tasks.draws import recorded, same_draws
from tasks.dropout import NEGLIGIBLE_RATE
from tasks.judgement import Randomness
from tasks.spec import Accuracy, PrecisionSpec
from tests.tasks import models

CPU = torch.device("cpu")
SIZE = 48  # of any other than a multiple of 16, the CPU draws the last 16 normal numbers otherwise in half precision
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def drawn(draw, seed=0):
    found = []
    torch.manual_seed(seed)
    recorded(draw, found)()
    return found


def same(one, other, seed=0):
    return same_draws(drawn(one), drawn(other, seed))


NUMBERS = {
    "rand": lambda dtype: torch.rand(SIZE, dtype=dtype),
    "randn": lambda dtype: torch.randn(3, SIZE // 3, dtype=dtype),
    "rand_like": lambda dtype: torch.rand_like(torch.empty(SIZE, dtype=dtype)),
    "uniform_": lambda dtype: torch.empty(SIZE, dtype=dtype).uniform_(0.5, 1.5),
    "normal_": lambda dtype: torch.empty(SIZE, dtype=dtype).normal_(1.0, 0.5),
    "exponential_": lambda dtype: torch.empty(SIZE, dtype=dtype).exponential_(),
    "log_normal_": lambda dtype: torch.empty(SIZE, dtype=dtype).log_normal_(),
    "complex": lambda dtype: torch.randn(SIZE, dtype=torch.complex64),
}
INTEGERS = {
    "randint": lambda: torch.randint(0, 5, (40,)),
    "randint_like": lambda: torch.randint_like(torch.empty(40), 100),
    "random_": lambda: torch.empty(40, dtype=torch.int64).random_(),
    "randperm": lambda: torch.randperm(40),
    "randperm of many": lambda: torch.randperm(100_000),
    "bernoulli_": lambda: torch.empty(40).bernoulli_(0.5),
    "bernoulli": lambda: torch.bernoulli(torch.full((40,), 0.5), 0.5),
    "geometric_": lambda: torch.empty(40).geometric_(0.1),
    "dropout": lambda: nn.Dropout(0.1)(torch.ones(400, requires_grad=True)).sum().backward(),
    "rare drops": lambda: functional.dropout(torch.ones(1_000_000), 1e-3),
    "native dropout": lambda: torch.native_dropout(torch.ones(400), 0.5, True),
    "drops of rows": lambda: functional.dropout2d(torch.ones(4, 40, 2, 2), 0.5),
    "attention": lambda: functional.scaled_dot_product_attention(*[torch.ones(1, 2, 30, 8)] * 3, dropout_p=0.2),
    "checkpoint": lambda: (
        torch.utils.checkpoint.checkpoint(nn.Dropout(0.5), torch.ones(40, requires_grad=True), use_reentrant=False).sum().backward()
    ),
}


class TestSameDraws:
    @pytest.mark.parametrize("draw", NUMBERS.values(), ids=NUMBERS)
    def test_the_same_seed_draws_the_same_and_another_does_not(self, draw):
        for dtype in FLOATS:
            one = [lambda dtype=dtype: draw(dtype)] * 2
            assert (same(*one), same(*one, seed=1)) == (True, False)

    @pytest.mark.parametrize("draw", INTEGERS.values(), ids=INTEGERS)
    def test_so_with_integers_and_masks(self, draw):
        assert (same(draw, draw), same(draw, draw, seed=1)) == (True, False)

    @pytest.mark.parametrize("name", NUMBERS)
    @pytest.mark.parametrize("coarse", FLOATS[:2])
    def test_roundings_to_another_dtype_do_not_matter(self, coarse, name):
        one, other = (lambda dtype=dtype: NUMBERS[name](dtype) for dtype in (coarse, torch.float32))
        assert (same(one, other), same(one, other, seed=1)) == (True, False)

    def test_nor_do_those_to_float64(self):
        for draw in (lambda dtype: torch.randn(8, dtype=dtype), lambda dtype: torch.empty(1000, dtype=dtype).exponential_()):
            one, other = (lambda dtype=dtype, draw=draw: draw(dtype) for dtype in (torch.float32, torch.float64))
            assert (same(one, other), same(one, other, seed=1)) == (True, False)

    @pytest.mark.parametrize("dtype", FLOATS)
    def test_masks_and_integers_are_the_same_in_any_dtype(self, dtype):
        def draw(dtype):
            return lambda: (functional.dropout(torch.ones(400, dtype=dtype)), torch.randint(0, 50, (9,), dtype=dtype))

        assert same(draw(dtype), draw(torch.float32)) is True

    def test_one_of_many_integers_decides(self):
        one, other = drawn(lambda: torch.randperm(1000)), drawn(lambda: torch.randperm(1000))
        other[0].values[17] += 1
        assert same_draws(one, other) is False

    def test_generators_that_draw_others_for_another_dtype_are_found_out(self):
        assert same(lambda: torch.rand(40), lambda: torch.rand(40, dtype=torch.float64)) is False
        assert same(lambda: torch.randn(40), lambda: torch.randn(40, dtype=torch.float64)) is False
        assert same(lambda: torch.randn(4), lambda: torch.randn(4, dtype=torch.float64)) is True  # few of them it draws one by one

    def test_numbers_that_are_drawn_around_a_large_one_differ_by_their_spread(self):
        for dtype in FLOATS[2:]:
            one = [lambda dtype=dtype: torch.empty(SIZE, dtype=dtype).uniform_(0.999, 1.001)] * 2
            assert (same(*one), same(*one, seed=1)) == (True, False)

    def test_another_order_number_or_shape_is_another_draw(self):
        def rows_then_flips():
            return torch.rand(8), torch.randint(0, 2, (8,))

        def flips_then_rows():
            return torch.randint(0, 2, (8,)), torch.rand(8)

        assert same(rows_then_flips, rows_then_flips) is True
        assert same(rows_then_flips, flips_then_rows) is False
        assert same(rows_then_flips, lambda: torch.rand(8)) is False
        assert same(rows_then_flips, lambda: None) is False
        assert same(lambda: torch.randint(0, 2, (8, 1)), lambda: torch.randint(0, 2, (8,))) is False

    def test_of_two_that_draw_alike_the_second_counts_as_well(self):
        def draw(last):
            return lambda: (torch.rand(8), torch.manual_seed(last), torch.rand(8))

        assert same(draw(1), draw(1)) is True
        assert same(draw(1), draw(2)) is False

    def test_where_they_lie_in_memory_does_not_matter(self):
        mask = torch.empty(4, 3, 9, 9).bernoulli_(0.5)

        class Given(torch.nn.Module):
            def forward(self, memory_format):
                return torch.bernoulli(mask.contiguous(memory_format=memory_format))

        assert same(lambda: Given()(torch.contiguous_format), lambda: Given()(torch.channels_last)) is True

    def test_what_is_drawn_is_kept_small(self):
        found = drawn(lambda: (torch.randn(300_000), torch.empty(300_000).bernoulli_(0.5), torch.randperm(65_537)))
        assert all(draw.values.numel() <= 256 for draw in found)

    def test_what_is_drawn_is_kept_as_it_was(self):
        def overwritten():
            return torch.rand(8).zero_()

        assert same(overwritten, lambda: torch.rand(8)) is True


class TestWhatCannotBeTold:
    @pytest.mark.parametrize(
        "draw",
        [
            lambda: functional.rrelu(torch.ones(8), training=True),
            lambda: torch.normal(torch.full((8,), 1e9), torch.ones(8)),
            lambda: torch.distributions.Gamma(torch.ones(8), torch.ones(8)).sample(),
        ],
        ids=["rrelu", "normal", "gamma"],
    )
    def test_what_hides_its_draws(self, draw):
        assert same(draw, draw) is None
        assert same(lambda: (torch.rand(8), draw()), lambda: (torch.rand(8), draw())) is None

    def test_nothing_that_was_seen(self):
        assert same(lambda: torch.ones(8), lambda: torch.ones(8)) is None

    def test_integers_that_differ_may_do_so_for_the_rounding_of_their_rates(self):
        def chosen(rates):
            return lambda: (torch.bernoulli(rates), torch.multinomial(rates, 2), torch.poisson(rates))

        rates = torch.linspace(0.1, 0.9, 40)
        assert same(chosen(rates), chosen(rates.double().float())) is True
        assert same(chosen(rates), chosen(1 - rates)) is None


class TestWhatDrawsNothing:
    @pytest.mark.parametrize("rate", [0.0, NEGLIGIBLE_RATE])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_attention_without_dropout(self, dtype, rate):
        inputs = torch.ones(1, 2, 30, 8, dtype=dtype, requires_grad=True)
        assert drawn(lambda: functional.scaled_dot_product_attention(inputs, inputs, inputs, dropout_p=rate).sum().backward()) == []

    @pytest.mark.parametrize(
        "call",
        [
            lambda: torch.native_dropout(torch.ones(8), 0.5, False),
            lambda: torch.native_dropout(torch.ones(8), NEGLIGIBLE_RATE, True),
            lambda: nn.Dropout(NEGLIGIBLE_RATE)(torch.ones(8)),
            lambda: functional.rrelu(torch.ones(8), training=False),
            lambda: functional.dropout(torch.ones(8), 1.0),
        ],
    )
    def test_dropouts_that_are_off_or_certain(self, call):
        assert drawn(call) == []


class TestRecorded:
    def test_the_step_draws_and_gives_what_it_would(self):
        def draw():
            return torch.rand(8)

        torch.manual_seed(3)
        expected, found = draw(), []
        torch.manual_seed(3)
        assert torch.equal(recorded(draw, found)(), expected)
        assert [draw.operator for draw in found] == ["rand"]

    def test_without_a_place_for_them_it_is_the_step(self):
        def draw():
            return torch.rand(8)

        assert recorded(draw, None) is draw

    def test_every_step_is_appended_and_nothing_outside_of_one(self):
        found = []
        stepped = recorded(lambda: torch.rand(8), found)
        stepped(), torch.rand(8), stepped()
        assert len(found) == 2

    def test_so_is_what_the_backward_pass_draws(self):
        class Noise(torch.autograd.Function):
            @staticmethod
            def forward(context, inputs):
                return inputs.clone()

            @staticmethod
            def backward(context, gradient):
                return gradient * torch.rand(8)

        assert len(drawn(lambda: Noise.apply(torch.ones(8, requires_grad=True)).sum().backward())) == 1

    def test_a_step_that_compiles_parts_of_itself_still_may(self):
        part = torch.compile(lambda inputs: inputs + torch.rand(8), backend="eager", fullgraph=True)
        try:
            torch.manual_seed(0)
            found = recorded(lambda: part(torch.ones(8)), [])()
            torch.manual_seed(0)
            assert torch.equal(found, 1 + torch.rand(8))
        finally:
            torch._dynamo.reset()

    def test_operators_that_are_given_functions_pass_through(self):
        from torch._higher_order_ops.map import map as mapped

        inputs = torch.ones(2, 8)
        assert torch.equal(recorded(lambda: mapped(torch.neg, inputs), [])(), -inputs)
        torch._dynamo.reset()


class Noisy(models.Augmented):
    """Draws in the dtype of its inputs."""

    def forward(self, inputs):
        return self.layers(inputs + torch.randn_like(inputs))


class TestChecked:
    RULE = Rule(tolerance=1e-2, multiplier=3.0, epsilon=2.0**-10)

    def checked(self, module, compiled=None, mode="training"):
        """Judged is a step in float32, as a fused kernel may compute."""
        torch.manual_seed(0)
        made = models.benchmark(module, (torch.randn(64, 16),), models.as_of_many, mode == "training")
        work = step.prepare(made, mode, PrecisionSpec("amp", autocast_dtype="float16"), "none", CPU)
        judged = compiled(work) if compiled else step.without_autocast(work, CPU).step
        return accuracy.check(work, judged, step.State(work, 0), iterations=2, rule=self.RULE, device=CPU, random=Randomness.DECISIVE)

    def test_gradients_that_underflow_do_not_make_the_reference_another_sample(self):
        verdict = self.checked(models.Augmented())
        assert (verdict.accuracy, verdict.reference) == (Accuracy.PASS, "float64")
        assert verdict.eager_rmse > 10 * verdict.compiled_rmse

    def test_by_the_results_it_would_be_and_a_step_better_than_eager_would_fail(self, monkeypatch):
        monkeypatch.setattr(accuracy, "same_draws", lambda one, other: None)
        verdict = self.checked(models.Augmented())
        assert verdict.accuracy is Accuracy.FAIL
        assert verdict.reference.startswith("none (float64: draws other random numbers than eager")

    def test_a_fault_is_found_against_it(self):
        def wrong(work):
            plain = step.without_autocast(work, CPU).step

            def stepped():
                loss = plain()
                work.module.layers[0].weight.grad.mul_(-1)
                return loss

            return stepped

        assert self.checked(models.Augmented(), wrong).accuracy is Accuracy.FAIL

    @pytest.mark.parametrize("mode", ["training", "inference"])
    def test_one_that_draws_in_a_dtype_of_its_own_is_another_sample(self, mode):
        """The one in float32 is not: it draws what eager draws."""
        assert self.checked(Noisy(), mode=mode).reference == "float32 (float64: draws other random numbers than eager)"

    def test_eager_repeats_itself_exactly_under_the_recording(self):
        assert self.checked(models.Augmented()).deterministic is True

    @pytest.mark.parametrize(("same", "expected"), [(True, False), (False, True), (None, True)])
    def test_draws_decide_before_results(self, same, expected):
        eager, truth = {"loss.0": torch.ones(1)}, {"loss.0": torch.zeros(1)}
        assert judgement.draws_others(eager, truth, self.RULE, same) is expected
        assert judgement.draws_others(eager, eager, self.RULE, same) is (same is False)

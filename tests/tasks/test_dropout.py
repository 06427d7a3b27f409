import torch
from torch import nn

from tasks.dropout import NEGLIGIBLE_RATE, neutralise_dropout, undropped

SEED = 1


class TestNeutralise:
    def test_every_rate_becomes_negligible(self):
        module = nn.ModuleDict({"drop": nn.Dropout(0.5), "attention": nn.MultiheadAttention(8, 2, dropout=0.1), "other": nn.LeakyReLU(0.2)})
        module["drop"].drop_path_rate = 0.3
        assert neutralise_dropout(module) == 3
        assert (module["drop"].p, module["attention"].dropout, module["drop"].drop_path_rate) == (NEGLIGIBLE_RATE,) * 3
        assert module["other"].negative_slope == 0.2
        assert neutralise_dropout(module) == 0

    def test_rates_of_zero_and_one_mean_something_and_stay(self):
        module = nn.Sequential(nn.Dropout(0.0), nn.Dropout(1.0))
        assert neutralise_dropout(module) == 0

    def test_the_kernel_stays_and_drops_nothing(self):
        layer = nn.Dropout(0.5)
        neutralise_dropout(layer)
        inputs = torch.randn(1000, requires_grad=True)
        outputs = layer(inputs)
        assert outputs.grad_fn is not None
        assert torch.equal(outputs, inputs)


class TestUndropped:
    def drawn(self, step):
        """What ``step`` returns, and whether it drew random numbers."""
        torch.manual_seed(SEED)
        before = torch.get_rng_state()
        found = undropped(step)()
        return found, not torch.equal(before, torch.get_rng_state())

    def test_a_negligible_dropout_is_left_out_however_it_is_called(self):
        inputs, rate = torch.ones(8), NEGLIGIBLE_RATE
        calls = (
            lambda: nn.Dropout(rate)(inputs),
            lambda: nn.functional.dropout(inputs, p=rate, training=True),
            lambda: nn.functional.dropout(input=inputs, p=rate),
            lambda: torch.dropout(inputs, rate, True),
        )
        for call in calls:
            found, drew = self.drawn(call)
            assert torch.equal(found, inputs)
            assert found.data_ptr() != inputs.data_ptr()  # as of the operator: the caller may write to it
            assert not drew

    def test_one_that_does_nothing_anyway_is_as_it_was(self):
        inputs = torch.ones(8)
        for call in (
            lambda: nn.Dropout(NEGLIGIBLE_RATE).eval()(inputs),
            lambda: torch.dropout(inputs, NEGLIGIBLE_RATE, train=False),
            lambda: nn.functional.dropout(inputs, 0.0),
        ):
            assert self.drawn(call)[0].data_ptr() == inputs.data_ptr()

    def test_any_other_dropout_drops(self):
        for call in (lambda: nn.functional.dropout(torch.ones(1000)), lambda: torch.dropout(torch.ones(1000), 0.5, True)):
            found, drew = self.drawn(call)
            assert drew
            assert 300 < int((found == 0).sum()) < 700

    def test_gradients_pass_through(self):
        inputs = torch.ones(8, requires_grad=True)
        undropped(lambda: nn.Dropout(NEGLIGIBLE_RATE)(inputs).sum().backward())()
        assert torch.equal(inputs.grad, torch.ones(8))

    def test_outside_of_it_the_operator_runs_again(self):
        self.drawn(lambda: nn.Dropout(NEGLIGIBLE_RATE)(torch.ones(8)))
        before = torch.get_rng_state()
        nn.Dropout(NEGLIGIBLE_RATE)(torch.ones(8))
        assert not torch.equal(before, torch.get_rng_state())

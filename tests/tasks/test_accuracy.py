from __future__ import annotations

import contextlib
import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from tasks import accuracy, judgement, references, step
from tasks.accuracy import check, rule_for, tolerance_for
from tasks.comparison import Rule
from tasks.judgement import Randomness, draws_others, identical, movement, randomness_of
from tasks.spec import Accuracy, PrecisionSpec
from tasks.suites.benchmark import mean_of_outputs
from tasks.suites.timm import scaled_mean_of_outputs
from tests.tasks import models

CPU = torch.device("cpu")
RULE = Rule(tolerance=1e-3, multiplier=2.0, epsilon=2.0**-23)
INF, NAN = math.inf, math.nan


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class TestRules:
    @pytest.mark.parametrize(
        ("suite", "training", "dtype", "autocast", "expected"),
        [
            ("huggingface", True, "float32", None, 1e-2),
            ("huggingface", False, "amp", torch.float16, 1e-3),
            ("timm", True, "amp", torch.float16, 1e-2),
            ("timm", False, "float32", None, 1e-3),
            ("torchbench", False, "float32", None, 1e-4),
            ("torchbench", True, "float32", None, 1e-3),
            ("torchbench", False, "amp", torch.float16, 1e-3),
            ("torchbench", True, "amp", torch.bfloat16, 1e-2),
            ("timm", False, "amp", torch.bfloat16, 1e-2),
        ],
    )
    def test_tolerances_are_those_of_the_suite(self, suite, training, dtype, autocast, expected):
        assert tolerance_for(suite, training, PrecisionSpec(dtype), autocast) == expected

    @pytest.mark.parametrize(("tf32", "device", "multiplier"), [(True, "cuda", 3.0), (False, "cuda", 2.0), (True, "cpu", 2.0)])
    def test_so_has_tf32(self, tf32, device, multiplier):
        precision = PrecisionSpec("float32", tf32=tf32)
        assert rule_for(1e-3, workload(), precision, torch.device(device)).multiplier == multiplier

    def test_lower_precision_has_a_wider_multiplier(self):
        for dtype, multiplier in (("float32", 2.0), ("amp", 3.0)):
            rule = rule_for(1e-3, workload(dtype=dtype), PrecisionSpec(dtype), CPU)
            assert rule.multiplier == multiplier
        assert rule_for(1e-3, workload(), PrecisionSpec("float32"), torch.device("cuda")).epsilon == 2.0**-10


def workload(module=None, inputs=None, loss=models.squares, mode="training", dtype="float32", optimizer="none"):
    torch.manual_seed(0)
    made = models.benchmark(module or nn.Linear(8, 4), (inputs if inputs is not None else torch.randn(6, 8),), loss, mode == "training")
    return step.prepare(made, mode, PrecisionSpec(dtype), optimizer, CPU)


def checked(work, compiled=None, iterations=2, rule=RULE, **more):
    state = step.State(work, seed=0)
    return check(work, compiled or work.step, state, iterations=iterations, rule=rule, device=CPU, **more)


class NoDouble(nn.Linear):
    def forward(self, inputs):
        if inputs.dtype == torch.float64:
            raise NotImplementedError("no kernel for Double")
        return super().forward(inputs)


class OutOfMemoryInDouble(nn.Linear):
    def forward(self, inputs):
        if inputs.dtype == torch.float64:
            raise torch.OutOfMemoryError("no room")
        return super().forward(inputs)


class NoHandleInDouble(nn.Linear):
    def forward(self, inputs):
        if inputs.dtype == torch.float64:
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
        return super().forward(inputs)


class Unstable(nn.Linear):
    """Not deterministic: every call adds other noise that no seed controls."""

    def __init__(self, *sizes, noise=1e-3):
        super().__init__(*sizes)
        self.noise = noise
        self.calls = 0

    def forward(self, inputs):
        self.calls += 1
        noise = torch.randn(inputs.shape, generator=torch.Generator().manual_seed(self.calls), dtype=torch.float32)
        return super().forward(inputs * (1 + self.noise * noise.to(inputs.dtype)))


class TestCheck:
    def test_a_step_agrees_with_itself(self):
        verdict = checked(workload())
        assert (verdict.accuracy, verdict.margin, verdict.deterministic, verdict.reference) == (Accuracy.PASS, 1.0, True, "float64")

    def test_memory_is_taken_in_turn_until_the_references_first_step_has_it(self):
        story = []

        class Telling(nn.Linear):
            def forward(self, inputs):
                story.append(inputs.dtype)
                return super().forward(inputs)

        @contextlib.contextmanager
        def turn():
            story.append("begins")
            yield
            story.append("ends")

        checked(workload(Telling(8, 4)), turn=turn)
        assert story[:4] == ["begins", torch.float64, "ends", torch.float64]
        assert story.count("begins") == 1

    @pytest.mark.parametrize("optimizer", ["sgd", "adam"])
    def test_every_arm_starts_from_the_same_state(self, optimizer):
        verdict = checked(workload(nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)), optimizer=optimizer))
        assert (verdict.accuracy, verdict.deterministic, verdict.margin) == (Accuracy.PASS, True, 1.0)

    def test_the_state_is_as_before_afterwards(self):
        work = workload(nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)), optimizer="adam")
        work.step()
        state = step.State(work, seed=0)
        before = {name: value.clone() for name, value in step.named_state(work.module)}
        check(work, work.step, state, iterations=2, rule=RULE, device=CPU)
        assert all(torch.equal(value, before[name]) for name, value in step.named_state(work.module))

    @pytest.mark.parametrize(
        ("kind", "dtype", "reference"),
        [
            (NoDouble, "amp", "float32 (float64: NotImplementedError: no kernel for Double)"),
            (NoDouble, "float32", "none (float64: NotImplementedError: no kernel for Double)"),
            (OutOfMemoryInDouble, "float32", "none (float64: out of memory; float64 in 6 chunks: out of memory)"),
            (NoHandleInDouble, "float32", "none (float64: out of memory; float64 in 6 chunks: out of memory)"),
        ],
    )
    def test_a_reference_that_fails_is_replaced_and_named(self, kind, dtype, reference):
        torch.manual_seed(0)  # not at import, after whatever was imported before
        module = kind(8, 4)
        verdict = checked(workload(module, dtype=dtype))
        assert (verdict.accuracy, verdict.reference) == (Accuracy.PASS, reference)
        work = workload(module, dtype=dtype)
        assert checked(work, lambda: work.step() * 1.02).accuracy is Accuracy.FAIL

    def test_when_nothing_fits_it_is_out_of_memory(self):
        work = workload()

        def too_big():
            raise torch.OutOfMemoryError("no room")

        with pytest.raises(torch.OutOfMemoryError):
            checked(work, too_big)

    def test_a_model_that_does_not_repeat_itself_is_judged_by_its_spread(self):
        work = workload(Unstable(8, 4), inputs=torch.randn(600, 8))
        verdict = checked(work)
        assert (verdict.accuracy, verdict.deterministic) == (Accuracy.PASS, False)
        assert "does not repeat itself" in verdict.reason
        assert checked(work, lambda: work.step() * 1.1).accuracy is Accuracy.FAIL

    def test_no_gradient_equals_a_gradient_of_zeros(self):
        work = workload()

        def with_zeros():
            loss = work.step()
            work.module.unused.grad = torch.zeros(3)
            return loss

        work.module.unused = nn.Parameter(torch.ones(3))
        assert checked(work, with_zeros).accuracy is Accuracy.PASS
        work.module.unused.grad = None

        def with_ones():
            loss = work.step()
            work.module.unused.grad = torch.ones(3)
            return loss

        assert checked(work, with_ones).accuracy is Accuracy.FAIL

    def test_the_reason_counts_and_names(self):
        work = workload()
        verdict = checked(work, lambda: work.step() * 1.5)
        assert verdict.reason.startswith("2 of 6 values differ, most of all loss.0: error ")
        assert verdict.margin < 0
        assert verdict.compiled_rmse > verdict.eager_rmse

    def test_a_finite_loss_is_no_verdict_on_gradients_that_are_not(self):
        work = workload(models.Rooted())

        def without_gradients():
            return models.squares(work.module(*work.args)).detach()

        for compiled in (work.step, without_gradients):
            verdict = checked(work, compiled)
            assert verdict.accuracy is Accuracy.SKIPPED
            assert "no gradient holds a number" in verdict.reason

    def test_what_is_left_out_is_counted(self):
        work = workload(mode="inference", inputs=torch.tensor([[NAN] * 8, [1.0] * 8, [2.0] * 8]))
        verdict = checked(work)
        assert (verdict.accuracy, verdict.reason) == (Accuracy.PASS, "4 elements of 1 values are not finite, and were left out")

    def test_a_result_that_is_overwritten_by_the_next_step_is_copied_in_time(self):
        """As CUDA graphs do it."""
        work, place = workload(optimizer="sgd"), torch.zeros(())

        def into_place():
            return place.copy_(work.step().detach())

        verdict = checked(work, into_place)
        assert verdict.accuracy is Accuracy.PASS

    def test_dropout_makes_no_difference(self):
        work = workload(nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5)))
        seeds = iter(range(100))

        def other_numbers():
            torch.manual_seed(next(seeds))
            return work.step()

        assert checked(work, other_numbers).accuracy is Accuracy.PASS


OUT = "out of memory"


class FitsAtLast(nn.Module):
    """In float64 it runs out of memory as often as ``failures`` says. Mixes the samples of a batch, so that chunks are no way out."""

    failures = 0

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))

    def forward(self, inputs):
        if inputs.dtype is not torch.bfloat16 and self.layers[0].weight.dtype is not torch.float32 and FitsAtLast.failures > 0:
            FitsAtLast.failures -= 1
            raise torch.OutOfMemoryError("no room")
        return self.layers(inputs)


class HalfFits(nn.Linear):
    """In float64 there is room for half of the batch."""

    def forward(self, inputs):
        if inputs.dtype == torch.float64 and len(inputs) > 3:
            raise torch.OutOfMemoryError("no room")
        return super().forward(inputs)


class Centred(HalfFits):
    """Another function of a sample in another batch."""

    def forward(self, inputs):
        return super().forward(inputs - inputs.mean(0))


class TestLossesThatCancel:
    """The mean of outputs is almost nothing beside them, so that rounding decides its digits."""

    def work(self, dtype="amp", loss=mean_of_outputs):
        torch.manual_seed(0)
        work = workload(nn.Sequential(nn.Linear(8, 64), Cancelling()), torch.randn(32, 8), loss, dtype=dtype)
        assert abs(float(work.step())) < 1e-3
        return work

    def other(self, work, change):
        """A compiled step whose loss is another by ``change``; its gradients are eager's."""
        return lambda: work.step() + change

    def test_what_roundings_of_the_outputs_may_make_passes_and_more_does_not(self):
        rounding = 2.0**-7 * 1.0 / math.sqrt(32 * 64)  # outputs of size 1 in bfloat16
        for times, verdict in ((1.0, Accuracy.PASS), (30.0, Accuracy.FAIL)):
            work = self.work()
            assert checked(work, self.other(work, times * rounding), rule=Rule(1e-3, 3.0, 2.0**-7)).accuracy is verdict

    def test_of_another_loss_nothing_is_known(self):
        work = self.work(loss=lambda outputs: outputs.float().mean())
        rounding = 2.0**-7 / math.sqrt(32 * 64)
        assert checked(work, self.other(work, 3 * rounding), rule=Rule(1e-3, 3.0, 2.0**-7)).accuracy is Accuracy.FAIL

    def test_the_rounding_is_that_of_a_mean(self):
        outputs = [torch.full((100,), 2.0), {"more": torch.full((4, 4), 3.0)}]
        expected = 0.01 * math.sqrt(4 / 100 + 9 / 16) / 2
        assert judgement.loss_rounding(mean_of_outputs, lambda: outputs, 0.01) == pytest.approx(expected)
        assert judgement.loss_rounding(scaled_mean_of_outputs, lambda: outputs, 0.01) == pytest.approx(expected / 1000)
        assert judgement.loss_rounding(models.squares, lambda: pytest.fail("not to be asked"), 0.01) == 0.0

    def test_it_is_what_rounded_outputs_do_to_the_mean(self):
        outputs = torch.randn(4000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        rounded = [
            float((outputs * (1 + 0.01 * torch.randn(4000, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))).mean())
            for seed in range(2, 202)
        ]
        spread = torch.tensor(rounded).std()
        assert judgement.loss_rounding(mean_of_outputs, lambda: outputs, 0.01) == pytest.approx(float(spread), rel=0.15)


class Cancelling(nn.Module):
    """Outputs of size 1 whose mean is 0 but for rounding."""

    def forward(self, inputs):
        inputs = inputs.float()
        return (inputs - inputs.mean()) / inputs.std()


class TestFallBacks:
    """Each caused by running out of memory at that point, on a device that is taken to have memory of its own."""

    @pytest.fixture(autouse=True)
    def own_memory(self, monkeypatch):
        monkeypatch.setattr(accuracy, "_has_own_memory", lambda device: True)
        monkeypatch.setattr(FitsAtLast, "failures", 0)

    @pytest.mark.parametrize(
        ("failures", "reference"),
        [
            (0, "float64"),
            (1, "float64, results on the host"),
            (2, "float64, results and saved state on the host"),
            (3, "float64 on the CPU, results and saved state on the host"),
            (4, "none"),
        ],
    )
    def test_they_come_in_a_fixed_order_and_are_recorded(self, failures, reference):
        work = workload(FitsAtLast())
        for compiled, expected in ((work.step, Accuracy.PASS), (lambda: work.step() * 1.02, Accuracy.FAIL)):
            FitsAtLast.failures = failures
            verdict = checked(work, compiled)
            assert verdict.accuracy is expected
            assert verdict.reference.partition(" (")[0] == reference
            assert verdict.reference.count(OUT) == failures

    @pytest.mark.parametrize(
        ("failures", "found", "asked", "reference", "lacks"),
        [
            (2, True, 0, "float64, results and saved state on the host", 2),
            (3, True, 1, "float64, results and saved state on the host", 3),
            (3, False, 1, "float64 on the CPU, results and saved state on the host", 3),
            (4, True, 1, "float64 on the CPU, results and saved state on the host", 3),
        ],
    )
    def test_the_device_is_tried_once_more_before_the_hosts_processors(self, failures, found, asked, reference, lacks):
        FitsAtLast.failures = failures
        waited = []
        verdict = checked(workload(FitsAtLast()), relief=lambda: waited.append(True) or found)
        assert (verdict.accuracy, len(waited)) == (Accuracy.PASS, asked)
        assert verdict.reference.partition(" (")[0] == reference
        assert verdict.reference.count(OUT) == lacks, "what failed twice is named once"

    def test_a_model_without_kernels_for_it_does_not_wait_for_memory(self):
        verdict = checked(workload(NoDouble(8, 4)), relief=lambda: pytest.fail("asked for memory"))
        assert verdict.reference.startswith("none (float64: NotImplementedError")

    def test_eager_alone_goes_to_the_host_as_well(self, monkeypatch):
        work, tried = workload(FitsAtLast()), []

        def run(check, fallen_back):
            tried.append(str(check.reference))
            check.in_arms = True
            if len(tried) == 2:
                return accuracy.Verdict(Accuracy.PASS)
            raise torch.OutOfMemoryError("no room")

        fallbacks = accuracy.references.candidates(work, has_own_memory=True, state_on_host=False)
        monkeypatch.setattr(accuracy.references, "candidates", lambda *arguments, **more: fallbacks[-2:])
        monkeypatch.setattr(accuracy._Check, "run", run)
        assert checked(work).accuracy is Accuracy.PASS
        assert tried == ["none", "none, results and saved state on the host"]

    def test_results_on_the_host_are_compared_on_the_device(self, monkeypatch):
        asked = []
        moved = accuracy._Near.__getitem__
        monkeypatch.setattr(accuracy._Near, "__getitem__", lambda near, name: asked.append(name) or moved(near, name))
        FitsAtLast.failures = 1
        work = workload(FitsAtLast())
        assert checked(work).accuracy is Accuracy.PASS
        assert {"loss.0", "gradient.layers.0.weight"} <= set(asked)

    def test_under_autocast_float32_comes_before_none(self):
        FitsAtLast.failures = 4
        verdict = checked(workload(FitsAtLast(), dtype="amp"))
        assert verdict.accuracy is Accuracy.PASS
        assert verdict.reference.startswith("float32, results and saved state on the host (float64: out of memory; ")

    @pytest.mark.parametrize("mode", ["training", "inference"])
    @pytest.mark.parametrize("dtype", ["float32", "amp"])
    def test_a_batch_that_does_not_fit_is_taken_in_chunks(self, mode, dtype):
        work = workload(HalfFits(8, 4), mode=mode, dtype=dtype, loss=models.squares)
        rule = RULE if dtype == "float32" else dataclasses.replace(RULE, tolerance=1e-2, multiplier=3.0, epsilon=2.0**-7)
        verdict = checked(work, rule=rule)
        assert verdict.accuracy is Accuracy.PASS
        assert verdict.reference.startswith("float64 in 6 chunks, results and saved state on the host (float64: out of memory; ")
        wrong = checked(work, lambda: work.step() * 1.02, rule=rule)
        assert (wrong.accuracy, wrong.reference) == (Accuracy.FAIL, verdict.reference)

    def test_chunks_that_are_another_step_are_refused(self):
        verdict = checked(workload(Centred(8, 4)))
        assert "float64 in 6 chunks, results and saved state on the host: eager in chunks gives another loss.0" in verdict.reference
        assert verdict.reference.startswith("none")

    def test_the_host_is_not_asked_for_more_time_than_there_is(self):
        FitsAtLast.failures = 3
        work = workload(FitsAtLast())
        verdict = check(work, work.step, step.State(work, 0), iterations=1, rule=RULE, device=CPU, time_s=-1.0)
        assert verdict.reference.startswith("none")
        assert "on the CPU, results and saved state on the host: would take 0 s, and -1 are left" in verdict.reference

    def test_nor_for_more_memory(self, monkeypatch):
        monkeypatch.setattr(references, "_free_host_bytes", lambda: -1)
        FitsAtLast.failures = 3
        assert "on the host, which has" in checked(workload(FitsAtLast())).reference

    @pytest.mark.parametrize("which", ["eager", "compiled"])
    def test_arms_that_do_not_fit_beside_the_saved_state(self, which):
        work, state = workload(), None

        def crowded():
            if not state.on_host:
                raise torch.OutOfMemoryError("no room")
            return original()

        original = work.step
        if which == "eager":
            work = dataclasses.replace(work, step=crowded)
        state = step.State(work, seed=0)
        verdict = check(work, crowded, state, iterations=2, rule=RULE, device=CPU)
        assert (verdict.accuracy, state.on_host) == (Accuracy.PASS, True)
        assert verdict.reference.startswith("float64, results and saved state on the host (float64: out of memory; ")

    def test_arms_that_do_not_fit_at_all_are_not_tried_with_every_reference(self):
        work, calls = workload(), []

        def too_big():
            calls.append(1)
            raise torch.OutOfMemoryError("no room")

        with pytest.raises(torch.OutOfMemoryError):
            checked(work, too_big)
        assert len(calls) == 3

    def test_what_is_on_the_host_already_is_not_moved_again(self):
        found = references.candidates(workload(), has_own_memory=True, state_on_host=True)
        assert all(reference.state_on_host for reference in found)
        assert len(set(found)) == len(found)

    @given(st.integers(1, 300))
    def test_chunks_have_one_size(self, batch):
        counts = references.chunk_counts(batch)
        assert all(batch % count == 0 and 1 < count <= batch for count in counts)
        assert counts == sorted(set(counts))
        assert (batch == 1) or counts[-1] == batch


def test_distances_are_relative():
    one, other = {"result": torch.tensor([2.0])}, {"result": torch.tensor([3.0])}
    assert movement(one, other) == (0.5, 0.0)
    assert movement(one, one) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ([NAN, 1], [NAN, 1], True),
        ([NAN, 1], [0, 1], False),
        ([0, 1], [NAN, 1], False),
        ([INF, 1], [INF, 1], True),
        ([INF, 1], [3.4028234663852886e38, 1], False),
        ([-INF, 1], [INF, 1], False),
        ([-0.0, 1], [0.0, 1], True),
    ],
)
def test_what_is_identical(one, other, same):
    assert identical({"value": torch.tensor(one)}, {"value": torch.tensor(other)}) is same


class TestRandomNumbers:
    def test_a_gradient_that_is_nothing_but_rounding_moves_nothing(self):
        one, other = ({"output": torch.ones(1), "gradient.a": torch.ones(100), "gradient.b": 1e-9 * normal(9, seed=n)} for n in (1, 2))
        assert movement(one, other) == (0.0, pytest.approx(0.0, abs=1e-8))
        assert movement({"output": one["gradient.b"]}, {"output": other["gradient.b"]})[0] > 0.1

    def test_losses_and_outputs_count_one_by_one(self):
        one = {"output[0]": torch.full((9,), 1e6), "output[1]": torch.ones(3), "gradient.a": torch.ones(3)}
        assert movement(one, one | {"output[1]": torch.full((3,), 1.5)}) == (0.5, 0.0)
        assert movement(one, one | {"gradient.a": torch.full((3,), 0.5)}) == (0.0, 0.5)

    @pytest.mark.parametrize(
        ("other_seed", "same_seed", "expected"),
        [
            ((0.0, 0.0), (0.0, 0.0), Randomness.NONE),
            ((1e-3, 1e-3), (2e-4, 2e-4), Randomness.NONE),
            ((1e-5, 1e-4), (0.0, 0.0), Randomness.NEGLIGIBLE),
            ((1e-5, 1e-2), (0.0, 0.0), Randomness.DECISIVE),
            ((1e-2, 0.0), (1e-4, 0.0), Randomness.DECISIVE),
            ((0.5, 1e-4), (0.5, 1e-6), Randomness.NEGLIGIBLE),
        ],
    )
    def test_what_they_do(self, other_seed, same_seed, expected):
        assert randomness_of(other_seed, same_seed, limit=1e-4) is expected

    def test_what_moves_them_by_no_more_than_roundings_is_negligible(self):
        assert judgement.seed_limit(dataclasses.replace(RULE, tolerance=1e-2, epsilon=2.0**-23)) == pytest.approx(1e-3)
        assert judgement.seed_limit(dataclasses.replace(RULE, tolerance=1e-3, epsilon=2.0**-10)) == 4 * 2.0**-10

    @pytest.mark.parametrize(
        ("loss", "gradient", "expected"), [(1.003, 1.0, False), (1.005, 1.0, True), (1.0, 1.003, False), (1.0, 1.1, True)]
    )
    def test_a_reference_that_is_too_far_away_is_another_sample(self, loss, gradient, expected):
        eager = {"loss.0": torch.ones(1), "gradient.a": torch.ones(9)}
        truth = {"loss.0": torch.full((1,), loss), "gradient.a": torch.full((9,), gradient)}
        assert draws_others(eager, truth, RULE) is expected

    @pytest.mark.parametrize(("dtype", "instead"), [("float32", "none"), ("amp", "float32")])
    @pytest.mark.parametrize("mode", ["training", "inference"])
    def test_such_a_reference_is_passed_over(self, mode, dtype, instead):
        work = workload(models.Noisy(), inputs=torch.randn(64, 8), mode=mode, dtype=dtype)
        verdict = checked(work, random=Randomness.DECISIVE)
        assert (verdict.accuracy, verdict.margin) == (Accuracy.PASS, 1.0)
        assert verdict.reference == f"{instead} (float64: draws other random numbers than eager)"

    @pytest.mark.parametrize("factor", [1.02, 1.1, 1.5, 0.5])
    @pytest.mark.parametrize("what", ["loss", "gradient", "output"])
    def test_faults_of_a_model_that_draws_are_found(self, what, factor):
        """A float64 reference of another sample is so far away that it would let each of them pass."""
        work = workload(models.Noisy(), inputs=torch.randn(64, 8), mode="inference" if what == "output" else "training")

        def wrong():
            result = work.step()
            if what == "gradient":
                work.module.layer.weight.grad.mul_(factor)
            return result if what == "gradient" else result * factor

        assert checked(work, wrong, random=Randomness.DECISIVE).accuracy is Accuracy.FAIL
        assert checked(work, wrong).reference == "float64"

    def test_a_reference_that_draws_the_same_is_kept(self):
        """As a model does that draws in a dtype of its own."""

        class SameForAll(nn.Linear):
            def forward(self, inputs):
                return super().forward(inputs + torch.randn(inputs.shape, dtype=torch.float32).to(inputs.dtype))

        assert checked(workload(SameForAll(8, 4)), random=Randomness.DECISIVE).reference == "float64"


class _Reads(TorchDispatchMode):
    """Counts what makes a process wait for its device."""

    WAITING = ("aten._local_scalar_dense", "aten.equal", "aten.nonzero", "aten.masked_select", "aten.is_nonzero")

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += str(function).startswith(self.WAITING) or (str(function).startswith("aten.index.") and has_mask(args[1]))
        return function(*args, **(kwargs or {}))


def has_mask(indices):
    return any(index is not None and index.dtype == torch.bool for index in indices)


@pytest.mark.parametrize("optimizer", ["none", "sgd"])
def test_a_check_waits_for_the_device_as_often_for_many_tensors_as_for_few(optimizer):
    counts = []
    for layers in (2, 20):
        with _Reads() as reads:
            verdict = checked(workload(nn.Sequential(*(nn.Linear(8, 8) for _ in range(layers))), optimizer=optimizer))
        assert verdict.accuracy is Accuracy.PASS
        counts.append(reads.count)
    assert counts[0] == counts[1]


def test_an_element_that_is_no_number_does_not_hide_those_that_differ():
    assert judgement.differing({"output": torch.tensor([NAN, 1.0])}, {"output": torch.tensor([NAN, 2.0])}, RULE) == "output"
    assert judgement.differing({"output": torch.tensor([NAN, 1.0])}, {"output": torch.tensor([NAN, 1.0])}, RULE) is None


@pytest.mark.parametrize("stray", [NAN, INF, -INF])
def test_an_element_that_is_a_number_on_one_side_only_differs(stray):
    one, other = {"output": torch.tensor([stray, 1.0])}, {"output": torch.tensor([3.0, 1.0])}
    assert judgement.differing(one, other, RULE) == "output"
    assert judgement.differing(other, one, RULE) == "output"

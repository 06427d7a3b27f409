"""The accuracy check: the compiled callable that is timed, on the batch that is timed, against eager and a float64 reference.

From one state, each arm does the same number of steps: the reference, eager, eager again, compiled; all but the last without the drops
of negligible dropouts (``tasks.dropout``). Compared afterwards are the losses (or, in inference, the outputs), every gradient, and what
the steps changed in parameters and buffers. Changes rather than values, because a step moves a parameter by far less than any tolerance
on the parameter itself. ``tasks.comparison`` has the rules. What would fail for its size alone is judged again by what roundings do to
it, which takes a fifth arm: ``tasks.shaken``.

The second eager run measures how deterministic the model is; eager's error is the larger one of both runs. Where the reference does not
fit or does not run, the check falls back in the order of ``tasks.references``, and the row says to what and why. Without a reference,
eager's distance from itself takes the place of its error. Where not even eager and compiled fit, nothing is judged: out of memory.
"""

from __future__ import annotations

import contextlib
import gc
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from tasks import comparison, references, shaken, step
from tasks.comparison import Finding, Rule
from tasks.draws import Draws, recorded, same_draws
from tasks.dropout import undropped
from tasks.failure import lacks_memory
from tasks.judgement import (
    Randomness,
    Results,
    changes_of,
    compare_all,
    differing,
    draws_others,
    eager_errors,
    gradient_of,
    identical,
    kind_of,
    loss_rounding,
    losses_of,
    said,
    with_rounded_losses,
)
from tasks.references import Reference, fails_alike, too_much_for_the_host
from tasks.spec import Accuracy, PrecisionSpec
from tasks.step import State, Workload

__all__ = ["Reference", "Results", "Verdict", "check", "rule_for", "tolerance_for"]

RESULTS = {True: ("gradient",), False: ("output",)}  # in training, and not: the kind of which one must hold a number for a verdict
OUT_OF_MEMORY = "out of memory"
OTHER_RANDOM_NUMBERS = "draws other random numbers than eager"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of the check. ``margin`` is what the worst tensor leaves of its limit, relative to it: negative if it fails."""

    accuracy: Accuracy
    reason: str | None = None
    tensor: str | None = None
    margin: float | None = None
    tolerance: float | None = None
    eager_rmse: float | None = None
    compiled_rmse: float | None = None
    deterministic: bool | None = None
    reference: str | None = None
    blind: bool = False  # for lack of memory there was no reference


class NoReferenceError(Exception):
    """The reference could not be computed; the message says why."""


def tolerance_for(suite: str, training: bool, precision: PrecisionSpec, autocast: torch.dtype | None) -> float:
    """The default tolerance: upstream's for the suite and mode, and never below 1e-2 under bfloat16, which has eight bits."""
    if suite in ("huggingface", "timm"):
        lower, higher, tight = 1e-3, 1e-2, not training
    else:
        lower, higher, tight = 1e-4, 1e-3, not training and precision.dtype == "float32"
    usual = lower if tight else higher
    return max(usual, 1e-2) if autocast is torch.bfloat16 else usual


def rule_for(tolerance: float, workload: Workload, precision: PrecisionSpec, device: torch.device) -> Rule:
    """What a task is judged by."""
    return comparison.rule_of(tolerance, workload.autocast_dtype, tf32=device.type == "cuda" and precision.tf32)


def check(
    workload: Workload,
    compiled: Callable[[], Any],
    state: State,
    *,
    iterations: int,
    rule: Rule,
    device: torch.device,
    time_s: float = math.inf,
    random: Randomness = Randomness.NONE,
    turn: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
    relief: Callable[[], bool] = lambda: False,
) -> Verdict:
    """Run the four arms and judge. The state is restored before each, and once more at the end.

    ``time_s`` is what a reference on the host's processors may take. ``random``: where random numbers move next to nothing, the second
    eager arm draws others, because the compiled one will; what they move then counts as eager's error, and whether the model is
    deterministic is not known. Where they decide, a reference that draws others is none. ``turn`` surrounds the taking of most memory;
    ``relief`` is asked whether there is more of it now, once, before a reference is computed on the host's processors.

    Raises:
        torch.OutOfMemoryError: not even eager and compiled alone fit.
    """
    failed: dict[Reference, str] = {}
    candidates = references.candidates(workload, has_own_memory=_has_own_memory(device), state_on_host=state.on_host)
    for reference in _in_order(candidates, failed, relief):
        if any(fails_alike(other, reference) for other, why in failed.items() if why != OUT_OF_MEMORY):
            continue
        its_turn = contextlib.nullcontext if failed else turn  # who did not find enough room in it waits no more
        attempt = _Check(workload, compiled, state, iterations, rule, device, reference, time_s, random, its_turn)
        try:
            verdict = attempt.run("; ".join(f"{other}: {why}" for other, why in failed.items()))
        except NoReferenceError as error:
            failed[reference] = str(error)
        except torch.OutOfMemoryError:
            if reference == candidates[-1] or (attempt.in_arms and reference.all_on_host):
                raise
            failed[reference] = OUT_OF_MEMORY
        else:
            state.restore()
            return replace(verdict, blind=reference.dtype is None and OUT_OF_MEMORY in failed.values())
        free_memory(device)
    raise AssertionError("the last reference is none, which cannot fail")


def _in_order(candidates: Sequence[Reference], failed: Mapping[Reference, str], relief: Callable[[], bool]) -> Iterator[Reference]:
    """``candidates``; ahead of the host's processors, which take minutes, what only lacked memory comes once more if there is more now."""
    for reference in candidates:
        if reference.on_cpu:
            lacked = [other for other, why in failed.items() if why == OUT_OF_MEMORY and other.chunks == 1]
            if lacked and relief():
                yield lacked[-1]
        yield reference


@dataclass(slots=True)
class _Check:
    workload: Workload
    compiled: Callable[[], Any]
    state: State
    iterations: int
    rule: Rule
    device: torch.device
    reference: Reference
    time_s: float
    random: Randomness
    turn: Callable[[], AbstractContextManager[None]]
    in_arms: bool = False  # the reference is done
    drawn: Draws = field(default_factory=list)  # by the reference

    def run(self, fallen_back: str) -> Verdict:
        if self.reference.state_on_host and not self.state.on_host:
            self.state.to_host()
        truth = self._near(self._reference_results())
        if truth and _has_own_memory(self.device):
            free_memory(self.device)  # what its step took is several times what it leaves
        self.in_arms = True
        drawn: Draws = []
        eager_step = self._eagerly(self.workload.step, drawn)
        eager = self._near(self._run_arm(eager_step, keep=True))
        if self.random is Randomness.DECISIVE and truth and draws_others(eager, truth, self.rule, same_draws(self.drawn, drawn)):
            raise NoReferenceError(OTHER_RANDOM_NUMBERS)
        reseed = self.random is Randomness.NEGLIGIBLE
        again = self._near(self._run_arm(eager_step, keep=False, seed_offset=int(reseed)))
        deterministic = None if reseed else identical(eager, again)
        errors = eager_errors(eager, again, truth)
        del again
        errors = with_rounded_losses(errors, self._loss_rounding())
        compiled = self._near(self._run_arm(self.compiled, keep=False))
        findings = compare_all(eager, compiled, truth, errors, self.rule)
        del compiled, truth  # the shaken arm takes no more than they did
        findings, remark = shaken.judged_again(findings, eager, self.rule, self._shaken_results, _said)
        return self._verdict(findings, deterministic, fallen_back, losses_of(eager), remark)

    def _eagerly(self, one_step: Callable[[], Any], drawn: Draws) -> Callable[[], Any]:
        """``one_step`` as it is compared; where random numbers decide whether a reference is one, ``drawn`` gets those that it draws."""
        asked = self.random is Randomness.DECISIVE and self.reference.dtype is not None
        return recorded(undropped(one_step), drawn if asked else None)

    def _shaken_results(self, names: set[str]) -> Results:
        """Of eager with shaken parameters; of parameters and buffers those of ``names`` only.

        Changes are counted from the shaken parameters, or the shaking would be one.
        """
        self.state.restore()
        shaken.shake(self.workload.module, self.rule.epsilon)
        initial = {name: self._hold(tensor.detach(), keep=True) for name, tensor in step.named_state(self.workload.module) if name in names}
        return self._near(self._collect(self.workload, undropped(self.workload.step), initial, keep=False))

    def _loss_rounding(self) -> float:
        if not self.workload.training:
            return 0.0
        self.state.restore()
        return loss_rounding(self.workload.loss, lambda: step.outputs_of(self.workload, self.device), self.rule.epsilon)

    def _reference_results(self) -> Results:
        """Raises: NoReferenceError."""
        dtype = self.reference.dtype
        if dtype is None:
            return {}
        try:
            self._require_possible()
            self.state.restore()
            with without_tf32(self.device):
                return self._run_reference(dtype, torch.device("cpu") if self.reference.on_cpu else self.device)
        except (torch.OutOfMemoryError, NoReferenceError):
            raise
        except Exception as error:
            if lacks_memory(error):
                raise torch.OutOfMemoryError(str(error)) from error
            raise NoReferenceError(said(error)) from error

    def _run_reference(self, dtype: torch.dtype, place: torch.device) -> Results:
        whole = place.type == self.device.type and self.reference.chunks == 1
        with contextlib.ExitStack() as turn:  # until the first step has taken what it needs
            turn.enter_context(self.turn() if whole else contextlib.nullcontext())
            return self._step_reference(dtype, place, turn.close)

    def _step_reference(self, dtype: torch.dtype, place: torch.device, stepped: Callable[[], None]) -> Results:
        copied = step.in_precision(self.workload, dtype, place)
        if self.reference.chunks > 1:
            copied = step.in_chunks(copied, self.reference.chunks, place)
        keep_at = torch.device("cpu") if self.reference.results_on_host else place
        initial = {name: tensor.detach().to(keep_at, copy=True) for name, tensor in step.named_state(copied.module)}

        def one_step() -> Any:
            found = self._eagerly(copied.step, self.drawn)()
            stepped()
            return found

        return self._collect(copied, one_step, initial, keep=True)

    def _require_possible(self) -> None:
        """Raises: NoReferenceError, if chunks do not give the same step, or the host would take too long or too much memory."""
        if self.reference.on_cpu and self.device.type != "cpu" and self.random is Randomness.DECISIVE:
            raise NoReferenceError(OTHER_RANDOM_NUMBERS)
        if self.reference.on_cpu:
            self.state.restore()
            why = too_much_for_the_host(self.workload, self.device, self.iterations, self.time_s)
            if why is not None:
                raise NoReferenceError(why)
        if self.reference.chunks > 1:
            whole = self._run_arm(undropped(self.workload.step), keep=True)
            chunked = self._run_arm(undropped(step.in_chunks(self.workload, self.reference.chunks, self.device).step), keep=False)
            name = differing(whole, chunked, self.rule)
            if name is not None:
                raise NoReferenceError(f"eager in chunks gives another {name}")

    def _run_arm(self, one_step: Callable[[], Any], *, keep: bool, seed_offset: int = 0) -> Results:
        self.state.restore(seed_offset)
        return self._collect(self.workload, one_step, self.state.initial, keep=keep)

    def _collect(self, workload: Workload, one_step: Callable[[], Any], initial: dict[str, torch.Tensor], *, keep: bool) -> Results:
        """Step, then gather everything to compare, changes of what is in ``initial``; with ``keep`` it outlives the next arm."""
        steps = range(self.iterations)
        found: dict[str, Any] = {}
        if workload.training:  # a step may write its loss to the same place each time: copy it at once
            found |= {f"loss.{index}": self._hold(one_step().detach(), keep=True) for index in steps}
            found |= {
                f"gradient.{name}": self._hold(gradient_of(parameter), keep) for name, parameter in workload.module.named_parameters()
            }
        else:
            for _ in steps[1:]:
                one_step()
            found |= {name: self._hold(value, keep) for name, value in comparison.leaves(one_step(), "output")}
        with torch.no_grad():
            changes = changes_of(step.named_state(workload.module), initial)
        found |= {name: self._hold(change, keep=False) for name, change in changes.items()}
        return found

    def _near(self, results: Results) -> Results:
        """To be compared on the device, wherever they are held."""
        return _Near(results, self.device) if self.reference.results_on_host and _has_own_memory(self.device) else results

    def _hold(self, value: Any, keep: bool) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        if self.reference.results_on_host:
            return value.to("cpu", copy=True)
        return value.clone() if keep else value

    def _verdict(
        self, findings: list[Finding], deterministic: bool | None, fallen_back: str, losses: list[float], remark: str | None
    ) -> Verdict:
        remarks = [] if remark is None else [remark]
        if deterministic is False:
            remarks.append("eager does not repeat itself exactly")
        if any(not math.isfinite(loss) for loss in losses):
            remarks.append(f"eager's loss is {losses[-1]}")
        left_out = [finding.left_out for finding in findings if finding.left_out]
        if left_out:
            remarks.append(f"{sum(left_out)} elements of {len(left_out)} values are not finite, and were left out")
        worst = max(findings, key=lambda finding: finding.ratio)
        failing = [finding for finding in findings if not finding.passes]
        if failing:
            accuracy = Accuracy.FAIL
            detail = worst.reason or _sizes(worst)
            remarks.insert(0, f"{len(failing)} of {len(findings)} values differ, most of all {worst.name}: {detail}")
        elif not any(finding.finite for finding in findings if kind_of(finding.name) in RESULTS[self.workload.training]):
            accuracy = Accuracy.SKIPPED
            remarks.insert(0, f"nothing finite to compare: no {' or '.join(RESULTS[self.workload.training])} holds a number")
        else:
            accuracy = Accuracy.PASS
        name = str(self.reference) + (f" ({fallen_back})" if fallen_back else "")
        return Verdict(
            accuracy=accuracy,
            reason="; ".join(remarks) or None,
            tensor=worst.name,
            margin=1.0 - worst.ratio,
            tolerance=self.rule.tolerance,
            eager_rmse=worst.eager_rmse,
            compiled_rmse=worst.compiled_rmse,
            deterministic=deterministic,
            reference=name,
        )


class _Near(Mapping[str, Any]):
    """Results that come to ``device`` one by one, each time they are asked for."""

    def __init__(self, held: Results, device: torch.device) -> None:
        self._held, self._device = held, device

    def __getitem__(self, name: str) -> Any:
        value = self._held[name]
        return value.to(self._device) if isinstance(value, torch.Tensor) else value

    def __iter__(self) -> Iterator[str]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)


def _sizes(finding: Finding) -> str:
    moved = "" if finding.roundings is None else f", roundings' {finding.roundings:.3g}"
    return f"error {finding.compiled_rmse:.3g}, eager's {finding.eager_rmse:.3g}{moved}, {finding.ratio:.3g} times its limit"


def _said(error: Exception) -> str:
    return OUT_OF_MEMORY if lacks_memory(error) else said(error)


def _has_own_memory(device: torch.device) -> bool:
    return device.type != "cpu"


@contextlib.contextmanager
def without_tf32(device: torch.device) -> Iterator[None]:
    """Matrix products with all of float32's digits."""
    if device.type != "cuda":
        yield
        return
    before = torch.backends.cuda.matmul.allow_tf32
    step.set_tf32(False, device)
    try:
        yield
    finally:
        step.set_tf32(before, device)


def free_memory(device: torch.device) -> None:
    """Give memory that the allocator keeps for later back to the device, where neighbours can have it."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()

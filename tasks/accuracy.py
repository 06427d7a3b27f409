"""The accuracy check: the compiled callable that is timed, on the batch that is timed, against eager and a float64 reference.

From one state, each arm does the same number of steps: the reference, eager, eager again, compiled. Compared afterwards are the losses
(or, in inference, the outputs), every gradient, and what the steps changed in parameters and buffers. Changes rather than values,
because a step moves a parameter by far less than any tolerance on the parameter itself. ``tasks.comparison`` has the rules.

The second eager run measures how deterministic the model is; eager's error is the larger one of both runs. When the reference does not
fit or does not run, the check falls back in this order, and the row says to what: float64 with the results held on the host, float32
(where autocast is on), no reference. Without one, eager's distance from itself takes the place of its error.
"""

from __future__ import annotations

import contextlib
import gc
import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from tasks import comparison, step
from tasks.comparison import Errors, Finding, Rule
from tasks.spec import Accuracy, PrecisionSpec
from tasks.step import State, Workload

Results = dict[str, Any]  # by name: a tensor, or a plain value

RESULTS = ("loss", "output", "gradient")  # the kinds of which at least one must hold a number for a verdict
_EPSILON = {None: 2.0**-23, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}
_TF32_EPSILON = 2.0**-10


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


@dataclass(frozen=True, slots=True)
class Reference:
    """How a reference is made: its dtype (None: there is none), and whether results are held on the host."""

    dtype: torch.dtype | None
    on_host: bool

    def __str__(self) -> str:
        name = "none" if self.dtype is None else str(self.dtype).removeprefix("torch.")
        return f"{name}, results on the host" if self.on_host and self.dtype is torch.float64 else name


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
    """Upstream's multipliers: 2 for float32, 3 for lower precisions and for wide tolerances."""
    epsilon = _EPSILON[workload.autocast_dtype]
    if device.type == "cuda" and precision.tf32:
        epsilon = max(epsilon, _TF32_EPSILON)
    return Rule(tolerance, 2.0 if workload.autocast_dtype is None and tolerance < 2e-2 else 3.0, epsilon)


def check(workload: Workload, compiled: Callable[[], Any], state: State, *, iterations: int, rule: Rule, device: torch.device) -> Verdict:
    """Run the four arms and judge. The state is restored before each, and once more at the end.

    Raises:
        torch.OutOfMemoryError: not even eager and compiled alone fit.
    """
    failed: list[str] = []
    references = _references(workload, device)
    for reference in references:
        check_once = _Check(workload, compiled, state, iterations, rule, device, reference)
        try:
            verdict = check_once.run("; ".join(failed))
        except NoReferenceError as error:
            failed.append(f"{reference}: {error}")
        except torch.OutOfMemoryError:
            if reference is references[-1]:
                raise
            failed.append(f"{reference}: out of memory")
        else:
            state.restore()
            return verdict
        free_memory(device)
    raise AssertionError("the last reference is none, which cannot fail")


def _references(workload: Workload, device: torch.device) -> list[Reference]:
    found = [Reference(torch.float64, on_host=False)]
    on_host = device.type != "cpu"
    if on_host:
        found.append(Reference(torch.float64, on_host=True))
    if workload.autocast_dtype is not None:
        found.append(Reference(torch.float32, on_host))
    return [*found, Reference(None, on_host)]


@dataclass(slots=True)
class _Check:
    workload: Workload
    compiled: Callable[[], Any]
    state: State
    iterations: int
    rule: Rule
    device: torch.device
    reference: Reference

    def run(self, fallen_back: str) -> Verdict:
        truth = self._reference_results()
        eager = self._run_arm(self.workload.step, keep=True)
        again = self._run_arm(self.workload.step, keep=False)
        deterministic = _identical(eager, again)
        errors = {name: _errors(value, again.get(name), truth.get(name)) for name, value in eager.items()}
        del again
        compiled = self._run_arm(self.compiled, keep=False)
        findings = _compare(eager, compiled, truth, errors, self.rule)
        return self._verdict(findings, deterministic, fallen_back, _losses(eager))

    def _reference_results(self) -> Results:
        """Raises: NoReferenceError."""
        dtype = self.reference.dtype
        if dtype is None:
            return {}
        self.state.restore()
        try:
            with _without_tf32(self.device):
                copied = step.in_precision(self.workload, dtype, self.device)
                initial = {name: tensor.detach().clone() for name, tensor in step.named_state(copied.module)}
                return self._collect(copied, copied.step, initial, keep=True)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            raise NoReferenceError(f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}") from error

    def _run_arm(self, one_step: Callable[[], Any], *, keep: bool) -> Results:
        self.state.restore()
        return self._collect(self.workload, one_step, self.state.initial, keep=keep)

    def _collect(self, workload: Workload, one_step: Callable[[], Any], initial: dict[str, torch.Tensor], *, keep: bool) -> Results:
        """Step, then gather everything to compare; with ``keep`` it outlives the next arm."""
        steps = range(self.iterations)
        found: Results = {}
        if workload.training:  # a step may write its loss to the same place each time: copy it at once
            found |= {f"loss.{index}": one_step().detach().clone() for index in steps}
            found |= {f"gradient.{name}": self._hold(_gradient(parameter), keep) for name, parameter in workload.module.named_parameters()}
        else:
            for _ in steps[1:]:
                one_step()
            found |= {name: self._hold(value, keep) for name, value in comparison.leaves(one_step(), "output")}
        with torch.no_grad():
            changes = {name: _change(tensor.detach(), initial[name]) for name, tensor in step.named_state(workload.module)}
        return found | {name: self._hold(value, keep=False) for name, value in changes.items()}

    def _hold(self, value: Any, keep: bool) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        if self.reference.on_host:
            return value.to("cpu", copy=True)
        return value.clone() if keep else value

    def _verdict(self, findings: list[Finding], deterministic: bool, fallen_back: str, losses: list[float]) -> Verdict:
        remarks = [] if deterministic else ["eager does not repeat itself exactly"]
        if any(not math.isfinite(loss) for loss in losses):
            remarks.append(f"eager's loss is {losses[-1]}")
        worst = max(findings, key=lambda finding: finding.ratio)
        failing = [finding for finding in findings if not finding.passes]
        if failing:
            accuracy = Accuracy.FAIL
            detail = worst.reason or f"error {worst.compiled_rmse:.3g}, eager's {worst.eager_rmse:.3g}, {worst.ratio:.3g} times its limit"
            remarks.insert(0, f"{len(failing)} of {len(findings)} values differ, most of all {worst.name}: {detail}")
        elif not any(finding.finite for finding in findings if _kind(finding.name) in RESULTS):
            accuracy = Accuracy.SKIPPED
            remarks.insert(0, "nothing finite to compare")
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


def _compare(eager: Results, compiled: Results, truth: Results, errors: dict[str, Errors], rule: Rule) -> list[Finding]:
    kinds = _kinds(eager, errors)
    findings = []
    for name in [*eager, *(name for name in compiled if name not in eager)]:
        one, other = _none_as_zero(eager.get(name), compiled.get(name))
        if not (isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor)):
            findings.append(comparison.compare_plain(name, one, other))
            continue
        kind_error, kind_size = kinds.get(_kind(name), (0.0, 0.0))
        known = errors.get(name, Errors(0.0, 0.0))
        reference = truth.get(name)
        reference = reference if isinstance(reference, torch.Tensor) else None
        findings.append(
            comparison.compare_tensors(name, one, other, reference, rule, errors=known, kind_error=kind_error, kind_size=kind_size)
        )
    return findings


def _kinds(eager: Results, errors: dict[str, Errors]) -> dict[str, tuple[float, float]]:
    """By kind of tensor: eager's median relative error, and the root mean square of all elements."""
    found: dict[str, list[tuple[int, Errors]]] = {}
    for name, value in eager.items():
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            found.setdefault(_kind(name), []).append((value.numel(), errors[name]))
    return {kind: (_typical_error(entries), _overall_size(entries)) for kind, entries in found.items()}


def _typical_error(entries: list[tuple[int, Errors]]) -> float:
    known = [errors.relative for _, errors in entries if errors.size > 2 * errors.error]
    return statistics.median(known) if len(known) >= comparison.BORROWED_FROM else 0.0


def _overall_size(entries: list[tuple[int, Errors]]) -> float:
    finite = [(count, errors.size) for count, errors in entries if math.isfinite(errors.size)]
    return math.sqrt(sum(count * size**2 for count, size in finite) / max(1, sum(count for count, _ in finite)))


def _errors(eager: Any, again: Any, truth: Any) -> Errors:
    """Eager's error: against the reference the worse of its two runs, without one the distance between them."""
    if not isinstance(eager, torch.Tensor) or not isinstance(again, torch.Tensor):
        return Errors(0.0, 0.0)
    if not isinstance(truth, torch.Tensor):
        return comparison.errors_of(again, eager)
    return max((comparison.errors_of(run, truth) for run in (eager, again)), key=lambda errors: errors.error)


def distance(one: Results, other: Results) -> float:
    """The largest relative distance between floating-point tensors of the same name; 0 for results that are the same."""
    found = [0.0]
    for name, value in one.items():
        its = other.get(name)
        if isinstance(value, torch.Tensor) and isinstance(its, torch.Tensor):
            errors = comparison.errors_of(its, value)
            found.append(errors.relative if errors.size > 0 else errors.error)
    return max(found)


def _identical(one: Results, other: Results) -> bool:
    def same(left: Any, right: Any) -> bool:
        if isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
            if left.shape != right.shape:
                return False
            return torch.equal(left, right) or (left.is_floating_point() and torch.equal(left.nan_to_num(), right.nan_to_num()))
        return comparison.compare_plain("", left, right).passes

    return one.keys() == other.keys() and all(same(value, other[name]) for name, value in one.items())


def _gradient(parameter: torch.nn.Parameter) -> torch.Tensor | None:
    gradient = parameter.grad
    return gradient.to_dense() if gradient is not None and gradient.is_sparse else gradient


def _none_as_zero(one: Any, other: Any) -> tuple[Any, Any]:
    """No gradient and a gradient of zeros are the same."""
    if one is None and isinstance(other, torch.Tensor):
        return torch.zeros_like(other), other
    if other is None and isinstance(one, torch.Tensor):
        return one, torch.zeros_like(one)
    return one, other


def _change(tensor: torch.Tensor, initial: torch.Tensor) -> torch.Tensor:
    """What the steps added to ``tensor``; integers are compared as they are. Unchanged tensors cost no memory."""
    if not tensor.is_floating_point():
        return tensor.clone()
    if torch.equal(tensor, initial):
        return torch.zeros((), dtype=tensor.dtype, device=tensor.device).expand(tensor.shape)
    return tensor - initial


def _losses(results: Results) -> list[float]:
    return [float(value) for name, value in results.items() if _kind(name) == "loss" and isinstance(value, torch.Tensor)]


def _kind(name: str) -> str:
    return name.partition(".")[0].partition("[")[0].partition("<")[0]


@contextlib.contextmanager
def _without_tf32(device: torch.device) -> Iterator[None]:
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

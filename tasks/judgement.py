"""From what two arms computed to a list of findings: results by name, each judged by the rules of ``tasks.comparison``.

Names are ``loss.0``, ``gradient.NAME``, ``parameter.NAME``, ``buffer.NAME`` and ``output...``; what stands before the first dot or bracket
is the *kind* of a tensor, from which small tensors borrow an error and a size. Needs torch and ``tasks.comparison`` only, because
``sweep repro`` copies both into its scripts.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any

import torch

from tasks.comparison import BORROWED_FROM, ROUNDINGS, Errors, Finding, Rule, compare_plain, compare_tensors, errors_of, leaves, rms

Results = Mapping[str, Any]  # by name: a tensor, or a plain value

RANDOM_FACTOR = 10.0  # another seed must move a model's results by this many times what repeating moves them
NEGLIGIBLE = 0.1  # of the tolerance
SEED_LIMIT_UNDER_AUTOCAST = 0.01  # instead of ``seed_limit``: by so much another seed moves what autocast rounds, whatever it draws
MEANS = {"mean_of_outputs": 1.0, "scaled_mean_of_outputs": 1e-3}
"""Losses that are a mean of the outputs, and by what they multiply it."""
OTHER_SAMPLE = 4.0  # tolerances by which a reference that draws what eager draws is not apart from it


class Randomness(StrEnum):
    """What a model's random numbers do to its results. Dropout of a probability that drops next to nothing draws and moves nothing."""

    NONE = "none"
    NEGLIGIBLE = "negligible"
    DECISIVE = "decisive"


def compare_all(eager: Results, compiled: Results, truth: Results, errors: dict[str, Errors], rule: Rule) -> list[Finding]:
    """Judge every value of ``compiled``; ``errors`` are eager's, by name, against ``truth``, which may lack names or be empty."""
    kinds, siblings = _kinds(eager, errors), _sibling_errors(eager, errors)
    findings = []
    for name in [*eager, *(name for name in compiled if name not in eager)]:
        one, other = _none_as_zero(eager.get(name), compiled.get(name))
        if not (isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor)):
            findings.append(compare_plain(name, one, other))
            continue
        kind_error, kind_size = kinds.get(kind_of(name), (0.0, 0.0))
        known = errors.get(name, Errors(0.0, 0.0))
        reference = truth.get(name)
        reference = reference if isinstance(reference, torch.Tensor) else None
        borrowed = {"kind_error": kind_error, "kind_size": kind_size, "sibling_error": siblings.get((kind_of(name), one.shape), 0.0)}
        findings.append(compare_tensors(name, one, other, reference, rule, errors=known, **borrowed))
    return findings


def _kinds(eager: Results, errors: dict[str, Errors]) -> dict[str, tuple[float, float]]:
    """By kind of tensor: eager's median relative error, and the root mean square of all elements."""
    found: dict[str, list[tuple[int, Errors]]] = {}
    for name, value in eager.items():
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            found.setdefault(kind_of(name), []).append((value.numel(), errors[name]))
    return {kind: (_typical_error(entries), _overall_size(entries)) for kind, entries in found.items()}


def _sibling_errors(eager: Results, errors: dict[str, Errors]) -> dict[tuple[str, torch.Size], float]:
    """By kind and shape: eager's median error, root mean square and absolute, where there are tensors enough."""
    found: dict[tuple[str, torch.Size], list[float]] = {}
    for name, value in eager.items():
        if isinstance(value, torch.Tensor) and value.is_floating_point() and math.isfinite(errors[name].error):
            found.setdefault((kind_of(name), value.shape), []).append(errors[name].error)
    return {key: statistics.median(entries) for key, entries in found.items() if len(entries) >= BORROWED_FROM}


def _typical_error(entries: list[tuple[int, Errors]]) -> float:
    known = [errors.relative for _, errors in entries if errors.size > 2 * errors.error]
    return statistics.median(known) if len(known) >= BORROWED_FROM else 0.0


def _overall_size(entries: list[tuple[int, Errors]]) -> float:
    finite = [(count, errors.size) for count, errors in entries if math.isfinite(errors.size)]
    return math.sqrt(sum(count * size**2 for count, size in finite) / max(1, sum(count for count, _ in finite)))


def eager_errors(eager: Any, again: Any, truth: Any) -> Errors:
    """Eager's error: against the reference the worse of its two runs, without one the distance between them."""
    if not isinstance(eager, torch.Tensor) or not isinstance(again, torch.Tensor):
        return Errors(0.0, 0.0)
    if not isinstance(truth, torch.Tensor):
        return errors_of(again, eager)
    return max((errors_of(run, truth) for run in (eager, again)), key=lambda errors: errors.error)


def loss_rounding(loss: Callable[[Any], torch.Tensor], forward: Callable[[], Any], epsilon: float) -> float:
    """The standard deviation of a loss that is the mean of what ``forward`` gives, each rounded by ``epsilon``; 0 for any other loss.

    Outputs that cancel leave a loss without digits, and by luck one of two arms may have it nearly right.
    """
    scale = MEANS.get(getattr(loss, "__name__", ""), 0.0)
    if not scale:
        return 0.0
    tensors = [value for _, value in leaves(forward(), "output") if isinstance(value, torch.Tensor) and value.is_floating_point()]
    if not tensors:
        return 0.0
    return scale * epsilon * math.sqrt(sum(rms(value.double()) ** 2 / max(1, value.numel()) for value in tensors)) / len(tensors)


def with_rounded_losses(errors: Mapping[str, Errors], rounding: float) -> dict[str, Errors]:
    """``errors`` of eager, those of losses being ``rounding`` at least."""
    return {name: Errors(max(found.error, rounding), found.size) if kind_of(name) == "loss" else found for name, found in errors.items()}


def distance(one: Results, other: Results) -> float:
    """The largest relative distance between floating-point tensors of the same name; 0 for results that are the same."""
    found = [0.0]
    for name, value in one.items():
        its = other.get(name)
        if isinstance(value, torch.Tensor) and isinstance(its, torch.Tensor):
            errors = errors_of(its, value)
            found.append(errors.relative if errors.size > 0 else errors.error)
    return max(found)


def movement(one: Results, other: Results) -> tuple[float, float]:
    """How far apart two runs are, relatively: the worst of losses and outputs, and the gradients as a whole.

    Single gradients may be nothing but rounding, and then are as far apart as can be.
    """
    gradients = {name for name in one if kind_of(name) == "gradient"}
    shown = {name: value for name, value in one.items() if name not in gradients and kind_of(name) not in ("parameter", "buffer")}
    return distance(shown, other), _overall_distance({name: one[name] for name in gradients}, other)


def _overall_distance(one: Results, other: Results) -> float:
    found = [
        (value.numel(), errors_of(its, value))
        for name, value in one.items()
        if isinstance(value, torch.Tensor) and isinstance(its := other.get(name), torch.Tensor)
    ]
    error = math.sqrt(sum(count * errors.error**2 for count, errors in found))
    size = math.sqrt(sum(count * errors.size**2 for count, errors in found))
    return error / size if size > 0 else error


def seed_limit(rule: Rule) -> float:
    """How far random numbers may move a step and still be negligible: a tenth of the tolerance, or a few roundings."""
    return max(NEGLIGIBLE * rule.tolerance, ROUNDINGS * rule.epsilon)


def randomness_of(other_seed: tuple[float, float], same_seed: tuple[float, float], limit: float) -> Randomness:
    """What random numbers do, from how far another seed and a repetition move a step (``movement`` of both); ``limit``: negligibly."""
    moved = [other for other, same in zip(other_seed, same_seed, strict=True) if other > RANDOM_FACTOR * same]
    if not moved:
        return Randomness.NONE
    return Randomness.NEGLIGIBLE if max(moved) <= limit else Randomness.DECISIVE


def draws_others(eager: Results, truth: Results, rule: Rule, same: bool | None = None) -> bool:
    """Whether the reference drew other random numbers than eager, as generators do for another dtype: it is another sample then.

    ``same`` is what the draws themselves say (``tasks.draws``), and decides; if that is None, how far apart the results are does.
    """
    if same is not None:
        return not same
    shown, gradients = movement(eager, truth)
    return shown > OTHER_SAMPLE * rule.tolerance or gradients > OTHER_SAMPLE * max(rule.tolerance, ROUNDINGS * rule.epsilon)


def differing(one: Results, other: Results, rule: Rule) -> str | None:
    """The first value that differs by more than the tolerance or a few roundings, as root mean squares; None if none does.

    Stricter than the comparison of a compiled step: nothing passes for its direction, and no error of eager's is allowed for.
    """
    sizes = _kinds(one, {name: Errors(0.0, rms(value)) for name, value in one.items() if _holds_numbers(value)})
    limit = max(rule.tolerance, ROUNDINGS * rule.epsilon)
    for name in [*one, *(name for name in other if name not in one)]:
        left, right = _none_as_zero(one.get(name), other.get(name))
        if not (_holds_numbers(left) and _holds_numbers(right)):
            if not identical({name: left}, {name: right}):
                return name
        elif (
            left.shape != right.shape or rms((left - right).double()) > limit * rms(left.double()) + rule.epsilon * sizes[kind_of(name)][1]
        ):
            return name
    return None


def _holds_numbers(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def identical(one: Results, other: Results) -> bool:
    """Bit for bit the same, where the same elements are NaN."""

    def same(left: Any, right: Any) -> bool:
        if isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
            if left.shape != right.shape:
                return False
            if not (left.is_floating_point() and right.is_floating_point()):
                return torch.equal(left, right)
            return torch.equal(left.isnan(), right.isnan()) and torch.equal(_nan_as_zero(left), _nan_as_zero(right))
        return compare_plain("", left, right).passes

    return one.keys() == other.keys() and all(same(value, other[name]) for name, value in one.items())


def _nan_as_zero(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.nan_to_num(0.0, math.inf, -math.inf)


def gradient_of(parameter: torch.nn.Parameter) -> torch.Tensor | None:
    """The gradient of ``parameter``, dense; None if it has none."""
    gradient = parameter.grad
    return gradient.to_dense() if gradient is not None and gradient.is_sparse else gradient


def said(error: Exception) -> str:
    """An error's kind and first line, for a remark."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"


def _none_as_zero(one: Any, other: Any) -> tuple[Any, Any]:
    """No gradient and a gradient of zeros are the same."""
    if one is None and isinstance(other, torch.Tensor):
        return torch.zeros_like(other), other
    if other is None and isinstance(one, torch.Tensor):
        return one, torch.zeros_like(one)
    return one, other


def change_of(tensor: torch.Tensor, initial: torch.Tensor) -> torch.Tensor:
    """What the steps added to ``tensor``; integers are compared as they are. Unchanged tensors cost no memory.

    ``initial`` may be on the host.
    """
    if not tensor.is_floating_point():
        return tensor.clone()
    initial = initial.to(tensor.device)
    if torch.equal(tensor, initial):
        return torch.zeros((), dtype=tensor.dtype, device=tensor.device).expand(tensor.shape)
    return tensor - initial


def losses_of(results: Results) -> list[float]:
    """The loss of every step."""
    return [float(value) for name, value in results.items() if kind_of(name) == "loss" and isinstance(value, torch.Tensor)]


def kind_of(name: str) -> str:
    """``gradient`` of ``gradient.layer.weight``."""
    return name.partition(".")[0].partition("[")[0].partition("<")[0]

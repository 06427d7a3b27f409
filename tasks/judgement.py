"""From what two arms computed to a list of findings: results by name, each judged by the rules of ``tasks.comparison``.

Names are ``loss.0``, ``gradient.NAME``, ``parameter.NAME``, ``buffer.NAME`` and ``output...``; what stands before the first dot or bracket
is the *kind* of a tensor, from which small tensors borrow an error and a size. Needs torch, ``tasks.readings`` and ``tasks.comparison``
only, because ``sweep repro`` copies them into its scripts.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Any

import torch

from tasks.comparison import (
    BORROWED_FROM,
    ROUNDINGS,
    Distances,
    Errors,
    Finding,
    Pair,
    Rule,
    compare_plain,
    errors_of_all,
    judged,
    leaves,
    paired,
)
from tasks.readings import read, root_mean_square

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
    seen = _paired(eager, compiled, truth, rule)
    pairs = {name: one for name, one in seen.items() if isinstance(one, Pair)}
    known = dict(zip(pairs, read([pair.numbers for pair in pairs.values()]), strict=True))
    findings = []
    for name, one in seen.items():
        if isinstance(one, Finding):
            findings.append(one)
            continue
        kind_error, kind_size = kinds.get(kind_of(name), (0.0, 0.0))
        borrowed = {"kind_error": kind_error, "kind_size": kind_size, "sibling_error": siblings.get((kind_of(name), one.shape), 0.0)}
        findings.append(judged(name, one, Distances(*known[name]), rule, errors=errors.get(name, Errors(0.0, 0.0)), **borrowed))
    return findings


def _paired(eager: Results, compiled: Results, truth: Results, rule: Rule) -> dict[str, Pair | Finding]:
    found: dict[str, Pair | Finding] = {}
    for name in [*eager, *(name for name in compiled if name not in eager)]:
        one, other = _none_as_zero(eager.get(name), compiled.get(name))
        if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
            reference = truth.get(name)
            found[name] = paired(name, one, other, reference if isinstance(reference, torch.Tensor) else None, rule)
        else:
            found[name] = compare_plain(name, one, other)
    return found


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


def eager_errors(eager: Results, again: Results, truth: Results) -> dict[str, Errors]:
    """Eager's errors, by name: against the reference the worse of its two runs, without one the distance between them."""
    found: dict[str, list[Errors]] = {name: [] for name in eager}
    for (name, _), errors in errors_of_all(_eager_pairs(eager, again, truth)).items():
        found[name].append(errors)
    return {name: max(those, key=lambda errors: errors.error, default=Errors(0.0, 0.0)) for name, those in found.items()}


def _eager_pairs(eager: Results, again: Results, truth: Results) -> Iterator[tuple[tuple[str, int], torch.Tensor, torch.Tensor]]:
    for name, value in eager.items():
        repeated, reference = again.get(name), truth.get(name)
        if isinstance(value, torch.Tensor) and isinstance(repeated, torch.Tensor):
            if isinstance(reference, torch.Tensor):
                yield (name, 0), value, reference
                yield (name, 1), repeated, reference
            else:
                yield (name, 1), repeated, value


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
    sizes = read([root_mean_square(value) for value in tensors])
    variance = sum(size**2 / max(1, value.numel()) for (size,), value in zip(sizes, tensors, strict=True))
    return scale * epsilon * math.sqrt(variance) / len(tensors)


def with_rounded_losses(errors: Mapping[str, Errors], rounding: float) -> dict[str, Errors]:
    """``errors`` of eager, those of losses being ``rounding`` at least."""
    return {name: Errors(max(found.error, rounding), found.size) if kind_of(name) == "loss" else found for name, found in errors.items()}


def movement(one: Results, other: Results) -> tuple[float, float]:
    """How far apart two runs are, relatively: the worst of losses and outputs, and the gradients as a whole.

    Single gradients may be nothing but rounding, and then are as far apart as can be.
    """
    apart = errors_of_all(_shown_by_both(one, other))
    shown = [errors for (name, _), errors in apart.items() if kind_of(name) != "gradient"]
    gradients = [(count, errors) for (name, count), errors in apart.items() if kind_of(name) == "gradient"]
    return max((errors.relative if errors.size > 0 else errors.error for errors in shown), default=0.0), _overall(gradients)


def _shown_by_both(one: Results, other: Results) -> Iterator[tuple[tuple[str, int], torch.Tensor, torch.Tensor]]:
    """Losses, outputs and gradients, by name and number of elements."""
    for name in one:
        if kind_of(name) not in ("parameter", "buffer") and name in other:
            value, its = one[name], other[name]
            if isinstance(value, torch.Tensor) and isinstance(its, torch.Tensor):
                yield (name, value.numel()), its, value


def _overall(errors_of_parts: list[tuple[int, Errors]]) -> float:
    """The relative error of tensors of so many elements as a whole."""
    error = math.sqrt(sum(count * errors.error**2 for count, errors in errors_of_parts))
    size = math.sqrt(sum(count * errors.size**2 for count, errors in errors_of_parts))
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

    What is no number, or infinite, must be so in both. Stricter than the comparison of a compiled step: nothing passes for its direction,
    and no error of eager's is allowed for.
    """
    pairs = {name: _none_as_zero(one.get(name), other.get(name)) for name in [*one, *(name for name in other if name not in one)]}
    numbers = [(name, right, left) for name, (left, right) in pairs.items() if _holds_numbers(left) and _holds_numbers(right)]
    apart = errors_of_all(numbers)
    sizes = _kinds({name: left for name, _, left in numbers}, apart)
    limit = max(rule.tolerance, ROUNDINGS * rule.epsilon)
    far = {name for name, it in apart.items() if it.error > limit * it.size + rule.epsilon * sizes[kind_of(name)][1]}
    far |= _finite_on_one_side(numbers)
    for name, (left, right) in pairs.items():
        if name not in apart:
            if not identical({name: left}, {name: right}):
                return name
        elif left.shape != right.shape or name in far:
            return name
    return None


def _finite_on_one_side(numbers: Sequence[tuple[str, torch.Tensor, torch.Tensor]]) -> set[str]:
    """Names of the pairs with an element that only one of them has a number for."""
    found = {name: (one.isfinite() != other.isfinite()).any() for name, one, other in numbers if one.shape == other.shape}
    return {name for name, [differs] in zip(found, read(list(found.values())), strict=True) if differs}


def _holds_numbers(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def identical(one: Results, other: Results) -> bool:
    """Bit for bit the same, where the same elements are NaN."""
    if one.keys() != other.keys():
        return False
    same: list[torch.Tensor] = []
    for name, left in one.items():
        right = other[name]
        if not (isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor)):
            if not compare_plain(name, left, right).passes:
                return False
        elif left.shape != right.shape or left.dtype != right.dtype:
            return False
        else:
            same.append(((left == right) | (left.isnan() & right.isnan())).all())
    return all(is_same for (is_same,) in read(same))


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


def changes_of(state: Iterable[tuple[str, torch.Tensor]], initial: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What the steps added to the tensors of ``state`` that are in ``initial``, by name; integers are compared as they are.

    Unchanged tensors cost no memory. ``initial`` may be on the host.
    """
    tensors = {name: tensor.detach() for name, tensor in state if name in initial}
    moved = read([(tensor != initial[name].to(tensor.device)).any() for name, tensor in tensors.items()])
    return {
        name: _change(tensor, initial[name], bool(is_other)) for (name, tensor), (is_other,) in zip(tensors.items(), moved, strict=True)
    }


def _change(tensor: torch.Tensor, initial: torch.Tensor, is_other: bool) -> torch.Tensor:
    if not tensor.is_floating_point():
        return tensor.clone()
    if not is_other:
        return torch.zeros((), dtype=tensor.dtype, device=tensor.device).expand(tensor.shape)
    return tensor - initial.to(tensor.device)


def losses_of(results: Results) -> list[float]:
    """The loss of every step."""
    return [float(value) for name, value in results.items() if kind_of(name) == "loss" and isinstance(value, torch.Tensor)]


def kind_of(name: str) -> str:
    """``gradient`` of ``gradient.layer.weight``."""
    return name.partition(".")[0].partition("[")[0].partition("<")[0]

"""Whether two results are the same, value by value: nested outputs by kind, tensors by tolerance and by their distance to a reference.

A floating-point tensor passes if any of four holds, with e the eager result, c the compiled one, r the reference, and rms the root mean
square over the elements:

* close: |c - e| <= tolerance (|e| + rms(e) / 10) for every element. The second term is what makes small elements comparable; there is no
  absolute term, because gradients have no natural size;
* as good: rms(c - r) <= multiplier rms(e - r) + tolerance / 10 rms(r). Compiled code may round differently, but not worse. Tensors of
  fewer than ``FEW`` elements are too small to know their own error and borrow the median one of their kind. The second term is not less
  than ``SUMMED`` or, if that is less, the tolerance: gradients are sums that cancel, and the order of adding alone moves them. Eager may
  be as good as it is by luck: ``tasks.shaken`` finds what error it might have had, and ``Finding.eased`` judges again by that;
* noise: only where eager's own error is half of the reference or more, so that the tensor holds no digits to compare (the gradient of a
  bias in front of a normalisation or of a softmax, say): rms(c - r) <= max(10 rms(e - r), 3 rms(siblings)) + s rms(kind), where s is the
  larger of tolerance / 10 and the epsilon of the computing dtype, with eager's median error over the tensors of the same kind and shape.
  The sum that is zero in exact arithmetic may come out nearly so by luck in one of the two; its siblings tell how noisy such sums are;
* small among its kind, for buffers: rms(c - r) <= epsilon rms(kind). The mean of a normalisation's inputs may cancel to nothing beside
  their variance, and then has the roundings of the inputs and not its own.

Where there is no reference, a tensor also passes if it has eager's direction and size.

NaN and infinities: elements where both results hold the same non-finite value are equal and take no further part. A result that is finite
where the other is not fails, unless eager is the one that is not finite and compiled agrees with a finite reference.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch

from tasks.readings import or_one, read, root_mean_square

Key = TypeVar("Key")

FEW = 1000
SUMMED = 1e-3  # share by which the order of adding may move a gradient: 3e-4 was seen for Inductor's float32 loops on the CPU
BORROWED_FROM = 3  # tensors of a kind, at least, for their median error to mean something
NOISE_FACTOR = 10.0
SIBLING_FACTOR = 3.0
TIPPED = 1e-3  # share of integers that may differ at most: a tolerance for sizes says nothing of how many comparisons are close ones
NEAR = 4.0  # tolerances within which a compiled element must be of the reference where eager has no number
ROUNDINGS = 4.0  # epsilons that a few roundings in another order make
BUFFER = "buffer."
MAX_ANGLE = 0.01  # 1 - cosine, between tensors that have no reference
MAX_RATIO = 1e6  # how far beyond its limit a tensor can be said to be


@dataclass(frozen=True, slots=True)
class Rule:
    """What results of one task are judged by. ``epsilon`` is that of the dtype in which most is computed.

    ``alike``: both arms round the same operations, because autocast names their dtypes, and not the library that computes them.
    """

    tolerance: float
    multiplier: float
    epsilon: float
    alike: bool = False


EPSILONS = {None: 2.0**-23, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}  # by the dtype of autocast
TF32_EPSILON = 2.0**-10
WIDE = 2e-2  # a tolerance from which on the wider multiplier holds


def rule_of(tolerance: float, autocast: torch.dtype | None, *, tf32: bool) -> Rule:
    """Upstream's multipliers: 2 for float32, 3 for lower precisions and for wide tolerances. TF32 is such a precision: it has ten bits."""
    epsilon = max(EPSILONS[autocast], TF32_EPSILON if tf32 else 0.0)
    exact = epsilon == EPSILONS[None] and tolerance < WIDE
    return Rule(tolerance, 2.0 if exact else 3.0, epsilon, alike=autocast is not None)


@dataclass(frozen=True, slots=True)
class Errors:
    """How far eager is from the reference, for one tensor: root mean squares."""

    error: float  # of eager - reference
    size: float  # of the reference

    @property
    def relative(self) -> float:
        return self.error / self.size if self.size > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Finding:
    """The comparison of one value. ``ratio`` is how much of its limit it takes up: it passes up to 1.

    ``multiplier`` and ``slack`` are those of the rule "as good as eager", the latter absolute; both are 0 where there is no reference.
    """

    name: str
    ratio: float
    reason: str | None = None  # in words, if it fails for anything but its size
    eager_rmse: float | None = None
    compiled_rmse: float | None = None
    finite: bool = True  # something finite was compared
    left_out: int = 0  # elements that are not finite, and so were not compared by size
    multiplier: float = 0.0
    slack: float = 0.0
    roundings: float | None = None  # how far roundings move it, where that was looked at

    @property
    def passes(self) -> bool:
        return self.ratio <= 1.0

    @property
    def by_size(self) -> bool:
        """It is judged by its distance from a reference, beside that of eager."""
        return self.multiplier > 0.0

    def eased(self, error: float) -> Finding:
        """The same if eager's error were ``error`` at least, which is how far roundings move it."""
        if not self.by_size:
            return self
        ratio = _ratio(self.compiled_rmse or 0.0, self.multiplier * error + self.slack)
        return replace(self, ratio=min(self.ratio, ratio), roundings=error)


def leaves(value: Any, name: str, seen: frozenset[int] = frozenset()) -> Iterator[tuple[str, Any]]:
    """The tensors and plain values inside ``value``, each with a path; objects of unknown kinds are opened by their attributes."""
    if isinstance(value, torch.Tensor):
        yield name, _plain(value)
        return
    parts = None if id(value) in seen else _parts(value)
    if parts is None:
        yield name, value if isinstance(value, (bool, int, float, complex, str, bytes, enum.Enum)) else type(value).__qualname__
        return
    yield f"{name}<kind>", f"{type(value).__qualname__} of {len(parts)}"
    for part, item in parts:
        yield from leaves(item, f"{name}{part}", seen | {id(value)})


def _parts(value: Any) -> list[tuple[str, Any]] | None:
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes, enum.Enum, type, torch.Size, torch.dtype, torch.device)):
        return None
    if isinstance(value, Mapping):
        return [(f".{key}", item) for key, item in value.items()]
    if isinstance(value, torch.distributions.Distribution):
        return [(f".{key}", getattr(value, key)) for key in sorted(value.arg_constraints) if key in vars(value)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(f".{field.name}", getattr(value, field.name, None)) for field in dataclasses.fields(value)]
    if isinstance(value, (Sequence, set, frozenset)):
        return [(f"[{index}]", item) for index, item in enumerate(value)]
    if hasattr(value, "__dict__") and not callable(value):
        return [(f".{key}", item) for key, item in sorted(vars(value).items()) if not key.startswith("_")]
    return None


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.detach()
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def compare_plain(name: str, eager: Any, compiled: Any) -> Finding:
    """Values that are no tensors: equal, or both NaN."""
    same = eager == compiled or (eager != eager and compiled != compiled)
    return _found(name, finite=False) if same else _fails(name, f"eager gives {eager!r:.60}, compiled {compiled!r:.60}")


@dataclass(frozen=True, slots=True)
class Pair:
    """Two tensors that can be compared, and what there is to know of them, on their device: ``Distances``, not read yet."""

    shape: torch.Size
    exact: bool  # integers or booleans
    blind: bool  # no reference tells what rounding is legitimate
    numbers: torch.Tensor

    @property
    def elements(self) -> int:
        return self.shape.numel()


@dataclass(frozen=True, slots=True)
class Distances:
    """Of a pair: counts of elements, and root mean squares over those that are finite in both. Integers are different or not."""

    different: float
    usable: float = 0.0  # finite in both
    lost: float = 0.0  # finite in eager only, or not finite in another way
    wrong: float = 0.0  # finite in compiled only, and no finite reference agrees
    eager: float = 0.0
    compiled: float = 0.0
    reference: float = 0.0
    between: float = 0.0  # compiled - eager
    error: float = 0.0  # compiled - reference
    close: float = 0.0  # the largest |compiled - eager|, in units of what is close
    cosine: float = 0.0  # of the angle between the two


def paired(name: str, eager: torch.Tensor, compiled: torch.Tensor, reference: torch.Tensor | None, rule: Rule) -> Pair | Finding:
    """What is to be known of the two to judge them, or the verdict where nothing is."""
    if eager.dtype != compiled.dtype:
        return _fails(name, f"eager gives {eager.dtype}, compiled {compiled.dtype}")
    if eager.shape != compiled.shape:
        return _fails(name, f"eager gives shape {tuple(eager.shape)}, compiled {tuple(compiled.shape)}")
    if eager.numel() == 0:
        return _found(name)
    if not eager.is_floating_point():
        return Pair(eager.shape, exact=True, blind=True, numbers=(eager != compiled).sum())
    blind = reference is None or reference.shape != eager.shape
    truth = eager if blind or reference is None else reference
    return Pair(eager.shape, exact=False, blind=blind, numbers=_distances(eager.double(), compiled.double(), truth.double(), rule))


def _distances(eager: torch.Tensor, compiled: torch.Tensor, reference: torch.Tensor, rule: Rule) -> torch.Tensor:
    """The fields of ``Distances``. What is not needed any more is let go of at once: tensors may be large, and in float64 larger."""
    reference = torch.where(torch.isfinite(reference), reference, eager)
    counts, usable = _counts(eager, compiled, reference, rule)
    eager = torch.where(usable, eager, 0.0)
    compiled = torch.where(usable, compiled, 0.0)
    reference = torch.where(usable, reference, 0.0)
    sizes = [root_mean_square(tensor, counts[1]) for tensor in (eager, compiled, reference)]
    error = root_mean_square(compiled - reference, counts[1])
    del reference
    apart = compiled - eager
    between = root_mean_square(apart, counts[1])
    close = (apart.abs_() / (rule.tolerance * (torch.abs(eager) + sizes[0] / 10)).clamp_min(1e-300)).amax()
    del apart
    cosine = ((eager / or_one(sizes[0])) * (compiled / or_one(sizes[1]))).sum() / counts[1].clamp_min(1)
    return torch.stack([number.double() for number in (*counts, *sizes, between, error, close, cosine)])


def _counts(eager: torch.Tensor, compiled: torch.Tensor, reference: torch.Tensor, rule: Rule) -> tuple[list[torch.Tensor], torch.Tensor]:
    """How many elements are different, usable, lost and wrong; and which are usable."""
    eager_ok, compiled_ok, known = torch.isfinite(eager), torch.isfinite(compiled), torch.isfinite(reference)
    equal = (eager == compiled) | (torch.isnan(eager) & torch.isnan(compiled))
    size = root_mean_square(torch.where(known, reference, 0.0), known.sum())
    limit = NEAR * rule.tolerance * (torch.abs(reference) + size)
    wrong = compiled_ok & ~eager_ok & ~(known & (torch.abs(compiled - reference) <= limit))
    usable = eager_ok & compiled_ok
    return [(~equal).sum(), usable.sum(), (~compiled_ok & ~equal).sum(), wrong.sum()], usable


def judged(
    name: str,
    pair: Pair,
    known: Distances,
    rule: Rule,
    *,
    errors: Errors,
    kind_error: float = 0.0,
    kind_size: float = 0.0,
    sibling_error: float = 0.0,
) -> Finding:
    """The verdict on a pair. ``errors`` are eager's; ``kind_error`` (relative) and ``kind_size`` are those of tensors of its kind, and
    ``sibling_error`` (absolute) is the median one of those that have its shape as well.

    Without a reference, eager is the reference and ``errors.error`` its distance from a second eager run; as nothing then tells what
    rounding is legitimate, a tensor of the same direction and size passes too, and one that is small among its kind.
    """
    elements = pair.elements
    if pair.exact:
        return _judged_exact(name, int(known.different), elements, rule)
    if known.lost:
        return _fails(name, f"{known.lost:.0f} of {elements} elements are not finite where eager's are, or not in the same way")
    if known.wrong:
        return _fails(name, f"{known.wrong:.0f} of {elements} elements are finite where eager's are not, and no finite reference agrees")
    left_out = elements - int(known.usable)
    if left_out == elements:
        return replace(_found(name, finite=False), left_out=left_out)
    found = replace(_judged_by_size(name, known, rule, errors, kind_error, kind_size, sibling_error), left_out=left_out)
    if not pair.blind:
        return found
    return replace(found, ratio=min(found.ratio, _blind_ratio(known, rule, kind_size)), multiplier=0.0, slack=0.0)


def _blind_ratio(known: Distances, rule: Rule, kind_size: float) -> float:
    """By how much two tensors differ in direction and size, or among their kind, relative to what is allowed."""
    small = _ratio(known.between, NOISE_FACTOR * rule.epsilon * kind_size)
    if known.eager == 0.0 or known.compiled == 0.0:
        return small
    turned = _ratio(max(0.0, 1.0 - known.cosine), MAX_ANGLE)
    grown = _ratio(abs(known.compiled / known.eager - 1.0), max(rule.tolerance, ROUNDINGS * rule.epsilon))
    return min(small, max(turned, grown))


def _judged_by_size(
    name: str, known: Distances, rule: Rule, errors: Errors, kind_error: float, kind_size: float, sibling_error: float
) -> Finding:
    few = known.usable < FEW
    own = max(errors.error, kind_error * known.reference) if few else errors.error
    multiplier = max(rule.multiplier, 3.0) if few else rule.multiplier
    slack = max(rule.tolerance / 10, min(rule.tolerance, SUMMED)) * known.reference
    good = _ratio(known.error, multiplier * own + slack)
    noise = MAX_RATIO
    if known.reference <= 2 * errors.error or known.reference == 0.0:
        own_noise = max(NOISE_FACTOR * errors.error, SIBLING_FACTOR * sibling_error)
        noise = _ratio(known.error, own_noise + max(rule.epsilon, rule.tolerance / 10) * kind_size)
    small = _ratio(known.error, rule.epsilon * kind_size) if name.startswith(BUFFER) else MAX_RATIO
    ratio = min(known.close, good, noise, small, MAX_RATIO)
    return Finding(name, ratio, None, errors.error, known.error, multiplier=multiplier, slack=slack)


def _judged_exact(name: str, different: int, elements: int, rule: Rule) -> Finding:
    """Integers and booleans come from comparisons that rounding can tip: a share of ``tolerance``, and of ``TIPPED``, may differ."""
    allowed = min(rule.tolerance, TIPPED) * elements
    return Finding(name, _ratio(different, allowed), f"{different} of {elements} differ" if different else None)


def errors_of(eager: torch.Tensor, reference: torch.Tensor) -> Errors:
    """Eager's distance from the reference, over the elements where both are finite."""
    return errors_of_all([("", eager, reference)])[""]


def errors_of_all(pairs: Iterable[tuple[Key, torch.Tensor, torch.Tensor]]) -> dict[Key, Errors]:
    """``errors_of`` each pair of eager and reference, by key; none, where they are not of numbers and of one shape.

    ``pairs`` are asked for one by one, and not kept.
    """
    numbers = {key: _errors(eager, reference) for key, eager, reference in pairs}
    asked = {key: number for key, number in numbers.items() if number is not None}
    known = dict(zip(asked, read(list(asked.values())), strict=True))
    return {key: Errors(*known[key]) if key in known else Errors(0.0, 0.0) for key in numbers}


def _errors(eager: torch.Tensor, reference: torch.Tensor) -> torch.Tensor | None:
    """The fields of ``Errors``."""
    if not eager.is_floating_point() or eager.shape != reference.shape:
        return None
    one, other = eager.double(), reference.double()
    usable = torch.isfinite(one) & torch.isfinite(other)
    both = torch.where(usable, one - other, 0.0), torch.where(usable, other, 0.0)
    return torch.stack([root_mean_square(tensor, usable.sum()) for tensor in both])


def _found(name: str, *, finite: bool = True) -> Finding:
    return Finding(name, 0.0, finite=finite)


def _fails(name: str, reason: str) -> Finding:
    return Finding(name, MAX_RATIO, reason)


def _ratio(value: float, limit: float) -> float:
    return 0.0 if value == 0 else min(value / limit, MAX_RATIO) if limit > 0 else MAX_RATIO

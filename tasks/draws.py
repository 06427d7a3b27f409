"""Which random numbers a step draws: whether a float64 reference and eager computed the same sample is asked of these, not of the results.

A generator may draw other numbers for another dtype. Results do not tell that: under float16 autocast gradients underflow, and then are far
from a reference of the very same sample. So what random operators draw is recorded as small numbers, in order, and compared.

Recorded is what goes through torch's dispatcher with the tag of random operators, in the forward and the backward pass. Not seen are draws
of Python's and NumPy's generators, which are the same for every dtype, and those of operators that lack the tag.

Needs torch and ``tasks.dropout`` only, because ``sweep repro`` copies both into its scripts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tasks.dropout import NEGLIGIBLE_RATE

_NUMBERS = {"rand", "rand_like", "randn", "randn_like", "uniform", "normal", "exponential", "cauchy", "log_normal"}
_INTEGERS = {"randint", "randint_like", "randperm", "random", "geometric", "bernoulli", "multinomial", "poisson", "binomial"}
_WITH_MASK = {"native_dropout", "_fused_dropout"}  # their second result
_BY_DATA = {"multinomial", "poisson", "binomial"}  # by a tensor of probabilities or rates, whose rounding may move an integer
_SCALAR_RATE = {"float", "float_out", "p"}  # overloads of bernoulli that have none
_DRAW_NOTHING = {"_fused_sdp_choice", "_flash_attention_forward_no_dropout_inplace"}  # although they have the tag
_RATES = ("p", "dropout", "dropout_p")
_SWITCHES = ("train", "training")

_KEPT = 256  # numbers of a draw
_SUMMED = 2**16  # integers of a draw: enough of a mask to hold some of its rare elements
_APART = 1e-2  # of their spread: other numbers are apart by about all of it
_ROUNDINGS_APART = 2.0  # of the coarser dtype
_LEAST_ROUNDING = 1e-5  # a logarithm or a cosine in float32 has not all of its digits
_OUTLIERS = 0.05  # of the numbers: rounding may carry one over the end of its range to the other


@dataclass(frozen=True, slots=True)
class Draw:
    """What one operator drew. ``values`` on its device: some of its numbers, or sums of its integers; None: they cannot be seen."""

    operator: str
    shape: tuple[int, ...] = ()
    values: torch.Tensor | None = None
    epsilon: float | None = None  # the rounding of numbers; None for integers and masks
    by_data: bool = False  # equal ones are the same draw, but others may be the same as well


Draws = list[Draw]


def inductor_settings(*, as_eager: bool) -> dict[str, bool]:
    """Where Inductor draws from: its own numbers, or what eager draws.

    That takes torch's generators and the order of the program, which no data dependency keeps before torch 2.13 (pytorch/pytorch#181136,
    #192635).
    """
    return (
        {"fallback_random": True, "reorder_for_peak_memory": False, "reorder_for_locality": False}
        if as_eager
        else {"fallback_random": False}
    )


def recorded(step: Callable[[], Any], draws: Draws | None) -> Callable[[], Any]:
    """``step``, run eagerly, with what it draws appended to ``draws``; if that is None, just ``step``.

    Some operators compute a little differently while they are recorded: results to be compared bit for bit must be recorded alike.
    """
    if draws is None:
        return step

    def stepped() -> Any:
        with _Recording(draws):
            return step()

    return stepped


def same_draws(one: Draws, other: Draws) -> bool | None:
    """Whether two arms drew the same numbers, up to roundings; None: cannot be told, or nothing was seen."""
    if not (one or other) or any(draw.values is None for draw in (*one, *other)):
        return None
    if len(one) != len(other):
        return False
    found = {_same(*pair) for pair in zip(one, other, strict=True)}
    return False if False in found else None if None in found else True


def _same(one: Draw, other: Draw) -> bool | None:
    if one.values is None or other.values is None:
        return None
    if (one.operator, one.shape) != (other.operator, other.shape):
        return False
    left, right = one.values.cpu(), other.values.cpu()
    if one.epsilon is not None and other.epsilon is not None:
        return _alike(left, right, max(one.epsilon, other.epsilon, _LEAST_ROUNDING))
    return torch.equal(left, right) or (None if one.by_data else False)


def _alike(one: torch.Tensor, other: torch.Tensor, epsilon: float) -> bool:
    finite = one.isfinite() & other.isfinite()
    one, other = one[finite], other[finite]
    if not len(one):
        return True
    limit = max(_APART * float(one.std(correction=0)), _ROUNDINGS_APART * epsilon * float(one.abs().max()))
    return int(((one - other).abs() > limit).sum()) <= _OUTLIERS * len(one)


class _Recording(TorchDispatchMode):  # type: ignore[no-untyped-call]
    supports_higher_order_operators = True  # they pass through

    def __init__(self, draws: Draws) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._draws = draws

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """A step that compiles parts of itself, as flex attention does, still may."""
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        given = kwargs or {}
        result = func(*args, **given)
        if _is_random(func) and not _decides_nothing(func, args, given):
            self._draws.append(_draw_of(func, result))
        return result


def _is_random(func: Any) -> bool:
    return isinstance(func, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in func.tags  # noqa: SLF001


def _decides_nothing(func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """By its arguments: a dropout that is off, or a rate so near to 0 or 1 that the result is certain."""
    names = [argument.name for argument in func._schema.arguments]  # noqa: SLF001
    defaults = {argument.name: argument.default_value for argument in func._schema.arguments}  # noqa: SLF001
    given = {**defaults, **dict(zip(names, args, strict=False)), **kwargs}
    rates = [given[name] for name in _RATES if isinstance(given.get(name), float | int)]
    certain = any(min(rate, 1 - rate) <= NEGLIGIBLE_RATE for rate in rates)
    return certain or any(given.get(name) is False for name in _SWITCHES) or _name_of(func) in _DRAW_NOTHING


def _draw_of(func: torch._ops.OpOverload, result: Any) -> Draw:
    name, overload = _name_of(func), func._overloadname  # noqa: SLF001
    drawn = result[1] if name in _WITH_MASK else result
    if not isinstance(drawn, torch.Tensor) or drawn.layout is not torch.strided or drawn.is_nested:
        return Draw(name)
    shape = tuple(drawn.shape)
    if name in _INTEGERS or name in _WITH_MASK:
        by_data = name in _BY_DATA or (name == "bernoulli" and overload not in _SCALAR_RATE)
        return Draw(name, shape, _sums(drawn), by_data=by_data)
    if name in _NUMBERS and "Tensor" not in overload:  # else around a mean that is as good as the dtype, and may hide what is drawn
        return Draw(name, shape, _numbers(drawn), torch.finfo(drawn.dtype).eps)
    return Draw(name)


def _name_of(func: torch._ops.OpOverload) -> str:
    """Without namespace and overload, and the same in place."""
    return func._schema.name.partition("::")[2].rstrip("_")  # noqa: SLF001


def _numbers(drawn: torch.Tensor) -> torch.Tensor:
    found = _every_nth(drawn, _KEPT)
    return (torch.view_as_real(found).flatten() if found.is_complex() else found).double()


def _sums(drawn: torch.Tensor) -> torch.Tensor:
    """Of integers, in whatever dtype: sums of neighbours, or they themselves if they are few."""
    found = _every_nth(drawn, _SUMMED).long()
    width = max(1, -(-len(found) // _KEPT))
    return torch.nn.functional.pad(found, (0, -len(found) % width)).view(-1, width).sum(1)


def _every_nth(drawn: torch.Tensor, at_most: int) -> torch.Tensor:
    """A copy of some elements, evenly spaced; of ``drawn`` itself, however it lies in memory, there is none."""
    places = torch.arange(0, drawn.numel(), max(1, -(-drawn.numel() // at_most)), device=drawn.device)
    return torch.take(drawn.detach(), places)

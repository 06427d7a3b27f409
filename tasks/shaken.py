"""What roundings alone do to a model's results: an eager step whose parameters are moved by as much as a rounding may move them.

Eager's own error tells how well a tensor can be computed, except where eager is nearly exact by luck or because its library took a path
with more digits: a sum that cancels is then far off in an arm that rounds what it multiplies, and no fault is in it. Backward error
analysis (N. Higham, Accuracy and Stability of Numerical Algorithms) asks instead whether a result is the exact one of inputs that are
off by a rounding. So where a compiled step would fail for its size, eager steps once more with shaken parameters, and for the rule "as
good as eager" a tensor's error is at least by how much that moves it. A fault in a tensor that roundings do not move stays one.

Needs torch, ``tasks.comparison`` and ``tasks.judgement`` only, because ``sweep repro`` copies it into its scripts.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from tasks.comparison import Finding, Rule, errors_of_all
from tasks.judgement import Results, kind_of

_SEED = 0x9E3779B9  # not one that a task starts from: the numbers that made its weights would shake them, all in one direction


def judged_again(
    findings: list[Finding], eager: Results, rule: Rule, run: Callable[[set[str]], Results], said: Callable[[Exception], str]
) -> tuple[list[Finding], str | None]:
    """``findings`` with what roundings do as eager's error where they would fail for their size alone, and what to say of it.

    ``run`` makes the step with shaken parameters and gives the results of these names, at least; where it fails, ``said`` has the words
    for it, and the findings stay.
    """
    names = set(contested(findings, rule))
    if not names:
        return findings, None
    try:
        results = run(names)
        found = eased(findings, eager, {name: results[name] for name in names if name in results})
    except Exception as error:  # noqa: BLE001 - there is a verdict without it
        return findings, f"what roundings of the weights do was not seen: {said(error)}"
    return found, remark(findings, found)


def contested(findings: list[Finding], rule: Rule) -> list[str]:
    """The values whose distance alone makes the compiled step fail; none if it fails for anything else as well, or passes.

    Where both arms round alike, only losses: eager's error tells how well a tensor can be computed, but not a single number.
    """
    failing = [finding for finding in findings if not finding.passes]
    may = all(finding.by_size and (not rule.alike or kind_of(finding.name) == "loss") for finding in failing)
    return [finding.name for finding in failing] if may else []


@torch.no_grad()
def shake(module: torch.nn.Module, epsilon: float) -> None:
    """Multiply every floating-point parameter, in place, by 1 + ``epsilon`` u, with u uniform in [-1, 1] and the same each time."""
    generators: dict[torch.device, torch.Generator] = {}  # of their own, so that the model draws what it draws in eager
    for parameter in module.parameters():
        if parameter.is_floating_point():
            if parameter.device not in generators:
                generators[parameter.device] = torch.Generator(parameter.device).manual_seed(_SEED)
            noise = torch.empty_like(parameter).uniform_(-1.0, 1.0, generator=generators[parameter.device])
            parameter.mul_(noise.mul_(epsilon).add_(1.0))


def eased(findings: list[Finding], eager: Results, shaken: Results) -> list[Finding]:
    """``findings``, those of values in ``shaken`` with its distance from ``eager`` as eager's error, where that is the larger one.

    Elements that are not finite in one of the two say nothing.
    """
    pairs = [(name, value, eager.get(name)) for name, value in shaken.items()]
    moved = errors_of_all(
        (name, value, its) for name, value, its in pairs if isinstance(value, torch.Tensor) and isinstance(its, torch.Tensor)
    )
    return [finding.eased(moved[finding.name].error) if finding.name in moved else finding for finding in findings]


def remark(before: list[Finding], after: list[Finding]) -> str | None:
    """How many values pass only because of what roundings do to them, and which of them has least to spare; None if none does."""
    passing = [new for old, new in zip(before, after, strict=True) if new.passes and not old.passes]
    if not passing:
        return None
    closest = max(passing, key=lambda finding: finding.ratio)
    they = "it" if len(passing) == 1 else "them"
    return f"{len(passing)} of {len(after)} values within what roundings of the weights do to {they} ({closest.name})"

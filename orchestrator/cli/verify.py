"""``sweep verify``: the invariants of a stored run."""

from __future__ import annotations

import dataclasses
import json as json_format
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.errors import ExitCode

if TYPE_CHECKING:
    from orchestrator.verify import Violation

MANY = 3
"""Violations of a kind that are still listed one by one."""


def verify(
    run: Annotated[str, typer.Argument(help="A run id, the beginning of one, or 'latest'. Example: sweep verify latest")] = "latest",
    results: Annotated[str, typer.Option(help="The results store: a folder or an object-store URI.")] = "results",
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> ExitCode:
    """Check that a run is complete and well-formed, and that its samples give every published number to the last digit.

    The exit status is 0 if every invariant holds, and 4, with the violations, if not. Many of a kind are one line; --json has each.
    """
    from orchestrator.store import Store
    from orchestrator.verify import verify as violations_of

    store = Store(results).resolve(run)
    violations = violations_of(store)
    if json:
        listed = [dataclasses.asdict(violation) for violation in violations]
        sys.stdout.write(json_format.dumps({"run_id": store.run_id, "ok": not violations, "violations": listed}) + "\n")
    else:
        verdict = f"{len(violations)} violation{'s' * (len(violations) != 1)}" if violations else "every invariant holds"
        sys.stdout.write("".join(f"{line}\n" for line in [*_lines(violations), f"{store.run_id}: {verdict}"]))
    return ExitCode.INFRASTRUCTURE if violations else ExitCode.PASSED


def _lines(violations: Iterable[Violation]) -> Iterator[str]:
    """One for each, or for all of a kind where they are many: a run in progress lacks hundreds of rows."""
    kinds: dict[tuple[str, str], list[Violation]] = {}
    for violation in violations:
        kinds.setdefault((violation.rule, violation.message), []).append(violation)
    for (rule, message), alike in kinds.items():
        if len(alike) <= MANY:
            yield from map(str, alike)
        else:
            named = ", ".join(violation.subject for violation in alike[:MANY])
            yield f"{len(alike)} times: {rule}: {message}: {named}, ... (--json has all)"

"""``sweep verify``: the invariants of a stored run."""

from __future__ import annotations

import dataclasses
import json as json_format
import sys
from typing import Annotated

import typer

from orchestrator.errors import ExitCode


def verify(
    run: Annotated[str, typer.Argument(help="A run id, the beginning of one, or 'latest'. Example: sweep verify latest")] = "latest",
    results: Annotated[str, typer.Option(help="The results store: a folder or an object-store URI.")] = "results",
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> ExitCode:
    """Check that a run is complete and well-formed, and that its samples give every published number to the last digit.

    The exit status is 0 if every invariant holds, and 4, with each violation on a line, if not.
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
        sys.stdout.write("".join(f"{line}\n" for line in [*map(str, violations), f"{store.run_id}: {verdict}"]))
    return ExitCode.INFRASTRUCTURE if violations else ExitCode.PASSED

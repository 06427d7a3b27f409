"""``sweep compact``: merge a run's many small files."""

from __future__ import annotations

import sys
from typing import Annotated

import typer


def compact(
    run: Annotated[str, typer.Argument(help="A run id, the beginning of one, or 'latest'. Example: sweep compact latest")] = "latest",
    results: Annotated[str, typer.Option(help="The results store: a folder or an object-store URI.")] = "results",
) -> None:
    """One file of rows and one of samples instead of one per batch. Readers see the old files or the new ones, never both."""
    from orchestrator.store import Store

    with Store(results).resolve(run) as run_store:
        run_store.acquire()
        merged = run_store.compact()
    sys.stderr.write(f"{run_store.run_id}: {'merged' if merged else 'nothing to merge'}\n")

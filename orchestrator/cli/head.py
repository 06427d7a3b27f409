"""The head of a cluster, as commands with ``--address`` find it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestrator.jobs import Head


def find_head(address: str) -> Head:
    """The head at ``address``; what is doubtful about talking to it is said on stderr before a token is sent.

    Raises:
        UsageError, InfrastructureError: as ``Head.find``.
    """
    from orchestrator.jobs import Head

    return Head.find(address, _warn)


def _warn(warning: str) -> None:
    sys.stderr.write(f"WARNING: {warning}\n")
    sys.stderr.flush()

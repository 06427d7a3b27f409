"""``python -m orchestrator``: the same as the console script ``sweep``."""

from __future__ import annotations

import sys

from orchestrator.errors import ExitCode

try:
    from orchestrator.cli import main
except ModuleNotFoundError as error:
    if error.name is None or error.name.split(".")[0] in {"orchestrator", "tasks"}:
        raise
    # A job on a cluster begins here, with whatever `python` is on its node's PATH.
    sys.stderr.write(
        f"{sys.executable} has no {error.name}: install compile-sweep there. On a cluster, start Ray with the Python that has it first in "
        "PATH, or list what lacks under submit.pip\n"
    )
    sys.exit(ExitCode.INFRASTRUCTURE)

if __name__ == "__main__":
    main()

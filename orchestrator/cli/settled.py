"""``python -m orchestrator.cli.settled ...``: ``sweep run`` for machinery that starts again whatever does not exit with 0.

It takes the arguments of ``sweep run``, --results and --run-id among them, and exits with 0 as well where another try would change nothing:
the run is finished and some tasks did not pass, or somebody asked it to stop. The exit status proper is in the run's record.
"""

from __future__ import annotations

import argparse
import sys

from orchestrator.cli import main
from orchestrator.control import stop_requests
from orchestrator.errors import ExitCode
from orchestrator.store import Store


def settled(code: int, results: str, run_id: str) -> bool:
    """Whether nothing is left to try after ``code``. A drain by a signal is no request of anybody: nodes that leave send one."""
    if code == ExitCode.INTERRUPTED:
        return stop_requests(Store(results).resolve(run_id).files) > 0
    return code in (ExitCode.PASSED, ExitCode.SOME_FAILED)


def _run(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--results", required=True)
    parser.add_argument("--run-id", required=True)
    known, _ = parser.parse_known_args(arguments)
    sys.argv = ["sweep", "run", *arguments]
    try:
        main()
    except SystemExit as ended:
        code = int(ended.code or 0)
        return 0 if settled(code, known.results, known.run_id) else code
    return 0


if __name__ == "__main__":
    sys.exit(_run(sys.argv[1:]))

"""``sweep validate``: every error of manifests at once."""

from __future__ import annotations

import json as jsonlib
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.errors import ExitCode, ManifestError, Problem

EPILOG = "Examples: sweep validate manifests/smoke.yaml | sweep validate manifests/*.yaml --json"


def validate(
    manifests: Annotated[list[Path], typer.Argument(help="One or more manifests. " + EPILOG)],
    json: Annotated[bool, typer.Option("--json", help="Print what is wrong as JSON.")] = False,
) -> ExitCode:
    """Check manifests and the files that they include; nothing is started.

    Every error is reported, sorted, as `file:line:col: path: what is wrong`. Exit status: 0 all are sound, 2 some are not.
    """
    from orchestrator.manifest import load_manifest

    problems: list[Problem] = []
    sound: list[str] = []
    for path in manifests:
        try:
            loaded = load_manifest(path)
        except ManifestError as error:
            problems += error.problems
        else:
            models = sum(len(listed) for listed in loaded.manifest.suites.values())
            sound.append(f"{path}: sound; {models} models, digest {loaded.digest}")
    if json:
        answer = {"valid": not problems, "problems": [asdict(problem) for problem in sorted(set(problems))]}
        sys.stdout.write(jsonlib.dumps(answer, indent=2) + "\n")
    else:
        sys.stdout.writelines(f"{line}\n" for line in sound)
    if problems:
        raise ManifestError(problems)
    return ExitCode.PASSED

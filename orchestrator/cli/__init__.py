"""The console script ``sweep``: one file per command. Data goes to stdout, progress and errors to stderr.

A command returns its exit status, or raises ``SweepError`` for what a user can mend. Anything else is a bug and keeps its traceback and
Python's exit status 1.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import typer

from orchestrator import __version__
from orchestrator.cli.streams import outlive_readers
from orchestrator.connection import end_process
from orchestrator.errors import ExitCode, SweepError

COMMANDS = {
    "validate": "check manifests: every error at once, as file:line:col",
    "plan": "what would run and why; nothing is started",
    "run": "run a manifest, here or on the cluster at --address",
    "submit": "run a manifest on a remote cluster, through Ray Jobs",
    "list": "the runs of a store, the jobs of a cluster",
    "status": "how a run stands, from its results alone",
    "stop": "end a run that is driven elsewhere; it can be resumed",
    "logs": "the log of one task",
    "repro": "a standalone script for one task, or its smallest failing graph",
    "report": "the answers: score, suites, failures, table",
    "compare": "two runs, matched",
    "history": "many runs over time",
    "export": "a run in other formats",
    "verify": "the invariants of a stored run",
    "compact": "merge a run's many small files",
    "models": "the catalogue of models",
    "schema": "the JSON Schema of manifests",
    "doctor": "what works on this machine",
}
"""Command -> one line for ``--help``. Each is the function of that name in the module of that name."""

OPTIONAL_VALUES = {"compare": {"--gate": "default"}}
"""Options of a command that may stand without a value, and what they mean then; typer has no such options."""


def app(only: str | None = None) -> typer.Typer:
    """The command line. With ``only``, just that command is imported, which keeps the rest out of its start-up time."""
    root = typer.Typer(
        name="sweep",
        help="What does torch.compile buy us, on our machines, today, and how sure are we?",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )

    @root.callback()
    def options(
        version: Annotated[
            bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
        ] = False,
    ) -> None:
        """Makes typer expect a command even where only one is registered."""

    for name, summary in COMMANDS.items():
        if only is None or name == only:
            module = importlib.import_module(f"orchestrator.cli.{name}")
            root.command(name, short_help=summary)(_with_status(getattr(module, name)))
    return root


def main() -> None:
    """Run the command that the arguments name, and exit with its status."""
    outlive_readers()
    arguments = sys.argv[1:]
    only = next((argument for argument in arguments if not argument.startswith("-")), None)
    app(only if only in COMMANDS else None)(_spelled_out(arguments, OPTIONAL_VALUES.get(only or "", {})))


def _print_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"compile-sweep {__version__}\n")
        raise typer.Exit


def _spelled_out(arguments: Sequence[str], values: Mapping[str, str]) -> list[str]:
    """The arguments with a value behind each option of ``values`` that has none: at the end, or before another option."""
    spelled = []
    for argument, after in zip(arguments, [*arguments[1:], "-"], strict=True):
        spelled.append(argument)
        if argument in values and after.startswith("-"):
            spelled.append(values[argument])
    return spelled


def _with_status(command: Callable[..., ExitCode | None]) -> Callable[..., None]:
    """``command`` as typer wants it: what it returns, or what it raises for the user, becomes the exit status."""

    @functools.wraps(command)
    def run(*arguments: Any, **options: Any) -> None:
        try:
            code = command(*arguments, **options)
        except SweepError as error:
            sys.stderr.write("".join(f"{line}\n" for line in (str(error), *_notes(error))))
            code = error.exit_code
        except KeyboardInterrupt as interruption:
            sys.stderr.write("".join(f"{note}\n" for note in _notes(interruption)))
            code = ExitCode.INTERRUPTED
        end_process(int(code or ExitCode.PASSED))
        raise typer.Exit(int(code or ExitCode.PASSED))

    return run


def _notes(error: BaseException) -> Sequence[str]:
    """What was added to the error on its way up: how to go on, say."""
    return getattr(error, "__notes__", ())

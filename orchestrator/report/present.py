"""``Answers`` in the form that was asked for. The heavy renderers are imported only when they are."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from orchestrator.errors import StoreError
from orchestrator.report.answers import Answers

WIDTH_OFF_TERMINAL = 140


def as_text(answers: Answers, form: str, *, every_task: bool = False) -> str:
    """The report as ``text``, ``json`` or ``markdown``, with a newline at the end."""
    if form == "json":
        from orchestrator.report.data import as_json

        return json.dumps(as_json(answers), indent=1, allow_nan=False) + "\n"
    if form == "markdown":
        from orchestrator.report.markdown import render_markdown

        return render_markdown(answers)
    from orchestrator.report.text import render_text

    return printed(lambda console: render_text(answers, console, every_task=every_task))


def printed(render: Callable[[Console], None]) -> str:
    """What ``render`` prints, as for stdout: coloured and as wide as the terminal if it is one, plain and wide if not."""
    terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if terminal else WIDTH_OFF_TERMINAL
    console = Console(file=io.StringIO(), force_terminal=terminal, width=width, highlight=False)
    with console.capture() as capture:
        render(console)
    text: str = capture.get()
    return text if terminal else "".join(f"{line.rstrip()}\n" for line in text.splitlines())


def write_html(answers: Answers, path: Path) -> None:
    """Write the report as one HTML file, whole or not at all.

    Raises:
        StoreError: the file cannot be written.
    """
    from orchestrator.report.html import render_html

    write_file(path, render_html(answers))


def write_file(path: Path, text: str | bytes) -> Path:
    """Write ``text`` to ``path``, by way of a file beside it: whole or not at all.

    Raises:
        StoreError: it cannot be written.
    """
    partial = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(text.encode() if isinstance(text, str) else text)
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise StoreError(f"cannot write {path}: {error.strerror or error}") from error
    return path

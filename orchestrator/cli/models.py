"""``sweep models``: the catalogue of models; what they are when they are built here; whether they run here in eager mode."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.plan import NVIDIA_DRIVER
from orchestrator.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from orchestrator.model_table import ModelRow

EPILOG = "Examples: sweep models --suite timm --name 'vit_*' | sweep models manifests/smoke.yaml --check --device cpu"
DTYPES = ("float32", "amp")
LONGEST_CELL = 60

Row = dict[str, Any]


def models(
    manifests: Annotated[list[Path] | None, typer.Argument(help="List the models of these manifests instead. " + EPILOG)] = None,
    suite: Annotated[str | None, typer.Option(help="Only this suite's.")] = None,
    name: Annotated[str | None, typer.Option(help="Only these: NAME or SUITE/NAME, where * and ? match as in file names.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON, one model per line.")] = False,
    parameters: Annotated[bool, typer.Option("--parameters", help="Build each model, without memory, and show what it is here.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Build each model and take eager steps, each in a process of its own.")] = False,
    mode: Annotated[
        str | None, typer.Option(help="With --check: training or inference; training, unless there is nothing to train.")
    ] = None,
    device: Annotated[str, typer.Option(help="With --check: cpu, cuda, or auto, which is cuda where there is a GPU.")] = "auto",
    dtype: Annotated[list[str] | None, typer.Option(help="With --check: float32 or amp; both, unless given.")] = None,
    processes: Annotated[int, typer.Option(min=1, help="Processes at a time; only one of them takes steps at any moment.")] = 1,
    deadline: Annotated[float, typer.Option(min=1, help="Seconds for building a model, and again for its steps in each dtype.")] = 600.0,
) -> ExitCode:
    """List models: suite, name, source, batch size in training/inference, parameters, inputs, remarks.

    Without --parameters or --check nothing is built. Exit status with one of them: 0 all models work, 3 some do not.
    """
    from orchestrator import model_table

    rows = model_table.select(model_table.of_manifests(manifests) if manifests else model_table.listed(suite, name), suite, name)
    if check and parameters:
        raise UsageError("--check builds the models as well: give --parameters or --check")
    if not check and not parameters:
        toys = all(row.source == "toy" for row in rows)
        return _print([model_table.plain(row) for row in rows], json, _toys if toys else _listing)
    if any(row.suite == model_table.SUITE_OF_TOYS for row in rows):
        raise UsageError("toys have nothing to build: choose others with --suite or --name")
    if parameters:
        return _print(_described(rows, processes, deadline), json, _listing)
    tasks = [_tasks(row, mode, _device(device), _dtypes(dtype)) for row in rows]
    return _print(_checked(rows, tasks, processes, deadline), json, _verdicts)


def _described(rows: Sequence[ModelRow], processes: int, deadline_s: float) -> list[Row]:
    """The rows as they are built here; under ``failed`` what went wrong in all modes."""
    from orchestrator.model_table import MODES, plain, with_description
    from tasks.spec import encode

    questions = [{"describe": {mode: encode(row.spec(mode)) for mode in MODES}} for row in rows]
    found = []
    for row, answer in zip(rows, _answers(rows, questions, processes, deadline_s, fresh=False), strict=True):
        built = answer if "status" not in answer else {}
        errors = [part for part in (built or {"": answer}).values() if "status" in part]
        failed = {"failed": errors[0]} if len(errors) == len(built or errors) else {}
        found.append(plain(with_description(row, built)) | failed)
    return found


def _checked(rows: Sequence[ModelRow], tasks: Sequence[list[Any]], processes: int, deadline_s: float) -> list[Row]:
    """The rows with what the check found: facts and, under ``check``, each dtype's times; under ``failed`` what went wrong first."""
    from orchestrator.model_table import plain
    from tasks.spec import encode

    with tempfile.NamedTemporaryFile(prefix="sweep-models-") as lock:
        questions = [{"check": [encode(task) for task in group], "lock": lock.name} for group in tasks]
        answers = _answers(rows, questions, processes, deadline_s, fresh=True)
    found = []
    for row, group, answer in zip(rows, tasks, answers, strict=True):
        steps = {task.precision.dtype: answer.get(task.precision.dtype, answer) for task in group}
        failures = [result for result in steps.values() if result.get("status") != "pass"]
        facts = {"parameters": answer.get("parameters", row.parameters), "source": answer.get("source", row.source)}
        checked = {"mode": group[0].mode, "device": group[0].resources.device, "build_s": answer.get("build_s"), **steps}
        found.append(plain(row) | facts | {"check": checked} | ({"failed": failures[0]} if failures else {}))
    return found


def _answers(rows: Sequence[ModelRow], questions: Sequence[Row], processes: int, deadline_s: float, *, fresh: bool) -> list[Row]:
    """In the order of the questions; progress goes to stderr. After Ctrl-C the rest is marked as interrupted."""
    from orchestrator.survey import INTERRUPTED, Survey

    answers: list[Row] = [dict(INTERRUPTED) for _ in questions]
    with Survey(min(processes, len(questions)), deadline_s, fresh=fresh) as survey, suppress(KeyboardInterrupt):
        for done, (number, answer) in enumerate(survey.ask(questions), start=1):
            answers[number] = answer
            sys.stderr.write(f"{done}/{len(questions)} {rows[number].key}\n")
    return answers


def _tasks(row: ModelRow, mode: str | None, device: str, dtypes: Sequence[str]) -> list[Any]:
    from tasks.spec import PrecisionSpec, ResourceSpec, TaskSpec

    if mode not in (None, "training", "inference"):
        raise UsageError(f"--mode {mode}: must be training or inference")
    chosen = mode or row.usual_mode
    runs_in = [dtype for dtype in dtypes if row.dtypes is None or dtype in row.dtypes]
    if not runs_in:
        raise UsageError(f"{row.key} runs in {', '.join(row.dtypes or ())} only")
    return [
        TaskSpec(f"{row.key}/{dtype}/{chosen}", row.spec(chosen), chosen, "eager", PrecisionSpec(dtype), resources=ResourceSpec(device))
        for dtype in runs_in
    ]


def _device(device: str) -> str:
    if device == "auto":
        return "cuda" if NVIDIA_DRIVER.exists() else "cpu"
    if device not in ("cpu", "cuda"):
        raise UsageError(f"--device {device}: must be auto, cpu or cuda")
    return device


def _dtypes(dtypes: Sequence[str] | None) -> tuple[str, ...]:
    unknown = [dtype for dtype in dtypes or () if dtype not in DTYPES]
    if unknown:
        raise UsageError(f"--dtype {unknown[0]}: must be {' or '.join(DTYPES)}")
    return tuple(dict.fromkeys(dtypes or DTYPES))


def _print(rows: Sequence[Row], json: bool, text: Callable[[Sequence[Row]], Iterable[str]]) -> ExitCode:
    from orchestrator.model_table import as_json

    if json:
        sys.stdout.write(as_json(rows))
    else:
        sys.stdout.writelines(f"{line}\n" for line in text(rows))
        sys.stdout.writelines(
            f"FAILED {_key(row)}: {row['failed']['status']}: {row['failed']['error']}\n" for row in rows if "failed" in row
        )
    return ExitCode.SOME_FAILED if any("failed" in row for row in rows) else ExitCode.PASSED


def _listing(rows: Sequence[Row]) -> Iterable[str]:
    head = ("model", "source", "batch", "parameters", "inputs in training", "remarks")
    cells = [
        (_key(row), row["source"] or "", _batches(row), _count(row["parameters"]), row["inputs"] or row["eval_inputs"] or "", _remarks(row))
        for row in rows
    ]
    yield from _table(head, cells)
    yield f"{len(rows)} models"


def _toys(rows: Sequence[Row]) -> Iterable[str]:
    cells = [(_key(row), row["note"], ", ".join(f"{name}: {value}" for name, value in row["options"].items())) for row in rows]
    yield from _table(("toy", "what it does", "options with their defaults"), cells, longest=None)


def _verdicts(rows: Sequence[Row]) -> Iterable[str]:
    dtypes = [dtype for dtype in DTYPES if any(dtype in row["check"] for row in rows)]
    head = ("model", "mode", "parameters", *(f"{dtype} {unit}" for dtype in dtypes for unit in ("ms", "MiB")), "")
    cells = [
        (
            _key(row),
            row["check"]["mode"],
            _count(row["parameters"]),
            *(cell for dtype in dtypes for cell in _step(row, dtype)),
            _oddity(row),
        )
        for row in rows
    ]
    yield from _table(head, cells)
    failed = sum("failed" in row for row in rows)
    yield f"{len(rows)} models, {len(rows) - failed} of which work here in eager mode"


def _step(row: Row, dtype: str) -> tuple[str, str]:
    """Milliseconds and peak memory of one dtype."""
    found = row["check"].get(dtype)
    if found is None:
        return "-", "-"
    if found.get("status") != "pass":
        return str(found.get("status")), "-"
    return f"{found['eager_ms']:.2f}", "-" if found["peak_mib"] is None else f"{found['peak_mib']:.0f}"


def _oddity(row: Row) -> str:
    infinite = [dtype for dtype in DTYPES if row["check"].get(dtype, {}).get("finite") is False]
    return f"results are not finite in {' and '.join(infinite)}" if infinite else ""


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]], longest: int | None = LONGEST_CELL) -> Iterable[str]:
    cut = [tuple(_cut(cell, longest) for cell in row) for row in rows]
    widths = [max(len(row[column]) for row in (head, *cut)) for column in range(len(head))]
    for row in (head, *cut):
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _cut(text: str, longest: int | None) -> str:
    return text if longest is None or len(text) <= longest else text[: longest - 3] + "..."


def _key(row: Mapping[str, Any]) -> str:
    return f"{row['suite']}/{row['name']}"


def _batches(row: Row) -> str:
    sizes = ["-" if row[column] is None else str(row[column]) for column in ("batch_size", "eval_batch_size")]
    return sizes[0] if sizes[0] == sizes[1] else "/".join(sizes)


def _count(parameters: int | None) -> str:
    return "" if parameters is None else f"{parameters:,}"


def _remarks(row: Row) -> str:
    return "; ".join(text for text in (row["fidelity"], row["note"]) if text)

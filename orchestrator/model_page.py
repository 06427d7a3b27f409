"""docs/models.md, generated from the catalogue: ``python -m orchestrator.model_page > docs/models.md``."""

from __future__ import annotations

import itertools
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.model_table import ModelRow, known

REFERENCE = "pt2"
DATA = Path(__file__).parents[1] / "docs" / "data"
CHECKED = DATA / "models-h200.json"  # what `sweep models --check` measured, with the machine and the command
BREAKS = DATA / "graph-breaks.json"  # what compiling the rebuilt models recorded, and what upstream's dashboards did
HEAD = """\
# Models

What the shipped manifests run, generated from the catalogue by `make models`; a test keeps it fresh. `sweep models` shows the same,
`sweep models --parameters` what these models are with the library versions of a machine, and `sweep models --check` whether they run
there in eager mode. For models of your own see [own-models.md](own-models.md).

- Source: `library` is a class of torchvision, transformers or timm with random weights; `rebuilt` is written in this project from the
  paper. Every TorchBench name can be taken from a real TorchBench checkout instead (`source: checkout`).
- Parameters are counted once where they are shared.
- Batch and inputs: of training; after a stroke the batch size of inference, where it differs. `x4` means four tensors of that shape.
"""
CHECK = """\
- Eager: milliseconds of an eager training step at this batch, in float32 with TF32 and in AMP with float16; peak: the most memory that
  torch's allocator held in either. One machine, {date}: {machine}, {versions}. `{command}`; a model has the device to itself while it is
  timed. These are medians of a few steps, to show that and how large each model runs; a sweep measures.

"""
TITLES = {"huggingface": "Hugging Face", "timm": "TIMM", "torchbench": "TorchBench"}
LEFT, RIGHT = "---", "---:"
COLUMNS = {
    "model": LEFT,
    "source": LEFT,
    "parameters": RIGHT,
    "batch": RIGHT,
    "inputs": LEFT,
    "eager float32": RIGHT,
    "AMP": RIGHT,
    "peak MiB": RIGHT,
    "remarks": LEFT,
}
FAILED = "fails"
DTYPES = ("float32", "amp")
BREAK_COLUMNS = {"model": LEFT, "CPU": RIGHT, "graphs": RIGHT, "GPU": RIGHT, "upstream": RIGHT, "reasons": LEFT}


def page(rows: Sequence[ModelRow], checked: Mapping[str, Any], breaks: Mapping[str, Any]) -> str:
    """The whole page: the catalogue with what was measured of it, and the graph breaks of models that were rebuilt."""
    sections = [_section(title, chosen, checked["models"]) for title, chosen in _sections(rows)]
    return HEAD + CHECK.format(**checked) + "\n".join([*sections, _failures(checked), _breaks(breaks)])


def _sections(rows: Sequence[ModelRow]) -> Iterable[tuple[str, list[ModelRow]]]:
    sizes = Counter(row.suite for row in rows if row.sweep == REFERENCE)
    for suite, title in TITLES.items():
        yield f"{title}: {sizes[suite]} of the reference sweep", [row for row in rows if (row.suite, row.sweep) == (suite, REFERENCE)]
    yield "Beside the reference sweep", [row for row in rows if row.sweep != REFERENCE]


def _section(title: str, rows: Sequence[ModelRow], measured: Mapping[str, Any]) -> str:
    return f"## {title}\n\n{_table(COLUMNS, [_cells(row, measured.get(row.key, {})) for row in rows])}"


def _cells(row: ModelRow, measured: Mapping[str, Any]) -> tuple[str, ...]:
    name = row.name if row.sweep == REFERENCE else row.key
    inputs = row.inputs or row.eval_inputs or ""
    remarks = "; ".join(text for text in (row.fidelity, row.note, _options(row)) if text)
    sizes = (_count(row.parameters), _batch(row), shorten(inputs))
    return (f"`{name}`", row.source or "", *sizes, *_measured(measured), remarks.replace("|", "\\|"))


def _measured(measured: Mapping[str, Any]) -> tuple[str, ...]:
    if not measured:
        return ("", "", "")
    times = [FAILED if "error" in measured[dtype] else f"{measured[dtype]['eager_ms']:.3g}" for dtype in DTYPES]
    peaks = [measured[dtype]["peak_mib"] for dtype in DTYPES if "error" not in measured[dtype]]
    return (*times, f"{max(peaks):,}" if peaks else "")


def _failures(checked: Mapping[str, Any]) -> str:
    """What failed there, with its cause and what became of it."""
    failed = [
        (name, dtype, found[dtype]["error"]) for name, found in checked["models"].items() for dtype in DTYPES if "error" in found[dtype]
    ]
    head = f"## What failed on {checked['machine']}\n\n"
    if not failed:
        return head + "Nothing: every model took its steps in both dtypes.\n"
    count = f"{len(failed)} of {len(DTYPES) * len(checked['models'])} checks."
    cells = [(f"`{name}`", dtype, error, checked["mended"].get(name, "")) for name, dtype, error in failed]
    return f"{head}{count}\n\n{_table(dict.fromkeys(('model', 'dtype', 'error', 'since'), LEFT), cells)}"


def _breaks(breaks: Mapping[str, Any]) -> str:
    """Graph breaks beside upstream's."""
    keys = [title.lower() for title in BREAK_COLUMNS if title != "model"]
    cells = [(f"`{name}`", *(str(found.get(key, "")) for key in keys)) for name, found in breaks["models"].items()]
    return f"## Graph breaks of rebuilt models\n\n{breaks['about']}\n\n{_table(BREAK_COLUMNS, cells)}"


def _table(columns: Mapping[str, str], rows: Sequence[tuple[str, ...]]) -> str:
    """A table of ``columns``, titles with their alignment; one that is empty in all rows is left out."""
    kept = [number for number in range(len(columns)) if any(row[number] for row in rows)]
    titles, rules = list(columns), list(columns.values())
    lines = [[titles[number] for number in kept], *([row[number] for number in kept] for row in rows)]
    head, *body = ("| " + " | ".join(cells) + " |\n" for cells in lines)
    return head + "|" + "|".join(rules[number] for number in kept) + "|\n" + "".join(body)


def _options(row: ModelRow) -> str:
    """The configuration of a model that a library has at any size."""
    sizes = {name: value for name, value in row.options.items() if name != "seq_len"}
    return "with " + ", ".join(f"`{name}: {value}`" for name, value in sizes.items()) if sizes else ""


def _count(parameters: int | None) -> str:
    return "" if parameters is None else f"{parameters:,}"


def _batch(row: ModelRow) -> str:
    sizes = (row.batch_size, row.eval_batch_size)
    return str(sizes[0]) if sizes[0] == sizes[1] else f"{sizes[0]}/{sizes[1]}"


def shorten(inputs: str) -> str:
    """``int64[2], int64[2], int64[3]`` as ``int64[2] x2, int64[3]``."""
    tensors = re.findall(r"\w+\[[^]]*\]", inputs)
    grouped = [(tensor, len(list(same))) for tensor, same in itertools.groupby(tensors)]
    return ", ".join(tensor if count == 1 else f"{tensor} x{count}" for tensor, count in grouped)


if __name__ == "__main__":
    sys.stdout.write(page(known(), *(json.loads(file.read_text()) for file in (CHECKED, BREAKS))))

"""docs/models.md, generated from the catalogue: ``python -m orchestrator.model_page > docs/models.md``."""

from __future__ import annotations

import itertools
import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence

from orchestrator.model_table import ModelRow, known

REFERENCE = "pt2"
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
TITLES = {"huggingface": "Hugging Face", "timm": "TIMM", "torchbench": "TorchBench"}
COLUMNS = "| model | source | parameters | batch | inputs | remarks |\n|---|---|---:|---:|---|---|\n"


def page(rows: Sequence[ModelRow]) -> str:
    """The whole page."""
    return HEAD + "\n".join(_section(title, chosen) for title, chosen in _sections(rows))


def _sections(rows: Sequence[ModelRow]) -> Iterable[tuple[str, list[ModelRow]]]:
    sizes = Counter(row.suite for row in rows if row.sweep == REFERENCE)
    for suite, title in TITLES.items():
        yield f"{title}: {sizes[suite]} of the reference sweep", [row for row in rows if (row.suite, row.sweep) == (suite, REFERENCE)]
    yield "Beside the reference sweep", [row for row in rows if row.sweep != REFERENCE]


def _section(title: str, rows: Sequence[ModelRow]) -> str:
    return f"## {title}\n\n{COLUMNS}" + "".join(_line(row, REFERENCE) for row in rows)


def _line(row: ModelRow, reference: str) -> str:
    name = row.name if row.sweep == reference else row.key
    inputs = row.inputs or row.eval_inputs or ""
    remarks = "; ".join(text for text in (row.fidelity, row.note, _options(row)) if text)
    cells = (f"`{name}`", row.source or "", _count(row.parameters), _batch(row), shorten(inputs), remarks.replace("|", "\\|"))
    return "| " + " | ".join(cells) + " |\n"


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
    sys.stdout.write(page(known()))

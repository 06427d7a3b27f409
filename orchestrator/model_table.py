"""The catalogue as rows: what each model of the reference sweep and beside it is, and likewise the models of any manifest.

Sizes and notes come from the manifests. What only a build tells (parameters, inputs, source, fidelity) comes from ``models.json`` beside
this file, which ``make models`` writes by surveying those manifests; so a listing needs neither torch nor time.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from orchestrator import catalogue
from orchestrator.errors import UsageError
from orchestrator.fields import Model
from orchestrator.manifest import load_manifest
from tasks.spec import ModelSpec, Scalar

TABLE = Path(__file__).with_name("models.json")
MODES = ("training", "inference")
SUITE_OF_TOYS = "toy"


@dataclass(frozen=True, slots=True)
class ModelRow:
    """One model. Sizes under ``eval_`` are those in inference; None is "not known without building it"."""

    suite: str
    name: str
    sweep: str  # the name of the manifest that lists it
    source: str | None = None  # library, rebuilt, checkout, factory or toy
    batch_size: int | None = None
    eval_batch_size: int | None = None
    parameters: int | None = None
    inputs: str | None = None
    eval_inputs: str | None = None
    fidelity: str | None = None
    note: str | None = None
    options: dict[str, Scalar] = field(default_factory=dict)
    dtypes: tuple[str, ...] | None = None  # the only ones that it runs in, where it does not run in all
    factory: str | None = None

    @property
    def key(self) -> str:
        return f"{self.suite}/{self.name}"

    @property
    def usual_mode(self) -> str:
        """Training, or inference for what has nothing to train."""
        return "inference" if self.parameters == 0 else "training"

    def spec(self, mode: str) -> ModelSpec:
        """What a worker is to build."""
        batch_size = self.eval_batch_size if mode == "inference" else self.batch_size
        source = "checkout" if self.source == "checkout" else None
        return ModelSpec(self.suite, self.name, batch_size, self.factory, self.options, source)


@cache
def known() -> tuple[ModelRow, ...]:
    """Every row of ``models.json``, in its order."""
    return tuple(row_of(data) for data in json.loads(TABLE.read_text(encoding="utf-8")))


def listed(suite: str | None, pattern: str | None) -> Sequence[ModelRow]:
    """What there is without a manifest: the catalogue, or the toys if it is them that ``suite`` or ``pattern`` asks for."""
    return toys() if suite == SUITE_OF_TOYS or (pattern or "").startswith(f"{SUITE_OF_TOYS}/") else known()


def toys() -> tuple[ModelRow, ...]:
    """Every kind of toy, with its options and their defaults."""
    return tuple(
        ModelRow(SUITE_OF_TOYS, name, sweep=SUITE_OF_TOYS, source="toy", note=toy.description, options=dict(toy.options))
        for name, toy in catalogue.table(SUITE_OF_TOYS).items()
    )


def row_of(data: Mapping[str, Any]) -> ModelRow:
    """The row that ``as_json`` wrote; what a check found is left out."""
    names = {column.name for column in dataclasses.fields(ModelRow)}
    values = {name: value for name, value in data.items() if name in names}
    if values.get("dtypes") is not None:
        values["dtypes"] = tuple(values["dtypes"])
    return ModelRow(**values)


def as_json(rows: Iterable[Mapping[str, Any]]) -> str:
    """A JSON list with one model per line."""
    return "[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n"


def plain(row: ModelRow) -> dict[str, Any]:
    """The row as JSON-able data."""
    return dataclasses.asdict(row)


def of_manifests(paths: Sequence[Path]) -> list[ModelRow]:
    """The models of manifests, in their order; facts that ``models.json`` knows of the same model at the same size are filled in."""
    facts = {row.key: row for row in known()} if TABLE.exists() else {}
    rows = []
    for path in paths:
        manifest = load_manifest(path).manifest
        for suite, models in manifest.suites.items():
            rows += [_with_known(_listed(manifest.name, suite, model), facts) for model in models]
    return rows


def _listed(sweep: str, suite: str, model: Model) -> ModelRow:
    """What the manifest and the tables say."""
    training, inference = (
        None if model.factory or model.source == "checkout" else catalogue.default_batch_size(suite, model.name, mode) for mode in MODES
    )
    return ModelRow(
        suite=suite,
        name=model.name,
        sweep=sweep,
        source="factory" if model.factory else "checkout" if model.source == "checkout" else None,
        batch_size=model.batch_size or training,
        eval_batch_size=model.eval_batch_size or model.batch_size or inference,
        note=model.note,
        options=dict(model.options),
        dtypes=tuple(model.dtypes) if model.dtypes else None,
        factory=model.factory,
    )


def _with_known(row: ModelRow, facts: Mapping[str, ModelRow]) -> ModelRow:
    same = facts.get(row.key)
    if same is None or row.source or same.options != row.options:
        return row
    return dataclasses.replace(
        row,
        source=same.source,
        parameters=same.parameters,
        fidelity=same.fidelity,
        inputs=same.inputs if same.batch_size == row.batch_size else None,
        eval_inputs=same.eval_inputs if same.eval_batch_size == row.eval_batch_size else None,
    )


def with_description(row: ModelRow, description: Mapping[str, Mapping[str, Any]]) -> ModelRow:
    """The row with what ``tasks.suites.survey`` described. A mode that failed leaves its columns empty."""
    training, inference = (description.get(mode, {}) for mode in MODES)
    built = training if "parameters" in training else inference
    return dataclasses.replace(
        row,
        source=built.get("source", row.source),
        parameters=built.get("parameters"),
        fidelity=built.get("fidelity"),
        batch_size=training.get("batch_size", row.batch_size),
        inputs=training.get("inputs"),
        eval_batch_size=inference.get("batch_size", row.eval_batch_size),
        eval_inputs=inference.get("inputs"),
    )


def select(rows: Sequence[ModelRow], suite: str | None, pattern: str | None) -> list[ModelRow]:
    """The rows of ``suite`` whose name or SUITE/NAME fits ``pattern``, in which * and ? match as in file names.

    Raises:
        UsageError: there are none.
    """
    if suite is not None and suite not in {row.suite for row in rows}:
        suites = sorted({row.suite for row in rows})
        raise UsageError(f"no models of suite {suite}; there are {', '.join(suites)}{catalogue.suggest(suite, suites)}")
    wanted = pattern or "*"
    chosen = [
        row
        for row in rows
        if suite in (None, row.suite) and (fnmatch.fnmatchcase(row.name, wanted) or fnmatch.fnmatchcase(row.key, wanted))
    ]
    if not chosen:
        names = [row.name for row in rows if suite in (None, row.suite)]
        raise UsageError(f"no model is called {wanted!r}{catalogue.suggest(wanted, names)}")
    return chosen

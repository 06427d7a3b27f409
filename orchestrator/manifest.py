"""A manifest from its YAML files: read, merged, checked. Every problem of every file is reported at once, at its place.

``load_manifest`` is the one way in. What a manifest may hold is in ``orchestrator.fields``; here is what several files or several fields
have to say to each other, and whether the models exist.

Merging: a file's ``defaults`` fill fields that its own models leave open. A model that an included file lists can be listed again in the
including one, which then wins field by field; mappings such as ``options`` merge key by key. The same model from two included files is a
problem, because neither has precedence.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from orchestrator import catalogue, source
from orchestrator.complaints import complaints, fields_at, show
from orchestrator.errors import ManifestError, Problem
from orchestrator.fields import NAME_PATTERN, Backend, Environment, Exclude, IncludedFile, Manifest, Model, ModelFields
from orchestrator.options import option_problems
from orchestrator.source import Document, Trail

FileT = TypeVar("FileT", bound=IncludedFile)

DEFAULT_WEIGHTS: Mapping[str, float] = {"amp": 0.75, "float32": 0.25}
DEFAULT_BACKEND = "inductor"
DIGEST_LENGTH = 16
STAND_INS: Mapping[str, Any] = {
    "batch_size": 1,
    "factory": "some.package:function",
    "tolerance_reason": "one was given",
    "min_pairs": 2,
    "max_pairs": 2**31,
}
"""Taken for fields that are there but wrong or misspelled, so that nobody is told that they are missing or do not fit."""


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file that went into a manifest, as it was read."""

    path: str
    text: str


@dataclass(frozen=True, slots=True)
class LoadedManifest:
    """A manifest that has no problems.

    ``manifest`` is resolved: includes and defaults are merged into its models, ``backends`` has all that the matrix names, ``weights`` is
    filled in. ``digest`` is over that content, so comments and the division into files do not change it; of ``submit`` only the software
    is in it. ``environment`` is the one of the manifest's environments that this is for, see ``orchestrator.environments``.
    """

    manifest: Manifest
    digest: str
    path: Path
    files: tuple[SourceFile, ...]
    environment: str | None = None


@dataclass(frozen=True, slots=True)
class _Entry:
    """One model after merging: ``given`` holds the fields that were set anywhere; the place is where it was listed last."""

    suite: str
    name: str
    given: Mapping[str, Any]
    document: Document
    trail: Trail

    @property
    def key(self) -> str:
        return f"{self.suite}/{self.name}"

    def problem(self, message: str, *inner: str) -> Problem:
        return self.document.problem((*self.trail, *inner), message)


@dataclass(frozen=True, slots=True)
class _File:
    """The sound parts of one file, and where something is ``wrong``."""

    document: Document
    settings: IncludedFile
    entries: tuple[_Entry, ...]
    exclude: tuple[tuple[Trail, Exclude], ...]
    wrong: tuple[Trail, ...]

    def is_sound(self, *trail: str) -> bool:
        """Whether nothing is wrong at ``trail``, above it or below it."""
        return not any(all(one == other for one, other in zip(bad, trail, strict=False)) for bad in self.wrong)


def load_manifest(path: Path | str) -> LoadedManifest:
    """Read, merge and check the manifest at ``path``.

    Raises:
        ManifestError: with every problem of the file and of those that it includes.
    """
    document, problems = source.read(path)
    top = _interpret(document, Manifest, problems)
    settings = top.settings
    assert isinstance(settings, Manifest)
    entries = _merge(top, problems)
    resolved = settings.model_copy(
        update={
            "include": [],
            "defaults": ModelFields(),
            "backends": {DEFAULT_BACKEND: Backend()} | settings.backends,
            "weights": settings.weights or _default_weights(settings),
        }
    )
    excludes = list(_excludes(top, problems))
    problems += _check_settings(top, resolved)
    problems += _check_models(entries, resolved, top)
    problems += _check_excludes(excludes, entries, resolved, top)
    if problems:
        raise ManifestError(problems)
    suites: dict[str, list[Model]] = {}
    for entry in entries.values():
        suites.setdefault(entry.suite, []).append(Model.model_validate(entry.given))
    resolved = resolved.model_copy(update={"suites": suites, "exclude": [exclude for _, _, exclude in excludes]})
    return LoadedManifest(resolved, content_digest(resolved), Path(path), tuple(_source_files(document)))


def json_schema() -> dict[str, Any]:
    """The JSON Schema of manifests and, for files without a ``schema_version``, of the files that they include."""
    from pydantic.json_schema import models_json_schema

    _, schema = models_json_schema([(Manifest, "validation"), (IncludedFile, "validation")])
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "compile-sweep manifest",
        "description": "A sweep, or (without schema_version) a file that sweeps include.",
        "if": {"required": ["schema_version"]},
        "then": {"$ref": "#/$defs/Manifest"},
        "else": {"$ref": "#/$defs/IncludedFile"},
        "$defs": schema["$defs"],
    }


def expanded(loaded: LoadedManifest) -> dict[str, Any]:
    """The resolved manifest as plain data: every setting spelled out, of every model what differs from the suite's defaults."""
    settings = loaded.manifest.model_dump(mode="json", exclude={"include", "defaults", "suites", "exclude"})
    suites = {suite: [_plain(model) for model in models] for suite, models in loaded.manifest.suites.items()}
    excludes = [exclude.model_dump(mode="json", exclude_unset=True) for exclude in loaded.manifest.exclude]
    first = ("schema_version", "name", "description")
    ordered = {name: settings[name] for name in first} | settings | {"suites": suites, "exclude": excludes}
    return {name: value for name, value in ordered.items() if value not in (None, [], {})}


def _plain(model: Model) -> str | dict[str, Any]:
    given = {"name": model.name} | model.model_dump(mode="json", exclude_unset=True)
    return model.name if len(given) == 1 else given


def content_digest(manifest: Manifest) -> str:
    """Equal for two resolved manifests whose runs may go on with each other: where and how the driver is started changes no number."""
    data = manifest.model_dump(mode="json", exclude={"submit", "environments"})
    software = manifest.submit.model_dump(mode="json", include=set(Environment.model_fields)) if manifest.submit else {}
    data["submit"] = {name: value for name, value in software.items() if value} or None
    if manifest.environments:
        data["environments"] = {name: environment.model_dump(mode="json") for name, environment in manifest.environments.items()}
    content = json.dumps(data, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(content.encode()).hexdigest()[:DIGEST_LENGTH]


def _default_weights(manifest: Manifest) -> dict[str, float]:
    dtypes = sorted(set(manifest.matrix.dtype))
    return {dtype: DEFAULT_WEIGHTS[dtype] for dtype in dtypes} if len(dtypes) > 1 else dict.fromkeys(dtypes, 1.0)


def _source_files(document: Document) -> Iterator[SourceFile]:
    files = {document.file: SourceFile(document.file, document.text)}
    for child in document.includes:
        files |= {file.path: file for file in _source_files(child)}
    yield from files.values()


def _interpret(document: Document, kind: type[IncludedFile], problems: list[Problem]) -> _File:
    """What can be made of one file, so that its models are checked even if, say, its deadlines are wrong."""
    wrong: list[Trail] = []
    data: dict[str, Any] = document.data if isinstance(document.data, dict) else {}
    if document.sound:
        try:
            kind.model_validate(document.data)
        except ValidationError as error:
            for trail, problem in complaints(error, kind, document):
                wrong.append(trail)
                problems.append(problem)
    sound = _sound({key: value for key, value in data.items() if key not in ("suites", "exclude")}, (), wrong)
    required = {"schema_version": 1, "name": "unnamed"} if kind is Manifest else {}
    entries = tuple(_entry(suite, trail, item, document) for suite, trail, item in _sound_models(data.get("suites"), wrong))
    excludes = tuple(
        (("exclude", index), Exclude.model_validate(item)) for index, item in _sound_items(data.get("exclude"), ("exclude",), wrong)
    )
    return _File(document, kind.model_validate(required | sound), entries, excludes, tuple(wrong))


def _sound_models(suites: Any, wrong: list[Trail]) -> Iterator[tuple[str, Trail, Any]]:
    """Every model that has a usable name, without what is wrong in it."""
    for suite, items in suites.items() if isinstance(suites, dict) else ():
        for index, item in enumerate(items if isinstance(items, list) else ()):
            trail = ("suites", suite, index)
            nameless = any(trail == bad[:3] and bad[3:] in ((), ("name",)) for bad in wrong)
            if not nameless:
                yield suite, trail, _sound(item, trail, wrong) if isinstance(item, dict) else item


def _sound(data: dict[str, Any], where: Trail, wrong: list[Trail]) -> dict[str, Any]:
    """The mapping at ``where`` without what is wrong in it. Of a list with something wrong in it nothing is left."""
    bad = {trail[len(where)] for trail in wrong if trail[: len(where)] == where and len(trail) > len(where)}
    sound = {key: value for key, value in data.items() if key not in bad}
    for key in bad:
        at, value = (*where, key), data.get(str(key))
        if isinstance(value, dict) and at not in wrong:
            sound[str(key)] = _sound(value, at, wrong)
        elif key in STAND_INS and key in fields_at(Manifest, where):
            sound[str(key)] = STAND_INS[str(key)]
    return sound


def _sound_items(items: Any, where: Trail, wrong: list[Trail]) -> Iterator[tuple[int, Any]]:
    for index, item in enumerate(items if isinstance(items, list) else ()):
        if not any(trail[: len(where) + 1] == (*where, index) for trail in wrong):
            yield index, item


def _entry(suite: str, trail: Trail, item: Any, document: Document) -> _Entry:
    model = Model.model_validate(item)
    return _Entry(suite, model.name, model.model_dump(exclude_unset=True), document, trail)


def _merge(file: _File, problems: list[Problem]) -> dict[str, _Entry]:
    """The models of ``file`` and of what it includes, by SUITE/NAME, in order of first appearance."""
    merged: dict[str, _Entry] = {}
    for document in file.document.includes:
        for key, entry in _merge(_interpret(document, IncludedFile, problems), problems).items():
            other = merged.setdefault(key, entry)
            if other != entry:
                where = f"{other.document.file}:{other.document.place(other.trail).line}"
                problems.append(entry.problem(f"{key} is also listed in {where}; list it in the including file to say what holds"))
    defaults = file.settings.defaults.model_dump(exclude_unset=True)
    own: dict[str, _Entry] = {}
    for entry in file.entries:
        if entry.key in own:
            line = own[entry.key].document.place(own[entry.key].trail).line
            problems.append(entry.problem(f"{entry.key} is already listed in line {line}"))
            continue
        own[entry.key] = entry
        base = merged[entry.key].given if entry.key in merged else {}
        merged[entry.key] = _Entry(entry.suite, entry.name, _over(_over(defaults, base), entry.given), entry.document, entry.trail)
    return merged


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """``above`` wins; mappings on both sides merge key by key."""
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _over(merged[key], value) if both else value
    return merged


def _excludes(file: _File, problems: list[Problem]) -> Iterator[tuple[Document, Trail, Exclude]]:
    for document in file.document.includes:
        yield from _excludes(_interpret(document, IncludedFile, problems), problems)
    for trail, exclude in file.exclude:
        yield file.document, trail, exclude


def _check_settings(top: _File, manifest: Manifest) -> Iterator[Problem]:
    """What the fields of the manifest itself must have to do with each other, as far as they are sound one by one."""
    document = top.document
    yield from _check_matrix(top, manifest)
    if manifest.weights and top.is_sound("weights"):
        yield from _check_weights(top, manifest)
    for name, backend in manifest.backends.items():
        if backend.mode and backend.options:
            yield document.problem(("backends", name, "options"), "torch.compile takes a mode or options, not both")
        if unknown := catalogue.backend_problem(backend.backend):
            yield document.problem(("backends", name, "backend"), unknown)
    execution = manifest.execution
    if execution.num_gpus > 1 and execution.sharing != 1:
        yield document.problem(("execution", "sharing"), "a task with several GPUs shares none: needs num_gpus: 1")
    if manifest.measurement.min_pairs > manifest.measurement.max_pairs:
        yield document.problem(("measurement",), _pairs_message(manifest.measurement.min_pairs, manifest.measurement.max_pairs))
    if manifest.measurement.processes > 1 and execution.cache == "bundle":
        yield document.problem(("measurement", "processes"), _BUNDLE_MESSAGE)


def _check_matrix(top: _File, manifest: Manifest) -> Iterator[Problem]:
    axes: dict[str, list[Any]] = {"dtype": [*manifest.matrix.dtype], "mode": [*manifest.matrix.mode], "backend": manifest.matrix.backend}
    for axis, values in axes.items():
        for index, value in enumerate(values if top.is_sound("matrix", axis) else ()):
            if value in values[:index]:
                yield top.document.problem(("matrix", axis, index), f"{show(value)} is already in the list")
            if axis == "backend" and value not in manifest.backends and top.is_sound("backends", value):
                hint = catalogue.suggest(value, manifest.backends)
                yield top.document.problem(("matrix", axis, index), f"no backend {show(value)} under 'backends'{hint}")


def _check_weights(top: _File, manifest: Manifest) -> Iterator[Problem]:
    dtypes = sorted(set(manifest.matrix.dtype))
    for dtype in manifest.weights if top.is_sound("matrix", "dtype") else ():
        if dtype not in dtypes:
            hint = catalogue.suggest(dtype, dtypes)
            yield top.document.key_problem(("weights", dtype), f"not a dtype of the matrix: {', '.join(dtypes)}{hint}")
    total = math.fsum(manifest.weights.values())
    if abs(total - 1) > 1e-9:
        yield top.document.problem(("weights",), f"must sum to 1, not {total:.10g}")


_BUNDLE_MESSAGE = "with execution.cache: bundle no process would compile afresh, which is what several are for; use cold or shared"


def _pairs_message(min_pairs: int, max_pairs: int) -> str:
    return f"min_pairs {min_pairs} is more than max_pairs {max_pairs}"


def _check_models(entries: Mapping[str, _Entry], manifest: Manifest, top: _File) -> Iterator[Problem]:
    if not entries and top.is_sound("suites") and not top.document.includes and isinstance(top.document.data, dict):
        yield top.document.problem((), "no models: give them under 'suites' or 'include' files that do")
    reported: set[tuple[str, str]] = set()
    for entry in entries.values():
        own = entry.given.get("factory") and re.fullmatch(NAME_PATTERN, entry.suite)  # whoever brings the model may name its suite
        unknown = None if own else catalogue.suite_problem(entry.suite)
        where = entry.trail[:2]
        if unknown and (entry.document.file, entry.suite) not in reported:
            reported.add((entry.document.file, entry.suite))
            yield entry.document.key_problem(where, unknown)
        if not unknown:
            yield from _check_model(entry, manifest, dtypes_known=top.is_sound("matrix", "dtype"))
    strangers = [entry.key for entry in entries.values() if not catalogue.runs_inline(entry.suite, entry.name)]
    if manifest.execution.isolation == "inline" and strangers:
        message = f"inline is only for toys that finish at once, and there is {strangers[0]}"
        yield top.document.problem(("execution", "isolation"), message)


def _check_model(entry: _Entry, manifest: Manifest, *, dtypes_known: bool) -> Iterator[Problem]:
    given = entry.given
    if not given.get("factory"):
        own_names = given.get("source") == "checkout" and entry.suite == "torchbench"  # and batch sizes: a checkout's
        yield from _check_options(entry) if own_names else _check_name(entry, manifest)
    if given.get("source") and entry.suite != "torchbench":
        yield entry.problem("only torchbench has a choice of sources", "source")
    if given.get("tolerance") and not given.get("tolerance_reason"):
        yield entry.problem("a tolerance needs a tolerance_reason", "tolerance")
    dtypes = given.get("dtypes")
    if dtypes and dtypes_known and not set(dtypes) & set(manifest.matrix.dtype):
        yield entry.problem(f"leaves nothing of matrix.dtype ({', '.join(manifest.matrix.dtype)})", "dtypes")
    if given.get("measurement"):
        pairs = _over(manifest.measurement.model_dump(), given["measurement"])
        if pairs["min_pairs"] > pairs["max_pairs"]:
            yield entry.problem(_pairs_message(pairs["min_pairs"], pairs["max_pairs"]), "measurement")
        if given["measurement"].get("processes", 1) > 1 and manifest.execution.cache == "bundle":
            yield entry.problem(_BUNDLE_MESSAGE, "measurement")


def _check_name(entry: _Entry, manifest: Manifest) -> Iterator[Problem]:
    unknown = catalogue.model_problem(entry.suite, entry.name)
    if unknown:
        yield entry.problem(unknown, "name")
        return
    yield from _check_options(entry)
    if catalogue.needs_batch_size(entry.suite, entry.name):
        enough = ("batch_size", "eval_batch_size") if manifest.matrix.mode == ["inference"] else ("batch_size",)
        if not any(entry.given.get(field) for field in enough):
            yield entry.problem(f"{entry.key} has no default batch size: give a batch_size")


def _check_options(entry: _Entry) -> Iterator[Problem]:
    for option, message in option_problems(entry.suite, entry.name, entry.given.get("source"), entry.given.get("options", {})):
        yield entry.document.key_problem((*entry.trail, "options", option), message)


def _check_excludes(
    excludes: list[tuple[Document, Trail, Exclude]], entries: Mapping[str, _Entry], manifest: Manifest, top: _File
) -> Iterator[Problem]:
    for document, trail, exclude in excludes:
        if not any(fnmatch.fnmatchcase(key, exclude.model) for key in entries):
            hint = catalogue.suggest(exclude.model, entries)
            yield document.problem((*trail, "model"), f"{show(exclude.model)} matches no model{hint}")
        if exclude.backend is not None and exclude.backend not in manifest.backends and top.is_sound("backends", exclude.backend):
            hint = catalogue.suggest(exclude.backend, manifest.backends)
            yield document.problem((*trail, "backend"), f"no backend {show(exclude.backend)} under 'backends'{hint}")

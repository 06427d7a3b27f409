"""A manifest from its YAML files: read, merged, checked. Every problem of every file is reported at once, at its place.

``load_manifest`` is the one way in. What a manifest may hold is in ``orchestrator.fields``, how its files make one whole in
``orchestrator.layers``, and what fields have to say to each other in ``orchestrator.consistency``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator import source
from orchestrator.consistency import check_excludes, check_models, check_settings
from orchestrator.errors import ManifestError
from orchestrator.fields import Backend, Environment, IncludedFile, Manifest, Model, ModelFields
from orchestrator.layers import excludes_of, interpret, merge
from orchestrator.source import Document

DEFAULT_WEIGHTS: Mapping[str, float] = {"amp": 0.75, "float32": 0.25}
DEFAULT_BACKEND = "inductor"
DIGEST_LENGTH = 16


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


def load_manifest(path: Path | str) -> LoadedManifest:
    """Read, merge and check the manifest at ``path``.

    Raises:
        ManifestError: with every problem of the file and of those that it includes.
    """
    document, problems = source.read(path)
    top = interpret(document, Manifest, problems)
    settings = top.settings
    assert isinstance(settings, Manifest)
    entries = merge(top, problems)
    resolved = settings.model_copy(
        update={
            "include": [],
            "defaults": ModelFields(),
            "backends": {DEFAULT_BACKEND: Backend()} | settings.backends,
            "weights": settings.weights or _default_weights(settings),
        }
    )
    excludes = list(excludes_of(top, problems))
    problems += check_settings(top, resolved)
    problems += check_models(entries, resolved, top)
    problems += check_excludes(excludes, entries, resolved, top)
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
    """Equal for two resolved manifests whose runs may go on with each other.

    Where and how the driver is started changes no number, and neither does how many processes compile.
    """
    data = manifest.model_dump(mode="json", exclude={"submit": True, "environments": True, "execution": {"compile_helpers"}})
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

"""The files of a manifest, as far as they are sound, and the models of all of them merged.

A file's ``defaults`` fill fields that its own models leave open. A model that an included file lists can be listed again in the
including one, which then wins field by field; mappings such as ``options`` merge key by key. The same model from two included files is a
problem, because neither has precedence.

What is wrong in one field hides nothing else: the field is left out, or something that will do stands in for it, and the rest goes on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from orchestrator.complaints import complaints, fields_at
from orchestrator.errors import Problem
from orchestrator.fields import Exclude, IncludedFile, Manifest, Model
from orchestrator.source import Document, Trail

STAND_INS: Mapping[str, Any] = {
    "batch_size": 1,
    "factory": "some.package:function",
    "tolerance_reason": "one was given",
    "min_pairs": 2,
    "max_pairs": 2**31,
}
"""Taken for fields that are there but wrong or misspelled, so that nobody is told that they are missing or do not fit."""


@dataclass(frozen=True, slots=True)
class Entry:
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
class File:
    """The sound parts of one file, and where something is ``wrong``."""

    document: Document
    settings: IncludedFile
    entries: tuple[Entry, ...]
    exclude: tuple[tuple[Trail, Exclude], ...]
    wrong: tuple[Trail, ...]

    def is_sound(self, *trail: str) -> bool:
        """Whether nothing is wrong at ``trail``, above it or below it."""
        return not any(all(one == other for one, other in zip(bad, trail, strict=False)) for bad in self.wrong)


def interpret(document: Document, kind: type[IncludedFile], problems: list[Problem]) -> File:
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
    return File(document, kind.model_validate(required | sound), entries, excludes, tuple(wrong))


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


def _entry(suite: str, trail: Trail, item: Any, document: Document) -> Entry:
    model = Model.model_validate(item)
    return Entry(suite, model.name, model.model_dump(exclude_unset=True), document, trail)


def merge(file: File, problems: list[Problem]) -> dict[str, Entry]:
    """The models of ``file`` and of what it includes, by SUITE/NAME, in order of first appearance."""
    merged: dict[str, Entry] = {}
    for document in file.document.includes:
        for key, entry in merge(interpret(document, IncludedFile, problems), problems).items():
            other = merged.setdefault(key, entry)
            if other != entry:
                where = f"{other.document.file}:{other.document.place(other.trail).line}"
                problems.append(entry.problem(f"{key} is also listed in {where}; list it in the including file to say what holds"))
    defaults = file.settings.defaults.model_dump(exclude_unset=True)
    own: dict[str, Entry] = {}
    for entry in file.entries:
        if entry.key in own:
            line = own[entry.key].document.place(own[entry.key].trail).line
            problems.append(entry.problem(f"{entry.key} is already listed in line {line}"))
            continue
        own[entry.key] = entry
        base = merged[entry.key].given if entry.key in merged else {}
        merged[entry.key] = Entry(entry.suite, entry.name, over(over(defaults, base), entry.given), entry.document, entry.trail)
    return merged


def over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """``above`` wins; mappings on both sides merge key by key."""
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = over(merged[key], value) if both else value
    return merged


def excludes_of(file: File, problems: list[Problem]) -> Iterator[tuple[Document, Trail, Exclude]]:
    for document in file.document.includes:
        yield from excludes_of(interpret(document, IncludedFile, problems), problems)
    for trail, exclude in file.exclude:
        yield file.document, trail, exclude

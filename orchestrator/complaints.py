"""What pydantic has against a file, in our words and at its place in the YAML."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable, Iterator
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from orchestrator.catalogue import closest, suggest
from orchestrator.errors import Problem
from orchestrator.fields import FACTORY_PATTERN, NAME_PATTERN
from orchestrator.source import Document, Key, Trail

_SURELY = 0.75
_WANTED = {
    "int_type": "an integer",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "a string",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
}
_BOUNDS = {
    "greater_than": ("gt", "more than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}
_PATTERNS = {
    NAME_PATTERN: "must begin with a letter or digit and hold only these and . _ + -",
    FACTORY_PATTERN: "must be package.module:function",
}


def complaints(error: ValidationError, model: type[BaseModel], document: Document) -> Iterator[tuple[Trail, Problem]]:
    """Each thing wrong, with the trail that pydantic gives it. ``model`` is what the whole ``document`` was validated as.

    A misspelled field comes a second time at the trail of the field that it was meant to be, which is therefore not called missing.
    """
    details = [(tuple(key for key in detail["loc"] if key != "[key]"), detail) for detail in error.errors(include_url=False)]
    meant = {trail: _meant(model, trail, document) for trail, detail in details if detail["type"] == "extra_forbidden"}
    for trail, detail in details:
        if detail["type"] == "missing" and trail in meant.values():
            continue
        is_key = trail != detail["loc"] or detail["type"] == "extra_forbidden"
        about = document.key_problem if is_key else document.problem
        problem = about(trail, _message(detail, model, trail))
        yield trail, problem
        if other := meant.get(trail):
            yield other, problem


def _meant(model: type[BaseModel], trail: Trail, document: Document) -> Trail | None:
    """The field of which the unknown one at ``trail`` is surely a misspelling."""
    name = closest(str(trail[-1]), fields_at(model, trail[:-1]), _SURELY)
    meant = (*trail[:-1], name) if name else None
    return None if meant in document.values else meant


def _message(detail: ErrorDetails, model: type[BaseModel], trail: Trail) -> str:
    kind, value, context = detail["type"], detail["input"], detail.get("ctx", {})
    if kind == "extra_forbidden":
        return f"unknown field{suggest(str(trail[-1]), fields_at(model, trail[:-1]))}"
    if kind == "missing":
        return f"the field '{trail[-1]}' is missing"
    if kind == "literal_error" and trail == ("schema_version",):
        return f"version {show(value)} is not known; this program reads version 1"
    if kind == "literal_error":
        choices = [choice.strip("'") for choice in context["expected"].replace(" or ", ", ").split(", ")]
        hint = suggest(value, choices) if isinstance(value, str) else ""
        return f"{show(value)} is not one of {', '.join(choices)}{hint}"
    if kind in _WANTED:
        quote = " (quote it)" if kind == "string_type" and not isinstance(value, (list, dict, type(None))) else ""
        wanted = "a name or a mapping" if context.get("class_name") == "Model" else _WANTED[kind]
        return f"expected {wanted}, got {show(value)}{quote}"
    if kind in _BOUNDS:
        name, words = _BOUNDS[kind]
        return f"must be {words} {context[name]:g}, got {show(value)}"
    if kind in ("too_short", "string_too_short"):
        return "must not be empty"
    if kind == "string_pattern_mismatch":
        return f"{show(value)} {_PATTERNS[context['pattern']]}"
    if kind == "value_error":
        return f"{context['error']}, got {show(value)}"
    return detail["msg"][0].lower() + detail["msg"][1:]


def show(value: Any) -> str:
    """A value as it would stand in YAML, shortened."""
    if isinstance(value, (list, dict)):
        return "a list" if isinstance(value, list) else "a mapping"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:56]}...'"


def fields_at(model: type[BaseModel], trail: Iterable[Key]) -> list[str]:
    """The names of the fields that the mapping at ``trail`` may have."""
    kinds: list[Any] = [model]
    for key in trail:
        kinds = [inner for kind in kinds for inner in _inside(kind, key)]
    return [name for kind in kinds if _is_model(kind) for name in kind.model_fields]


def _inside(kind: Any, key: Key) -> Iterator[Any]:
    if _is_model(kind):
        yield from _alternatives(kind.model_fields[key].annotation) if key in kind.model_fields else ()
    elif typing.get_origin(kind) in (list, dict):
        yield from _alternatives(typing.get_args(kind)[-1])


def _alternatives(annotation: Any) -> Iterator[Any]:
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        for member in typing.get_args(annotation):
            yield from _alternatives(member)
    elif origin is typing.Annotated:
        yield from _alternatives(typing.get_args(annotation)[0])
    else:
        yield annotation


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)

"""YAML files as plain data, with the place of every key and value.

Scalars follow YAML 1.2's core schema: ``1e-3`` is a float, ``no`` and ``3:30`` are strings, ``012`` is twelve. Duplicate keys, keys
that are not strings, foreign tags and merge keys are problems. ``read`` follows ``include`` lists. Nothing here knows what a manifest
means.

Documents are built from parser events and not with ``yaml.compose``: composing recurses once per level in C, so a file of brackets could
end the process.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from yaml.events import AliasEvent, DocumentStartEvent, MappingEndEvent, MappingStartEvent, ScalarEvent, SequenceEndEvent
from yaml.reader import Reader

from orchestrator.errors import Problem

Key = str | int
Trail = tuple[Key, ...]
"""The way from the root of a document to a value: mapping keys and list indices."""

MAX_DEPTH = 64
MAX_VALUES = 100_000
"""Values in a document after aliases are expanded; a manifest of 163 models has about 1,000."""

CORE_TAG = "tag:yaml.org,2002:"
CORE_SCALARS: Mapping[str, re.Pattern[str]] = {
    "null": re.compile(r"(?:~|null|Null|NULL|)\Z"),
    "bool": re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z"),
    # Longer integers read as floats: Python refuses to convert very long ones, and no manifest means them.
    "int": re.compile(r"(?:[-+]?[0-9]{1,100}|0o[0-7]{1,100}|0x[0-9a-fA-F]{1,100})\Z"),
    "float": re.compile(r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z"),
}


@dataclass(frozen=True, slots=True)
class Place:
    """Where something stands; lines and columns count from 1."""

    file: str
    line: int
    column: int

    def problem(self, trail: Sequence[Key], message: str) -> Problem:
        return Problem(self.file, self.line, self.column, render(trail), message)


@dataclass(frozen=True, slots=True)
class Document:
    """One YAML file: its data, the place of each value and key by trail, and the files that it includes, in order.

    ``sound`` is False, and ``data`` None, if the file could not be read or parsed.
    """

    file: str
    text: str
    sound: bool = True
    data: Any = None
    values: Mapping[Trail, Place] = field(default_factory=dict)
    keys: Mapping[Trail, Place] = field(default_factory=dict)
    includes: tuple[Document, ...] = ()

    def existing(self, trail: Trail) -> Trail:
        """As much of ``trail`` as the document has."""
        while trail and trail not in self.values:
            trail = trail[:-1]
        return trail

    def place(self, trail: Trail) -> Place:
        """The place of the value at ``trail``, or of the nearest one above it that exists."""
        return self.values.get(self.existing(trail), Place(self.file, 1, 1))

    def problem(self, trail: Trail, message: str) -> Problem:
        """A problem with the value at ``trail``, or with the nearest one above it that exists."""
        shown = self.existing(trail)
        return self.place(shown).problem(shown, message)

    def key_problem(self, trail: Trail, message: str) -> Problem:
        """A problem with the key that ``trail`` ends in."""
        return self.keys.get(trail, self.place(trail)).problem(self.existing(trail), message)


def render(trail: Sequence[Key]) -> str:
    """``("suites", "timm", 3, "name")`` as ``suites.timm[3].name``."""
    text = ""
    for key in trail:
        text += f"[{key}]" if isinstance(key, int) else f".{key}" if text else key
    return text


def read(path: Path | str) -> tuple[Document, list[Problem]]:
    """The file at ``path`` with everything that it includes, and all problems found on the way.

    A file included along two ways is read once.
    """
    reader = _FileReader()
    document = reader.document(str(path), Place(str(path), 1, 1), (), ())
    return document, reader.problems


def parse(text: str, file: str, problems: list[Problem]) -> Document:
    """``text`` as a document without its includes; what is wrong with it is appended to ``problems``."""
    unprintable = Reader.NON_PRINTABLE.search(text)
    if unprintable:
        line, column = _line_and_column(text, unprintable.start())
        problems.append(Problem(file, line, column, "", f"the character {unprintable.group()!a} is not allowed in YAML"))
        return Document(file, text, sound=False)
    found: list[Problem] = []
    try:
        root = _Composer(text, file, found).document()
    except yaml.YAMLError as error:
        problems += [*found, _syntax_problem(error, text, file)]
        return Document(file, text, sound=False)
    expansion = _Expansion(found)
    data = expansion.value(root, ()) if root else None
    problems += found
    return Document(file, text, True, data, expansion.values, expansion.keys)


def dump(data: Any) -> str:
    """``data`` as YAML that ``parse`` reads back equal, and that YAML 1.1 readers understand likewise."""
    text: str = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=140, default_flow_style=None)
    return text


class _Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]  # libyaml where it is there
    """Quotes every string that either version of YAML would take for something else."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - PyYAML's signature
        return True


for _name, _pattern in CORE_SCALARS.items():
    _Dumper.add_implicit_resolver(CORE_TAG + _name, _pattern, None)


class _Refused(yaml.MarkedYAMLError):
    """Ends the reading of a document that is YAML, at an event."""

    def __init__(self, event: Any, message: str) -> None:
        super().__init__(problem=message, problem_mark=event.start_mark)


@dataclass(slots=True)
class _Node:
    """A scalar (``content`` is its value), a list of nodes, or a list of (key node, value node)."""

    place: Place
    content: Any
    kind: str  # "scalar", "list" or "mapping"
    plain_key: str | None = None  # what was written, for scalars that are not strings


class _Composer:
    """Events -> nodes. Aliases become references to the node of their anchor."""

    def __init__(self, text: str, file: str, problems: list[Problem]) -> None:
        self._events: Iterator[Any] = iter(yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
        self._file = file
        self._problems = problems
        self._anchors: dict[str, _Node] = {}

    def document(self) -> _Node | None:
        root: _Node | None = None
        for event in self._events:
            if isinstance(event, DocumentStartEvent):
                if root is not None:
                    self._problem(event, "a second document; a manifest is one document")
                    return root
                root = self._node(next(self._events), 0)
        return root

    def _node(self, event: Any, depth: int) -> _Node:
        if isinstance(event, AliasEvent):
            return self._alias(event)
        if depth > MAX_DEPTH:
            raise _Refused(event, f"nested deeper than {MAX_DEPTH} levels")
        node = self._scalar(event) if isinstance(event, ScalarEvent) else self._collection(event, depth)
        if event.anchor:
            self._anchors[event.anchor] = node
        return node

    def _alias(self, event: AliasEvent) -> _Node:
        if event.anchor not in self._anchors:
            raise _Refused(event, f"no complete anchor '&{event.anchor}' before this alias")
        return self._anchors[event.anchor]

    def _collection(self, event: Any, depth: int) -> _Node:
        is_mapping = isinstance(event, MappingStartEvent)
        if event.tag not in (None, "!", CORE_TAG + ("map" if is_mapping else "seq")):
            self._problem(event, f"the tag {_short_tag(event.tag)} is not supported")
        end = MappingEndEvent if is_mapping else SequenceEndEvent
        content: list[Any] = []
        while not isinstance(item := next(self._events), end):
            node = self._node(item, depth + 1)
            content.append((node, self._node(next(self._events), depth + 1)) if is_mapping else node)
        return _Node(self._place(event), content, "mapping" if is_mapping else "list")

    def _scalar(self, event: ScalarEvent) -> _Node:
        text: str = event.value
        plain = _plain_scalar(text) if event.implicit[0] else text
        value = plain if event.tag is None else self._tagged_scalar(event, event.tag)
        return _Node(self._place(event), value, "scalar", None if isinstance(value, str) and not _is_merge(event) else text)

    def _tagged_scalar(self, event: ScalarEvent, tag: str) -> Any:
        name = tag.removeprefix(CORE_TAG)
        if name in ("!", "str"):
            return event.value
        if name not in CORE_SCALARS:
            self._problem(event, f"the tag {_short_tag(tag)} is not supported")
        elif CORE_SCALARS[name].match(event.value):
            return _convert(name, event.value)
        else:
            self._problem(event, f"{event.value!r} is no {_short_tag(tag)}")
        return event.value

    def _place(self, event: Any) -> Place:
        return Place(self._file, event.start_mark.line + 1, event.start_mark.column + 1)

    def _problem(self, event: Any, message: str) -> None:
        self._problems.append(self._place(event).problem((), message))


class _Expansion:
    """Nodes -> data, aliases expanded, with the place of every key and value."""

    def __init__(self, problems: list[Problem]) -> None:
        self.values: dict[Trail, Place] = {}
        self.keys: dict[Trail, Place] = {}
        self._problems = problems
        self._overflowed = False

    def value(self, node: _Node, trail: Trail) -> Any:
        if len(self.values) >= MAX_VALUES or len(trail) > MAX_DEPTH:
            self._report_overflow(node, trail)
            return None
        self.values[trail] = node.place
        if node.kind == "scalar":
            return node.content
        if node.kind == "list":
            return [self.value(item, (*trail, index)) for index, item in enumerate(node.content)]
        return self._mapping(node, trail)

    def _mapping(self, node: _Node, trail: Trail) -> dict[str, Any]:
        data: dict[str, Any] = {}
        for key_node, value_node in node.content:
            key = self._key(key_node, trail)
            if key is None:
                continue
            inner = (*trail, key)
            if key in data:
                first = self.keys[inner].line
                self._problems.append(key_node.place.problem(inner, f"duplicate key, first given in line {first}"))
                continue
            self.keys[inner] = key_node.place
            data[key] = self.value(value_node, inner)
        return data

    def _key(self, node: _Node, trail: Trail) -> str | None:
        if node.kind != "scalar":
            self._problems.append(node.place.problem(trail, "a key must be a string"))
            return None
        if node.plain_key is None:
            return str(node.content)
        hint = (
            "merge keys left YAML with version 1.2; use 'defaults'"
            if node.content == "<<"
            else f"a key must be a string: quote {node.plain_key!r}"
        )
        self._problems.append(node.place.problem((*trail, node.plain_key), hint))
        return None

    def _report_overflow(self, node: _Node, trail: Trail) -> None:
        if not self._overflowed:
            message = f"more than {MAX_VALUES:,} values or {MAX_DEPTH} levels after expanding aliases"
            self._problems.append(node.place.problem(trail[:MAX_DEPTH], message))
        self._overflowed = True


def _plain_scalar(text: str) -> Any:
    for name, pattern in CORE_SCALARS.items():
        if pattern.match(text):
            return _convert(name, text)
    return text


def _convert(name: str, text: str) -> Any:
    if name == "null":
        return None
    if name == "bool":
        return text.lower() == "true"
    if name == "float":
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return int(text, 0) if text.startswith(("0x", "0o")) else int(text)


def _is_merge(event: ScalarEvent) -> bool:
    return event.value == "<<" and event.tag is None and bool(event.implicit[0])


def _short_tag(tag: str) -> str:
    return "!!" + tag.removeprefix(CORE_TAG) if tag.startswith(CORE_TAG) else tag


def _syntax_problem(error: yaml.YAMLError, text: str, file: str) -> Problem:
    if not isinstance(error, yaml.MarkedYAMLError):
        return Problem(file, 1, 1, "", str(error))
    mark = error.problem_mark or error.context_mark
    line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
    message = " ".join(part for part in (error.problem, error.context) if part) or "not YAML"
    lines = text.splitlines() or [""]
    if line > len(lines):  # something is open at the end of the file: show the end of what there is
        line, column = len(lines), len(lines[-1]) + 1
    before = lines[line - 1][: column + 1]
    hint = "; YAML indents with spaces, not tabs" if "\t" in before else ""
    return Problem(file, line, column, "", f"{message}{hint}")


class _FileReader:
    """Reads files and what they include, each once."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self._done: dict[str, Document] = {}

    def document(self, path: str, asked_from: Place, trail: Trail, chain: tuple[str, ...]) -> Document:
        """The file at ``path``. ``chain`` holds the real paths of the files that led here; problems of reading go to ``asked_from``."""
        real = os.path.realpath(path)
        if real in chain:
            self.problems.append(asked_from.problem(trail, f"{path} includes this file in turn"))
            return Document(path, "", sound=False)
        if real not in self._done:
            text = self._text(path, asked_from, trail)
            unread = Document(path, "", sound=False)
            self._done[real] = unread if text is None else self._with_includes(parse(text, path, self.problems), (*chain, real))
        return self._done[real]

    def _with_includes(self, document: Document, chain: tuple[str, ...]) -> Document:
        listed = document.data.get("include") if isinstance(document.data, dict) else None
        included: list[Document] = []
        for index, name in enumerate(listed if isinstance(listed, list) else ()):
            if isinstance(name, str):
                trail = ("include", index)
                path = os.path.normpath(Path(document.file).parent / name)
                included.append(self.document(path, document.place(trail), trail, chain))
        return replace(document, includes=tuple(included))

    def _text(self, path: str, asked_from: Place, trail: Trail) -> str | None:
        try:
            return Path(path).read_text(encoding="utf-8-sig")
        except FileNotFoundError:
            self.problems.append(asked_from.problem(trail, f"no such file: {path}"))
        except OSError as error:
            self.problems.append(asked_from.problem(trail, f"cannot read {path}: {error.strerror}"))
        except UnicodeDecodeError as error:
            line, column = _line_and_column(error.object[: error.start].decode("utf-8-sig"), error.start)
            self.problems.append(Problem(path, line, column, "", "not UTF-8"))
        return None


def _line_and_column(text: str, index: int) -> tuple[int, int]:
    """Where ``text[:index]`` ends, counted from 1."""
    before = text[:index]
    return before.count("\n") + 1, len(before) - before.rfind("\n")

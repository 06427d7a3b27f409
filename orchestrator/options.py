"""Which ``options`` a model takes, as far as that is known without importing torch or a model library.

``torchbench``, ``timm`` and ``toy`` have tables. A ``huggingface`` model takes ``seq_len`` and any scalar of its configuration: a name that
no configuration of the installed transformers knows is a slip; whether this model's knows it shows when it is built, as does everything
where the library is not installed. Factories and installed suites check their own.
"""

from __future__ import annotations

import difflib
import importlib.util
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

from orchestrator.catalogue import BUILT_IN, suggest, table
from orchestrator.complaints import show
from tasks.spec import Scalar
from tasks.suites.reference import TIMM_OPTIONS
from tasks.suites.torchbench import CONFIGURED_BUILDERS, OPTIONS

SEQ_LEN = "seq_len"
CHECKOUT_OPTIONS = ("checkout",)
SIZES = frozenset({SEQ_LEN, "image_size"}.union(*OPTIONS.values()))
"""Options that are positive integers, whatever the model."""

_TOO_NEAR = 0.8
_FIELD = re.compile(r"^    (\w+)\s*[:=]", re.MULTILINE)


def option_problems(suite: str, name: str, source: str | None, options: Mapping[str, Scalar]) -> Iterator[tuple[str, str]]:
    """Each of ``options`` that a model without a factory does not take, and why not."""
    if suite not in BUILT_IN:
        return
    if suite == "toy":
        yield from _of_a_toy(name, options)
        return
    known, open_ended = _known(suite, name, source)
    for option, value in options.items():
        if option in known:
            if option in SIZES and not (type(value) is int and value >= 1):
                yield option, f"the option '{option}' must be an integer of at least 1, got {show(value)}"
        elif not open_ended:
            yield option, _no_option(f"{suite}/{name}", option, known)
        else:
            yield from ((option, problem) for problem in _slip(option))


def _known(suite: str, name: str, source: str | None) -> tuple[tuple[str, ...], bool]:
    """The options with names of their own, and whether a configuration's scalars come on top."""
    if source == "checkout":
        return CHECKOUT_OPTIONS, False
    if suite == "huggingface":
        return (SEQ_LEN,), True
    if suite == "timm":
        return TIMM_OPTIONS, False
    builder = table(suite)[name].builder
    return OPTIONS.get(builder, ()), builder in CONFIGURED_BUILDERS


def _of_a_toy(name: str, options: Mapping[str, Scalar]) -> Iterator[tuple[str, str]]:
    from tasks.suites.toy import MODELS, kind_of, value_problem

    toy = MODELS[kind_of(name)]
    for option, value in options.items():
        problem = value_problem(toy, option, value) if option in toy.options else _no_option(f"toy/{name}", option, tuple(toy.options))
        if problem is not None:
            yield option, problem


def _no_option(model: str, option: str, known: tuple[str, ...]) -> str:
    hint = suggest(option, known) or f"; it has {', '.join(sorted(known)) or 'none'}"
    return f"{model} has no option '{option}'{hint}"


def _slip(option: str) -> Iterator[str]:
    """What is wrong with an option that should be an attribute of a configuration."""
    if difflib.SequenceMatcher(None, SEQ_LEN, option).ratio() >= _TOO_NEAR:
        yield f"no option '{option}' (did you mean '{SEQ_LEN}'?)"
    elif not _is_configured(option):
        yield f"no configuration of transformers has '{option}'{suggest(option, {SEQ_LEN} | _fields())}"


def _is_configured(option: str) -> bool:
    """Whether the word is in the source of any configuration. True where transformers is not installed."""
    word = re.compile(rf"\b{re.escape(option)}\b")
    sources = _configurations()
    return not sources or any(word.search(source.read_text(encoding="utf-8")) for source in sources)


def _fields() -> set[str]:
    return {name for source in _configurations() for name in _FIELD.findall(source.read_text(encoding="utf-8"))}


@cache
def _configurations() -> tuple[Path, ...]:
    """The sources of transformers' configurations, those that all share first."""
    spec = importlib.util.find_spec("transformers")
    if spec is None or spec.origin is None:
        return ()
    root = Path(spec.origin).parent
    return (*sorted(root.glob("configuration_utils.py")), *sorted(root.glob("models/*/configuration_*.py")))

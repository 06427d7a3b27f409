"""Which suites and models exist, without importing torch or a model library.

``torchbench`` and ``toy`` are closed: their tables hold every name. ``huggingface`` and ``timm`` are open: beside the table of historical
names, any class of the installed transformers and any entry point of the installed timm will do, found by reading their source text.
In ``timm`` a dot begins the tag of pretrained weights, in ``toy`` a label; neither is looked at.
Where the library is not installed every name is accepted, because the workers' machines may have it. A package can bring a suite of its
own through the entry point group ``compile_sweep.suites``; what its models are called is its business.
"""

from __future__ import annotations

import difflib
import importlib.util
import re
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

ENTRY_POINT_GROUP = "compile_sweep.suites"
BACKEND_GROUP = "torch_dynamo_backends"
BACKENDS = frozenset(
    {
        "aot_eager", "aot_eager_decomp_partition", "aot_eager_default_partitioner", "aot_ts", "cudagraphs", "eager", "eager_debug",
        "eager_noexcept", "inductor", "invoke_subgraph", "openxla", "openxla_eval", "pre_dispatch_eager", "ts", "tvm",
    }
)  # fmt: skip
"""What torch itself registers for ``torch.compile``. Packages bring others, through entry points of the group above."""

BUILT_IN = ("huggingface", "timm", "torchbench", "toy")
OPEN = ("huggingface", "timm")

_TOO_NEAR = 0.8
_CLASS = re.compile(r"^class (\w+)\(", re.MULTILINE)
_ENTRY_POINT = re.compile(r"^@register_model\s*\ndef (\w+)\(", re.MULTILINE)
_RENAMED = re.compile(r"^register_model_deprecations\(__name__, \{(.*?)^\}", re.MULTILINE | re.DOTALL)
_RENAMED_NAME = re.compile(r"^\s*['\"]([^'\"]+)['\"]\s*:", re.MULTILINE)


def suggest(word: str, known: Iterable[str]) -> str:
    """`` (did you mean 'x'?)`` for the closest of ``known``, or nothing."""
    close = closest(word, known)
    return f" (did you mean '{close}'?)" if close else ""


def closest(word: str, known: Iterable[str], alike: float = 0.5) -> str | None:
    """The one of ``known`` that is most like ``word``, if it is at least so much ``alike``; 1 is the same but for capitals."""
    folded = {name.casefold(): name for name in sorted(known, reverse=True)}
    close = difflib.get_close_matches(word.casefold(), list(folded), n=1, cutoff=alike)
    return folded[close[0]] if close else None


def suite_problem(suite: str) -> str | None:
    """What is wrong with the name of a suite, or None."""
    if suite in BUILT_IN or suite in _installed(ENTRY_POINT_GROUP):
        return None
    names = (*BUILT_IN, *sorted(_installed(ENTRY_POINT_GROUP)))
    return f"unknown suite; there are {', '.join(names)}{suggest(suite, names)}"


def backend_problem(backend: str) -> str | None:
    """What is wrong with the ``backend`` of ``torch.compile``: too much like one of torch's to be another's that is not installed here."""
    near = closest(backend, BACKENDS, _TOO_NEAR)
    if near is None or backend in BACKENDS or backend in _installed(BACKEND_GROUP):
        return None
    return f"torch has no backend '{backend}' (did you mean '{near}'?)"


def model_problem(suite: str, name: str) -> str | None:
    """What is wrong with the name of a model in a suite that exists, or None."""
    if suite not in BUILT_IN or name in table(suite):
        return None
    if suite == "toy" and name.partition(".")[0] in table(suite):
        return None
    installed = _installed_models(suite)
    if installed is None or name in installed or (suite == "timm" and name.partition(".")[0] in installed):
        return None
    return f"no model '{name}' in suite {suite}{suggest(name, installed.union(table(suite)))}"


def runs_inline(suite: str, name: str) -> bool:
    """Whether the model may run in the process of its supervisor: toys that finish at once, and nothing else."""
    if suite != "toy":
        return False
    from tasks.suites.toy import finishes_at_once

    return finishes_at_once(name)


def default_batch_size(suite: str, name: str, mode: str) -> int | None:
    """The batch size that the suite's table gives the model, or None where it has none."""
    entry = table(suite).get(name) if suite in BUILT_IN else None
    default = getattr(entry, "default_batch_size", None)
    return int(default(mode)) if default else None


def needs_batch_size(suite: str, name: str) -> bool:
    """Whether a manifest must give the model's batch size: for what a library offers beyond the suite's own table."""
    return suite in OPEN and name not in table(suite)


@cache
def table(suite: str) -> Mapping[str, Any]:
    """The names that a built-in suite lists itself, and what it knows of each."""
    if suite == "torchbench":
        from tasks.suites.torchbench import EXTRA, MODELS

        return MODELS | EXTRA
    if suite == "toy":
        from tasks.suites.toy import MODELS as TOYS

        return TOYS
    from tasks.suites.reference import HUGGINGFACE, TIMM

    if suite == "huggingface":
        return HUGGINGFACE
    return TIMM


@cache
def _installed(group: str) -> frozenset[str]:
    """The names of the entry points of a group."""
    from importlib.metadata import entry_points

    return frozenset(point.name for point in entry_points(group=group))


@cache
def _installed_models(suite: str) -> frozenset[str] | None:
    """Names that the suite's library offers, empty for a closed suite, None where the library is not installed."""
    if suite == "huggingface":
        return _scan("transformers", "models/*/modeling_*.py", _CLASS.findall)
    if suite == "timm":
        return _scan("timm", "models/*.py", _timm_names)
    return frozenset()


def _scan(library: str, pattern: str, names: Callable[[str], list[str]]) -> frozenset[str] | None:
    spec = importlib.util.find_spec(library)
    if spec is None or spec.origin is None:
        return None
    sources = Path(spec.origin).parent.glob(pattern)
    return frozenset(name for source in sources for name in names(source.read_text(encoding="utf-8")))


def _timm_names(text: str) -> list[str]:
    renamed = [name for block in _RENAMED.findall(text) for name in _RENAMED_NAME.findall(block)]
    return [*_ENTRY_POINT.findall(text), *(name.partition(".")[0] for name in renamed)]

"""What the fields of a manifest have to do with each other, and whether the models and options that it names exist."""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from orchestrator import catalogue
from orchestrator.complaints import show
from orchestrator.errors import Problem
from orchestrator.fields import NAME_PATTERN, Exclude, Manifest
from orchestrator.layers import Entry, File, over
from orchestrator.options import option_problems
from orchestrator.source import Document, Trail

_BUNDLE_MESSAGE = "with execution.cache: bundle no process would compile afresh, which is what several are for; use cold or shared"

_STOPPED_MESSAGE = (
    "a neighbour that is stopped while another task is timed may hold a lock in a shared cache, and that task would wait for it: "
    "use cold or bundle, or sharing: 1"
)


def check_settings(top: File, manifest: Manifest) -> Iterator[Problem]:
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
    if execution.cache == "shared" and execution.sharing != 1:
        yield document.problem(("execution", "cache"), _STOPPED_MESSAGE)
    if manifest.measurement.min_pairs > manifest.measurement.max_pairs:
        yield document.problem(("measurement",), _pairs_message(manifest.measurement.min_pairs, manifest.measurement.max_pairs))
    if manifest.measurement.processes > 1 and execution.cache == "bundle":
        yield document.problem(("measurement", "processes"), _BUNDLE_MESSAGE)


def _check_matrix(top: File, manifest: Manifest) -> Iterator[Problem]:
    axes: dict[str, list[Any]] = {"dtype": [*manifest.matrix.dtype], "mode": [*manifest.matrix.mode], "backend": manifest.matrix.backend}
    for axis, values in axes.items():
        for index, value in enumerate(values if top.is_sound("matrix", axis) else ()):
            if value in values[:index]:
                yield top.document.problem(("matrix", axis, index), f"{show(value)} is already in the list")
            if axis == "backend" and value not in manifest.backends and top.is_sound("backends", value):
                hint = catalogue.suggest(value, manifest.backends)
                yield top.document.problem(("matrix", axis, index), f"no backend {show(value)} under 'backends'{hint}")


def _check_weights(top: File, manifest: Manifest) -> Iterator[Problem]:
    dtypes = sorted(set(manifest.matrix.dtype))
    for dtype in manifest.weights if top.is_sound("matrix", "dtype") else ():
        if dtype not in dtypes:
            hint = catalogue.suggest(dtype, dtypes)
            yield top.document.key_problem(("weights", dtype), f"not a dtype of the matrix: {', '.join(dtypes)}{hint}")
    total = math.fsum(manifest.weights.values())
    if abs(total - 1) > 1e-9:
        yield top.document.problem(("weights",), f"must sum to 1, not {total:.10g}")


def _pairs_message(min_pairs: int, max_pairs: int) -> str:
    return f"min_pairs {min_pairs} is more than max_pairs {max_pairs}"


def check_models(entries: Mapping[str, Entry], manifest: Manifest, top: File) -> Iterator[Problem]:
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


def _check_model(entry: Entry, manifest: Manifest, *, dtypes_known: bool) -> Iterator[Problem]:
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
        pairs = over(manifest.measurement.model_dump(), given["measurement"])
        if pairs["min_pairs"] > pairs["max_pairs"]:
            yield entry.problem(_pairs_message(pairs["min_pairs"], pairs["max_pairs"]), "measurement")
        if given["measurement"].get("processes", 1) > 1 and manifest.execution.cache == "bundle":
            yield entry.problem(_BUNDLE_MESSAGE, "measurement")


def _check_name(entry: Entry, manifest: Manifest) -> Iterator[Problem]:
    unknown = catalogue.model_problem(entry.suite, entry.name)
    if unknown:
        yield entry.problem(unknown, "name")
        return
    yield from _check_options(entry)
    if catalogue.needs_batch_size(entry.suite, entry.name):
        enough = ("batch_size", "eval_batch_size") if manifest.matrix.mode == ["inference"] else ("batch_size",)
        if not any(entry.given.get(field) for field in enough):
            yield entry.problem(f"{entry.key} has no default batch size: give a batch_size")


def _check_options(entry: Entry) -> Iterator[Problem]:
    for option, message in option_problems(entry.suite, entry.name, entry.given.get("source"), entry.given.get("options", {})):
        yield entry.document.key_problem((*entry.trail, "options", option), message)


def check_excludes(
    excludes: list[tuple[Document, Trail, Exclude]], entries: Mapping[str, Entry], manifest: Manifest, top: File
) -> Iterator[Problem]:
    for document, trail, exclude in excludes:
        if not any(fnmatch.fnmatchcase(key, exclude.model) for key in entries):
            hint = catalogue.suggest(exclude.model, entries)
            yield document.problem((*trail, "model"), f"{show(exclude.model)} matches no model{hint}")
        if exclude.backend is not None and exclude.backend not in manifest.backends and top.is_sound("backends", exclude.backend):
            hint = catalogue.suggest(exclude.backend, manifest.backends)
            yield document.problem((*trail, "backend"), f"no backend {show(exclude.backend)} under 'backends'{hint}")

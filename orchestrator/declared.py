"""What a manifest makes a cluster run that is not this project's, for people to see before it is sent. Nothing of it is imported here."""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path

from orchestrator.catalogue import BUILT_IN
from orchestrator.fields import Scalar, Submit
from orchestrator.manifest import LoadedManifest

OWN = ("orchestrator", "tasks")


@dataclass(frozen=True, slots=True)
class Code:
    """A top-level module that factories of the manifest name. ``path``: its file or folder, None where it does not travel."""

    module: str
    factories: tuple[str, ...]
    path: Path | None
    remark: str


def declared_code(loaded: LoadedManifest) -> tuple[Code, ...]:
    """The code that factories of the manifest name: it would run on the cluster with all rights of its user there."""
    named: dict[str, set[str]] = {}
    for models in loaded.manifest.suites.values():
        for model in models:
            if model.factory:
                named.setdefault(model.factory.partition(".")[0].partition(":")[0], set()).add(model.factory)
    return tuple(_code(module, tuple(sorted(factories)), loaded.path) for module, factories in sorted(named.items()))


def _code(module: str, factories: tuple[str, ...], manifest: Path) -> Code:
    if module in OWN:
        return Code(module, factories, None, "part of this project")
    # Only the finder is asked: to import the module here would run it here.
    spec = PathFinder.find_spec(module, [str(Path.cwd()), str(manifest.resolve().parent), *sys.path])
    origin = next(iter(spec.submodule_search_locations or ()), spec.origin) if spec else None
    if origin is None or not Path(origin).exists():
        return Code(module, factories, None, "not found here; every node must have it")
    path = Path(origin).resolve()
    installed = {Path(sysconfig.get_path(kind)).resolve() for kind in ("purelib", "platlib", "stdlib")}
    if any(path.is_relative_to(place) for place in installed):
        return Code(module, factories, None, "installed here and not sent; every node must have it installed, see submit.pip")
    return Code(module, factories, path, f"{path} goes along")


def declared_beside(loaded: LoadedManifest) -> Iterator[str]:
    """What runs there beside factories, one a line: packages, variables, checkouts, suites of installed packages."""
    settings = loaded.manifest.submit or Submit()
    for installer, requirements in (("pip", settings.pip), ("uv", settings.uv)):
        if requirements:
            yield f"{installer} installs on the nodes: {', '.join(requirements)}"
    if settings.env_vars:
        yield f"environment variables there: {', '.join(f'{name}={value}' for name, value in sorted(settings.env_vars.items()))}"
    for checkout in sorted(
        {_checkout(model.options) for model in loaded.manifest.suites.get("torchbench", ()) if model.source == "checkout"}
    ):
        yield f"models of torchbench come from the checkout at {checkout} on the nodes"
    for suite, models in loaded.manifest.suites.items():
        if suite not in BUILT_IN and any(model.factory is None for model in models):
            yield f"the suite {suite} comes from a package that every node must have installed, under the entry point compile_sweep.suites"


def _checkout(options: Mapping[str, Scalar]) -> str:
    return str(options.get("checkout") or "TORCHBENCH_ROOT")

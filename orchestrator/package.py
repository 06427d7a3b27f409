"""What a submission carries to a cluster: this project's code, the manifest with all that it includes, and the code that it names.

The package is put together file by file in a folder of its own, so that nothing goes along by accident: no results, no `.git`, no
caches. Code that is installed here (in site-packages) does not travel; it has to be installed there as well.
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path, PurePosixPath

from orchestrator.errors import UsageError
from orchestrator.manifest import LoadedManifest

MAX_MIB = 64
"""Ray keeps packages in the head's memory and refuses more than 100 MiB compressed; a sweep's code has well under one."""

OWN = ("orchestrator", "tasks")
MANIFESTS = "manifest"
"""The folder of the package with the manifest and its includes."""

EXCLUDED_FOLDERS = frozenset(
    {"__pycache__", ".git", ".hg", ".venv", "venv", "node_modules", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis", "results"}
)
EXCLUDED_SUFFIXES = (".pyc", ".pyo", ".egg-info", ".parquet", ".pt", ".safetensors")


@dataclass(frozen=True, slots=True)
class Code:
    """A top-level module that factories of the manifest name. ``path``: its file or folder, None where it does not travel."""

    module: str
    factories: tuple[str, ...]
    path: Path | None
    remark: str


@dataclass(frozen=True, slots=True)
class Package:
    """The files of a submission by their place in the package, and the manifest among them."""

    files: Mapping[str, Path | str]  # a Path is copied, a str is the content
    manifest: str
    code: tuple[Code, ...]
    left_out: tuple[str, ...]
    size_bytes: int

    def describe(self) -> Iterator[str]:
        """What goes along, what stays here, and which code the manifest would run, one a line."""
        yield f"sending {len(self.files)} files, {self.size_bytes / 1024:.0f} KiB: the project, and {self.manifest} with what it includes"
        if self.left_out:
            yield f"left out: {', '.join(self.left_out)}"
        for code in self.code:
            yield f"the manifest runs code of its own, {', '.join(code.factories)}: {code.remark}"

    def write(self, folder: Path) -> None:
        """Put the package into ``folder``."""
        for name, content in self.files.items():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, Path):
                shutil.copyfile(content, target)
            else:
                target.write_text(content, encoding="utf-8")


def pack(loaded: LoadedManifest, max_mib: float = MAX_MIB) -> Package:
    """The package for ``loaded``.

    Raises:
        UsageError: it is larger than ``max_mib``, or code of the manifest hides this project's own.
    """
    texts, manifest = manifest_files(loaded)
    files: dict[str, Path | str] = {f"{MANIFESTS}/{name}": text for name, text in texts.items()}
    left_out: list[str] = []
    root = Path(__file__).parent.parent
    for name in OWN:
        files |= _tree(root / name, name, left_out)
    code = declared_code(loaded)
    for entry in code:
        if entry.path is not None:
            files |= _tree(entry.path, entry.path.name, left_out)
    size = sum(content.stat().st_size if isinstance(content, Path) else len(content.encode()) for content in files.values())
    if size > max_mib * 2**20:
        raise UsageError(_too_large(files, size, max_mib))
    return Package(files, f"{MANIFESTS}/{manifest}", code, tuple(sorted(set(left_out))), size)


def manifest_files(loaded: LoadedManifest) -> tuple[dict[str, str], str]:
    """The texts of the manifest and its includes by place, the same relative to each other as here, and the manifest's own place."""
    absolute = {Path(file.path).resolve(): file.text for file in loaded.files}
    common = Path(os.path.commonpath([path.parent for path in absolute]))
    texts = {path.relative_to(common).as_posix(): text for path, text in absolute.items()}
    return texts, loaded.path.resolve().relative_to(common).as_posix()


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


def _tree(top: Path, name: str, left_out: list[str]) -> dict[str, Path | str]:
    if top.is_file():
        return {name: top}
    found: dict[str, Path | str] = {}
    for folder, folders, files in os.walk(top):
        inside = PurePosixPath(name, Path(folder).relative_to(top))
        left_out += [_pattern(entry) for entry in [*folders, *files] if _excluded(entry)]
        folders[:] = sorted(entry for entry in folders if not _excluded(entry))
        kept = [entry for entry in sorted(files) if not _excluded(entry)]
        found |= {str(inside / entry): Path(folder) / entry for entry in kept if (Path(folder) / entry).is_file()}
    return found


def _excluded(entry: str) -> bool:
    return entry in EXCLUDED_FOLDERS or entry.endswith(EXCLUDED_SUFFIXES)


def _pattern(entry: str) -> str:
    return entry if entry in EXCLUDED_FOLDERS else f"*{Path(entry).suffix}"


def _too_large(files: Mapping[str, Path | str], size: int, max_mib: float) -> str:
    sizes = {name: content.stat().st_size for name, content in files.items() if isinstance(content, Path)}
    largest: Sequence[str] = sorted(sizes, key=lambda name: -sizes[name])[:5]
    listed = ", ".join(f"{name} ({sizes[name] / 2**20:.1f} MiB)" for name in largest)
    return (
        f"the submission would be {size / 2**20:.0f} MiB, and at most {max_mib:g} MiB are sent; the largest files are {listed}. "
        "Install the manifest's own code on the nodes, or bake it into their image"
    )

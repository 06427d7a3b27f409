"""What a submission carries to a cluster: this project's code, the manifest with all that it includes, and the code that it names.

The package is put together file by file in a folder of its own, so that nothing goes along by accident: no results, no `.git`, no
caches. Code that is installed here (in site-packages) does not travel; it has to be installed there as well.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from orchestrator.declared import OWN, Code, declared_beside, declared_code
from orchestrator.errors import UsageError
from orchestrator.manifest import LoadedManifest

MAX_MIB = 64
"""Ray keeps packages in the head's memory and refuses more than 100 MiB compressed; a sweep's code has well under one."""

MANIFESTS = "manifest"
"""The folder of the package with the manifest and its includes."""

EXCLUDED_FOLDERS = frozenset(
    {"__pycache__", ".git", ".hg", ".venv", "venv", "node_modules", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis", "results"}
)
EXCLUDED_SUFFIXES = (".pyc", ".pyo", ".egg-info", ".parquet", ".pt", ".safetensors")


@dataclass(frozen=True, slots=True)
class Package:
    """The files of a submission by their place in the package, and the manifest among them."""

    files: Mapping[str, Path | str]  # a Path is copied, a str is the content
    manifest: str
    code: tuple[Code, ...]
    declared: tuple[str, ...]  # what else would run on the cluster that is not this project's
    left_out: tuple[str, ...]
    size_bytes: int

    def describe(self) -> Iterator[str]:
        """What goes along, what stays here, and which code the manifest would run, one a line."""
        yield f"sending {len(self.files)} files, {self.size_bytes / 1024:.0f} KiB: the project, and {self.manifest} with what it includes"
        if self.left_out:
            yield f"left out: {', '.join(self.left_out)}"
        for code in self.code:
            yield f"the manifest runs code of its own, {', '.join(code.factories)}: {code.remark}"
        yield from self.declared


def pack(loaded: LoadedManifest, max_mib: float = MAX_MIB) -> Package:
    """The package for ``loaded``.

    Raises:
        UsageError: it is larger than ``max_mib``, or code of the manifest hides this project's own.
    """
    texts, manifest = manifest_files(loaded)
    left_out: list[str] = []
    files = {f"{MANIFESTS}/{name}": text for name, text in texts.items()} | own_code(left_out)
    code = declared_code(loaded)
    for entry in code:
        if entry.path is not None:
            files |= _tree(entry.path, entry.path.name, left_out)
    size = sum(content.stat().st_size if isinstance(content, Path) else len(content.encode()) for content in files.values())
    if size > max_mib * 2**20:
        raise UsageError(_too_large(files, size, max_mib))
    declared = tuple(declared_beside(loaded))
    return Package(files, f"{MANIFESTS}/{manifest}", code, declared, tuple(sorted(set(left_out))), size)


def own_code(left_out: list[str] | None = None) -> dict[str, Path | str]:
    """This project's two packages by place; what is excluded is noted in ``left_out``."""
    files: dict[str, Path | str] = {}
    for name in OWN:
        files |= _tree(Path(__file__).parent.parent / name, name, [] if left_out is None else left_out)
    return files


JOB_FILE = "job.txt"


def write(files: Mapping[str, Path | str], folder: Path, job: str) -> None:
    """Put files into ``folder``, each at its place, and the name of the job that they are for.

    With the name no two jobs have the same package: of two that begin at once with the same one, Ray unpacks it for the second over the
    directory in which the first already works.
    """
    for name, content in {**files, JOB_FILE: job}.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Path):
            shutil.copyfile(content, target)
        else:
            target.write_text(content, encoding="utf-8")


def manifest_files(loaded: LoadedManifest) -> tuple[dict[str, str], str]:
    """The texts of the manifest and its includes by place, the same relative to each other as here, and the manifest's own place."""
    absolute = {Path(file.path).resolve(): file.text for file in loaded.files}
    common = Path(os.path.commonpath([path.parent for path in absolute]))
    texts = {path.relative_to(common).as_posix(): text for path, text in absolute.items()}
    return texts, loaded.path.resolve().relative_to(common).as_posix()


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

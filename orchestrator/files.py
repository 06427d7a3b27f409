"""Whole files in a folder, on a local disk or in an object store: the only place where the results store touches a filesystem.

A write is atomic and durable: a reader finds the whole file or none. What the operating system says on a failed write becomes a
``StoreError`` that names the path and what to do; a missing file stays a ``FileNotFoundError``.
"""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
from pathlib import Path
from typing import Any, Protocol

import pyarrow.fs as pafs

from orchestrator.errors import StoreError, UsageError
from orchestrator.secrecy import holds_credentials

_ADVICE = {
    errno.ENOSPC: "the disk is full; free some space, then resume the run",
    errno.EDQUOT: "the disk quota is used up; free some space, then resume the run",
    errno.EACCES: "no permission; choose another --results folder or change its owner",
    errno.EPERM: "no permission; choose another --results folder or change its owner",
    errno.EROFS: "the filesystem is read-only; choose another --results folder",
    errno.ENOTDIR: "a part of the path is a file; choose another --results folder",
}


CREDENTIALS = (
    "the place of results holds a user or password, which would be stored with the run: give the URI without, and the credentials by "
    "environment variables, a profile or a service account"
)


class Files(Protocol):
    """A folder of files. Names are relative, with "/" between folders."""

    def at(self, name: str) -> str:
        """The full path or URI, for messages."""

    def local(self, name: str) -> Path | None:
        """The path, where there is one, from the root: it means the same to a process with another working directory."""

    def child(self, name: str) -> Files:
        """A folder inside this one."""

    def folders(self) -> list[str]:
        """The names of the folders inside, sorted."""

    def names(self, folder: str) -> list[str]:
        """The names of the visible files of ``folder``, sorted; none if there is no such folder."""

    def read(self, name: str) -> bytes:
        """The whole file. ``FileNotFoundError`` if there is none; a ``StoreError`` if it cannot be read."""

    def source(self, name: str) -> Any:
        """The file for random access, as pyarrow takes it."""

    def write(self, name: str, data: bytes, *, durable: bool = True) -> None:
        """Create or replace the file, atomically; ``durable``: it survives a power failure."""

    def remove(self, name: str) -> None:
        """Remove the file; one that is not there is no error."""

    def rename(self, old: str, new: str) -> None:
        """Give a file another name."""

    def sweep_partial(self, folder: str) -> None:
        """Remove what writers that died left half-written."""


def open_files(root: str) -> Files:
    """The folder at a local path or at an object-store URI.

    Raises:
        UsageError: the URI names no filesystem that pyarrow knows, or holds credentials.
    """
    if "://" not in root:
        return LocalFiles(Path(root))
    if holds_credentials(root):  # this text is stored with runs and shown in lists
        raise UsageError(CREDENTIALS)
    try:
        filesystem, path = pafs.FileSystem.from_uri(root)
    except (ValueError, OSError) as error:
        raise UsageError(f"{root}: {error}; give a local folder or a URI like s3://bucket/folder") from error
    return LocalFiles(Path(path)) if isinstance(filesystem, pafs.LocalFileSystem) else ObjectFiles(filesystem, path.rstrip("/"))


def explain(action: str, where: str, error: OSError) -> StoreError:
    """``error`` as what a user can act on."""
    reason = error.strerror or str(error)
    advice = _ADVICE.get(error.errno or 0)
    return StoreError(f"cannot {action} {where}: {reason}" + (f" ({advice})" if advice else ""))


class LocalFiles:
    """A folder on a local or shared disk. Half-written files have names that begin with a dot."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def at(self, name: str) -> str:
        return str(self._root / name)

    def local(self, name: str) -> Path:
        return (self._root / name).absolute()

    def child(self, name: str) -> LocalFiles:
        return type(self)(self._root / name)

    def folders(self) -> list[str]:
        try:
            return sorted(entry.name for entry in os.scandir(self._root) if entry.is_dir() and not entry.name.startswith("."))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise explain("list", str(self._root), error) from error

    def names(self, folder: str) -> list[str]:
        try:
            return sorted(entry.name for entry in os.scandir(self._root / folder) if not entry.name.startswith("."))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise explain("list", self.at(folder), error) from error

    def read(self, name: str) -> bytes:
        try:
            return (self._root / name).read_bytes()
        except FileNotFoundError:
            raise
        except OSError as error:
            raise explain("read", self.at(name), error) from error

    def source(self, name: str) -> Any:
        return pafs.LocalFileSystem().open_input_file(str(self._root / name))

    def write(self, name: str, data: bytes, *, durable: bool = True) -> None:
        path = self._root / name
        partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._fill(partial, data, durable)
            self._publish(partial, path)
            if durable:
                self._sync_folder(path.parent)
        except OSError as error:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            raise explain("write", str(path), error) from error

    def remove(self, name: str) -> None:
        try:
            (self._root / name).unlink(missing_ok=True)
        except OSError as error:
            raise explain("remove", self.at(name), error) from error

    def rename(self, old: str, new: str) -> None:
        try:
            self._publish(self._root / old, self._root / new)
        except OSError as error:
            raise explain("rename", self.at(old), error) from error

    def sweep_partial(self, folder: str) -> None:
        for path in (self._root / folder).glob(".*.tmp"):
            path.unlink(missing_ok=True)

    def _fill(self, partial: Path, data: bytes, durable: bool) -> None:
        with partial.open("xb") as file:
            file.write(data)
            file.flush()
            if durable:
                os.fsync(file.fileno())

    def _publish(self, partial: Path, path: Path) -> None:
        partial.replace(path)

    def _sync_folder(self, folder: Path) -> None:
        """Make the names in ``folder`` durable; without this a rename may be lost with the power."""
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class ObjectFiles:
    """A prefix of an object store, where one upload is atomic by itself."""

    def __init__(self, filesystem: Any, prefix: str) -> None:
        self._filesystem = filesystem
        self._prefix = prefix

    def at(self, name: str) -> str:
        return f"{self._filesystem.type_name}://{self._path(name)}"

    def local(self, name: str) -> Path | None:  # noqa: ARG002 - there is none
        return None

    def child(self, name: str) -> ObjectFiles:
        return type(self)(self._filesystem, self._path(name))

    def folders(self) -> list[str]:
        return sorted(info.base_name for info in self._list(self._prefix) if info.type is pafs.FileType.Directory)

    def names(self, folder: str) -> list[str]:
        infos = self._list(self._path(folder))
        return sorted(info.base_name for info in infos if info.is_file and not info.base_name.startswith("."))

    def read(self, name: str) -> bytes:
        try:
            with self.source(name) as file:
                return bytes(file.read())
        except FileNotFoundError:
            raise
        except OSError as error:
            raise explain("read", self.at(name), error) from error

    def source(self, name: str) -> Any:
        return self._filesystem.open_input_file(self._path(name))

    def write(self, name: str, data: bytes, *, durable: bool = True) -> None:  # noqa: ARG002 - an upload always is
        path = self._path(name)
        try:
            self._filesystem.create_dir(path.rsplit("/", 1)[0], recursive=True)
            # pyarrow would compress what is named *.gz once more
            with self._filesystem.open_output_stream(path, compression=None) as stream:
                stream.write(data)
        except OSError as error:
            raise explain("write", self.at(name), error) from error

    def remove(self, name: str) -> None:
        try:
            self._filesystem.delete_file(self._path(name))
        except FileNotFoundError:
            return
        except OSError as error:
            raise explain("remove", self.at(name), error) from error

    def rename(self, old: str, new: str) -> None:
        try:
            self._filesystem.move(self._path(old), self._path(new))
        except OSError as error:
            raise explain("rename", self.at(old), error) from error

    def sweep_partial(self, folder: str) -> None:
        """An object store shows no half upload."""

    def _path(self, name: str) -> str:
        return f"{self._prefix}/{name}" if self._prefix else name

    def _list(self, path: str) -> list[Any]:
        try:
            infos: list[Any] = self._filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True))
        except OSError as error:
            raise explain("list", f"{self._filesystem.type_name}://{path}", error) from error
        return infos

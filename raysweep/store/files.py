# ruff: noqa: PTH103, PTH105, PTH108, PTH116, PTH120, PTH123
"""Files below one root, as a place keeps them: a local folder, by plain system calls.

A file appears whole or not at all: it is written under a unique name and renamed into place. Paths
are text here: a `Path` takes longer to make than a small file to read.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, TypeAlias

Stamp: TypeAlias = tuple[int, int]
"""Size and modification time of a file: bytes, and nanoseconds since 1970 by the place's clock."""


class Files(Protocol):
    """The operations that the store needs of a place; paths are relative, parts divided by `/`."""

    def read(self, path: str) -> bytes | None:
        """Return a file's bytes, or None if there is no such file."""

    def stamp(self, path: str) -> Stamp | None:
        """Return size and modification time of a file, or None if it is not there."""

    def stamps(self, folder: str) -> dict[str, Stamp]:
        """Return size and modification time of all files below a folder, unfinished ones too."""

    def write(self, path: str, data: bytes, *, durable: bool = False) -> None:
        """Write a file, or leave nothing and raise OSError; durable: a power loss spares it."""

    def create(self, path: str, data: bytes) -> bool | None:
        """Write a file unless there is one; whether this call made it, None if unable to tell."""

    def list(self, folder: str) -> list[str]:
        """Return the paths of all files below a folder, sorted; none if there is no folder."""

    def delete(self, path: str) -> None:
        """Remove a file, if it is there."""


def temporary(name: str) -> bool:
    """Return whether a file's name is that of a file which is being written."""
    return name.startswith(".") and name.endswith(".tmp")


class Folder:
    """A local folder; several times faster than pyarrow's local filesystem on small files.

    What is written durably is on the disk when `write` returns, unless `RAYSWEEP_FSYNC` is 0; a
    kill leaves whole files in any case.
    """

    def __init__(self, root: Path) -> None:
        """Name the folder; it is made when something is first written."""
        self.root = root
        self._above = f"{root}/"
        self._syncs = os.environ.get("RAYSWEEP_FSYNC", "") != "0"

    def read(self, path: str) -> bytes | None:
        """Return a file's bytes, or None if there is no such file."""
        try:
            with open(self._above + path, "rb") as file:
                return file.read()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def stamp(self, path: str) -> Stamp | None:
        """Return size and modification time of a file, or None if it is not there."""
        try:
            facts = os.stat(self._above + path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return facts.st_size, facts.st_mtime_ns

    def stamps(self, folder: str) -> dict[str, Stamp]:
        """Return size and modification time of all files below a folder; one look at each."""
        found: dict[str, Stamp] = {}
        cut = len(self._above)
        places = [str(self.root / folder)]
        while places:
            with contextlib.suppress(FileNotFoundError), os.scandir(places.pop()) as entries:
                for entry in entries:
                    if entry.is_dir():
                        places.append(entry.path)
                        continue
                    with contextlib.suppress(FileNotFoundError):  # gone since the folder was read
                        facts = entry.stat()
                        path = entry.path[cut:].replace(os.sep, "/")
                        found[path] = facts.st_size, facts.st_mtime_ns
        return found

    def write(self, path: str, data: bytes, *, durable: bool = False) -> None:
        """Write under a unique name and rename into place."""
        target = self._above + path
        durable = durable and self._syncs
        with self._written(target, data, durable=durable) as temporary:
            os.replace(temporary, target)
        if durable:
            _sync(os.path.dirname(target))

    def create(self, path: str, data: bytes) -> bool:
        """Write under a unique name and link into place, which fails if the name is taken."""
        target = self._above + path
        with self._written(target, data, durable=False) as temporary:
            try:
                os.link(temporary, target)
            except FileExistsError:
                return False
            finally:
                os.unlink(temporary)
        return True

    @staticmethod
    @contextlib.contextmanager
    def _written(target: str, data: bytes, *, durable: bool) -> Iterator[str]:
        """Yield a file beside the target that holds the data; remove it if anything fails."""
        folder = os.path.dirname(target)
        temporary = f"{folder}/.{uuid.uuid4().hex}.tmp"
        try:
            try:
                _write(temporary, data)
            except FileNotFoundError:
                os.makedirs(folder, exist_ok=True)
                _write(temporary, data)
            if durable:
                _sync(temporary)
            yield temporary
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise

    def list(self, folder: str) -> list[str]:
        """Return all files below a folder; one look at each folder, none at each file."""
        cut = len(self._above)
        return sorted(
            f"{place}/{name}"[cut:].replace(os.sep, "/")
            for place, _, names in os.walk(self.root / folder)
            for name in names
            if not temporary(name)
        )

    def delete(self, path: str) -> None:
        """Remove a file, if it is there."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.unlink(self._above + path)


def _write(path: str, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)


def _sync(path: str) -> None:
    """Bring a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""The root below which all files of a store lie: a folder, or a bucket.

Every file appears whole or not at all. An error of the file system or of the connection is a
`StoreError` that names the place, the file and the remedy.
"""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from raysweep.errors import StoreError
from raysweep.store.files import Bucket, Files, Folder


class Root:
    """Plain files by paths relative to it, parts divided by `/`."""

    def __init__(self, uri: str) -> None:
        """Name a place; nothing is read or written yet."""
        self._remote = "://" in uri and not uri.startswith("file://")
        local = unquote(urlsplit(uri).path) if uri.startswith("file://") else uri
        self.uri = uri if self._remote else str(Path(local).expanduser().resolve())
        self._opened: Files | None = None

    @property
    def _files(self) -> Files:
        if self._opened is None:
            try:
                self._opened = Bucket(self.uri) if self._remote else Folder(Path(self.uri))
            except (OSError, ValueError, ImportError) as error:
                raise StoreError(
                    f"storage {self.where()}: {error}; use a folder, s3://bucket/path or gs://…"
                ) from None
        return self._opened

    def local(self, path: str) -> Path | None:
        """Return a path below the root as a local path, or None for a remote store."""
        return None if self._remote else Path(self.uri) / _safe(path)

    def where(self, path: str = "") -> str:
        """Return a place in the store as text to show: no password, no connection options."""
        if not self._remote:
            return str(Path(self.uri, path))
        parts = urlsplit(self.uri)
        inside = "/".join(part for part in (parts.path.rstrip("/"), path) if part)
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], inside, "", ""))

    def check(self) -> None:
        """Write, read and delete a probe.

        Raises:
            StoreError: if the storage cannot be used; names the reason and the remedy.
        """
        probe = f"scratch/.probe-{uuid.uuid4().hex}"
        self.write(probe, b"probe")
        if self.read(probe) != b"probe":
            raise StoreError(
                f"storage {self.where()}: a probe file reads back differently; "
                f"use another place (--storage, RAYSWEEP_STORAGE)"
            )
        self.delete(probe)

    def write(self, path: str, data: bytes) -> None:
        """Write a file; it appears whole or not at all.

        Raises:
            StoreError: if it cannot be written, for example on a full disk; nothing is left.
        """
        try:
            self._files.write(_safe(path), data)
        except OSError as error:
            raise StoreError(
                f"storage {self.where()}: cannot write {path} ({error}); check free space and "
                f"permissions, then launch again: what is stored is kept"
            ) from error

    def create(self, path: str, data: bytes) -> bool | None:
        """Write a file that is not there yet, whole, and never over another one.

        Returns:
            Whether this call made it: of several callers at one time, in one process or on
            several hosts, exactly one does. None if the place cannot promise that; nothing is
            written then.

        Raises:
            StoreError: if it cannot be written.
        """
        try:
            return self._files.create(_safe(path), data)
        except OSError as error:
            raise StoreError(
                f"storage {self.where()}: cannot write {path} ({error}); check free space and "
                f"permissions, then launch again: what is stored is kept"
            ) from error

    def read(self, path: str) -> bytes | None:
        """Return a file's bytes, or None if there is none.

        Raises:
            StoreError: if it is there but cannot be read.
        """
        try:
            return self._files.read(_safe(path))
        except OSError as error:
            raise StoreError(
                f"storage {self.where()}: cannot read {path} ({error}); check permissions and "
                f"connection"
            ) from error

    def list(self, prefix: str) -> list[str]:
        """Return the paths of all files below a folder, sorted."""
        try:
            return self._files.list(_safe(prefix))
        except OSError as error:
            raise StoreError(f"storage {self.where()}: cannot list {prefix} ({error})") from error

    def delete(self, path: str) -> None:
        """Remove a file, if it is there.

        Raises:
            StoreError: if it is there and cannot be removed.
        """
        try:
            self._files.delete(_safe(path))
        except OSError as error:
            raise StoreError(f"storage {self.where()}: cannot delete {path} ({error})") from error

    def free_bytes(self) -> int | None:
        """Return the free space of a local store, in bytes; None for a remote one."""
        if self._remote:
            return None
        folder = Path(self.uri)
        return shutil.disk_usage(next(p for p in (folder, *folder.parents) if p.exists())).free


def _safe(path: str) -> str:
    parts = path.split("/")
    if "" in parts or "." in parts or ".." in parts or "\\" in path or "\0" in path:
        raise StoreError(f"a path in the store must stay below its root, got {path!r}")
    return path

"""The root below which all files of a store lie: a folder, or a bucket.

Every file appears whole or not at all. An error of the file system or of the connection is a
`StoreError` that names the place, the file and the remedy. A bucket or a mounted folder that has
answered before is waited for, with growing pauses; what is mere bookkeeping is not, and lacks at
the end.
"""

from __future__ import annotations

import errno
import random
import shutil
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote, urlsplit, urlunsplit

from raysweep.errors import StoreError
from raysweep.store.bucket import Bucket, lasting
from raysweep.store.files import Files, Folder, Stamp

T = TypeVar("T")
# What a mounted folder says while its server is away.
AWAY = frozenset({
    errno.ENOTCONN, errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH,
    errno.ENETUNREACH, errno.ECONNRESET,
})  # fmt: skip
PATIENCE = 600.0  # seconds that a place which has answered before is waited for
BRIEF = 10.0  # and one that has not: its address may be wrong
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 15.0  # seconds between two attempts


class Root:
    """Plain files by paths relative to it, parts divided by `/`."""

    def __init__(self, uri: str) -> None:
        """Name a place; nothing is read or written yet."""
        self._remote = "://" in uri and not uri.startswith("file://")
        local = unquote(urlsplit(uri).path) if uri.startswith("file://") else uri
        self.uri = uri if self._remote else str(Path(local).expanduser().resolve())
        self._opened: Files | None = None
        self._answered = False
        self._unwritten: dict[str, str] = {}

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

    # What may take several attempts

    def _tried(self, act: Callable[[Files], T], action: str, remedy: str = "") -> T:
        """Do something at the place; again and again while it is away, and will come back.

        Raises:
            StoreError: names the place, the action, the last error and the remedy.
        """
        began, pause = time.monotonic(), FIRST_PAUSE
        while True:
            try:
                result = act(self._files)
            except OSError as error:
                patience = PATIENCE if self._answered else BRIEF
                waited = time.monotonic() - began
                passing = not lasting(error) if self._remote else error.errno in AWAY
                if not passing or waited + pause > patience:
                    raise StoreError(
                        f"storage {self.where()}: cannot {action} ({error}){remedy}"
                    ) from error
            else:
                self._answered = True
                return result
            time.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, LONGEST_PAUSE)

    def check(self) -> int:
        """Write, read and delete a probe; return when that was by the place's own clock.

        Returns:
            Nanoseconds since 1970, not later than any operation that follows.

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
        stamp = self.stamp(probe)
        self.delete(probe)
        return stamp[1] if stamp else 0

    def write(self, path: str, data: bytes, *, durable: bool = False) -> None:
        """Write a file; it appears whole or not at all.

        Args:
            path: of the file.
            data: its bytes.
            durable: whether it outlasts a loss of power from now on, at the cost of a sync.

        Raises:
            StoreError: if it cannot be written, for example on a full disk; nothing is left.
        """
        _safe(path)
        self._tried(
            lambda files: files.write(path, data, durable=durable),
            f"write {path}",
            "; check free space and permissions, then launch again: what is stored is kept",
        )

    def try_write(self, path: str, data: bytes) -> bool:
        """Write bookkeeping, in one attempt; an error costs the file and nothing else.

        Returns:
            Whether it was written; if not, `unwritten` names it until it is.
        """
        try:
            self._files.write(_safe(path), data)
        except (OSError, StoreError) as error:
            self._unwritten[path] = str(error)
            return False
        self._unwritten.pop(path, None)
        return True

    @property
    def unwritten(self) -> Sequence[str]:
        """The line that names bookkeeping which could not be written; none if all was."""
        if not self._unwritten:
            return []
        path, error = min(self._unwritten.items())
        more = f" and {len(self._unwritten) - 1} more" if len(self._unwritten) > 1 else ""
        return [f"storage {self.where()}: could not write {path}{more} ({error})"]

    def create(self, path: str, data: bytes) -> bool | None:
        """Write a file that is not there yet, whole, and never over another one.

        Returns:
            Whether this call made it: of several callers at one time, in one process or on
            several hosts, exactly one does. None if the place cannot promise that; nothing is
            written then.

        Raises:
            StoreError: if it cannot be written.
        """
        _safe(path)
        return self._tried(
            lambda files: files.create(path, data),
            f"write {path}",
            "; check free space and permissions, then launch again: what is stored is kept",
        )

    def read(self, path: str) -> bytes | None:
        """Return a file's bytes, or None if there is none.

        Raises:
            StoreError: if it is there but cannot be read.
        """
        _safe(path)
        return self._tried(
            lambda files: files.read(path), f"read {path}", "; check permissions and connection"
        )

    def list(self, prefix: str) -> list[str]:
        """Return the paths of all files below a folder, sorted."""
        _safe(prefix)
        return self._tried(lambda files: files.list(prefix), f"list {prefix}")

    def stamp(self, path: str) -> Stamp | None:
        """Return size and modification time of a file, or None if it is not there."""
        _safe(path)
        return self._tried(lambda files: files.stamp(path), f"look at {path}")

    def stamps(self, prefix: str) -> dict[str, Stamp]:
        """Return size and modification time of all files below a folder, unfinished ones too."""
        _safe(prefix)
        return self._tried(lambda files: files.stamps(prefix), f"list {prefix}")

    def delete(self, path: str) -> None:
        """Remove a file, if it is there.

        Raises:
            StoreError: if it is there and cannot be removed.
        """
        _safe(path)
        self._tried(lambda files: files.delete(path), f"delete {path}")

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

"""The cache of a host: objects of remote stores by checksum, those used last, up to a size."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
from pathlib import Path

from raysweep.errors import StoreError
from raysweep.store.files import Folder, Stamp, temporary

SHARE = 0.1  # of the disk, where nothing else is set
LEFT = 0.9  # of the limit is left after a clearance
BETWEEN = 0.05  # of the limit is written by a process before it looks at the size again
ABANDONED_SECONDS = 86_400.0  # the age of an unfinished file that nobody writes any more


class Cache:
    """Objects below a folder. It may be emptied at any time; several processes may use it."""

    def __init__(self, folder: Path) -> None:
        """Name the folder; it is made when something is first written."""
        self.files = Folder(folder)
        self._folder = folder / "objects"
        self._limit: float | None = None
        self._verified: dict[str, Stamp] = {}
        self._unseen = float("inf")  # bytes written since this process knew the size

    def read(self, sha256: str, size: int) -> bytes | None:
        """Return an object's bytes, and note that they were used; None if they are not here.

        They are verified when this process first reads them, and whenever the file has changed.
        """
        path = f"objects/{sha256}"
        try:
            stamp, data = self.files.stamp(path), self.files.read(path)
            if stamp is None or data is None or len(data) != size:
                return None
            if self._verified.get(sha256) != stamp:
                if hashlib.sha256(data).hexdigest() != sha256:
                    return None
                self._verified[sha256] = stamp
            os.utime(self._folder / sha256, ns=(time.time_ns(), stamp[1]))
        except OSError:
            return None  # A cache that cannot be read costs time alone.
        return data

    def write(self, sha256: str, data: bytes) -> None:
        """Keep an object, if there is room; what was used longest ago goes."""
        limit = self._limit = limit_bytes(self._folder) if self._limit is None else self._limit
        if len(data) > limit:
            return
        with contextlib.suppress(OSError):  # A full or read-only cache costs time alone.
            self.files.write(f"objects/{sha256}", data)
            self._unseen += len(data)
            if self._unseen > BETWEEN * limit:
                self._clear(limit)
                self._unseen = 0

    def _clear(self, limit: float) -> None:
        """Remove what was used longest ago until the limit is kept; readers have read it whole."""
        found, total, now = [], 0, time.time()
        with os.scandir(self._folder) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # another process clears, too
                    facts = entry.stat()
                    if not temporary(entry.name):
                        found.append((facts.st_atime_ns, facts.st_size, entry.name))
                        total += facts.st_size
                    elif facts.st_mtime < now - ABANDONED_SECONDS:
                        self.files.delete(f"objects/{entry.name}")
        if total <= (1 - BETWEEN) * limit:
            return
        for _, size, name in sorted(found):
            if total <= LEFT * limit:
                break
            self.files.delete(f"objects/{name}")
            total -= size


def limit_bytes(folder: Path) -> float:
    """Return the most bytes that a cache may hold: RAYSWEEP_CACHE_GB, else a tenth of the disk.

    Raises:
        StoreError: if the variable is no number from 0.
    """
    given = os.environ.get("RAYSWEEP_CACHE_GB")
    if given:
        try:
            gigabytes = float(given)
        except ValueError:
            gigabytes = -1
        if not gigabytes >= 0:
            raise StoreError(
                f"RAYSWEEP_CACHE_GB must be a number of gigabytes from 0, got {given!r}"
            )
        return gigabytes * 1e9
    return SHARE * shutil.disk_usage(next(p for p in folder.parents if p.exists())).total

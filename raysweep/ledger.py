"""The ledger of a sweep: what was handed out, what failed, what grew; one file a run.

Manifests say what is done. The ledger tells how it went: attempts, failures, seconds, growth. A
torn last line (a killed driver) is skipped when it is read.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from typing import Any, BinaryIO

from raysweep.identity import cache_folder
from raysweep.store import Store


class Ledger:
    """Appends JSON lines; `sync` makes all of them durable with one fsync."""

    def __init__(self, store: Store, sweep: str) -> None:
        self.run = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{os.getpid()}"
        self._store = store
        self._path = f"sweeps/{sweep}/ledger/{self.run}.jsonl"
        # A remote store cannot append: the file is kept here and copied there now and then.
        self._local = store.local(self._path) or cache_folder() / "ledgers" / f"{self.run}.jsonl"
        self._local.parent.mkdir(parents=True, exist_ok=True)
        self._file: BinaryIO = self._local.open("ab")
        self._copied = time.monotonic()
        self._lines = 0

    def write(self, line: dict[str, Any]) -> None:
        """Append one line, to be made durable by the next `sync`."""
        stamped = {"t": round(time.time(), 3), **line}
        self._file.write(json.dumps(stamped, separators=(",", ":")).encode() + b"\n")
        self._lines += 1

    def sync(self, *, copy: bool = False) -> None:
        """Make what was written durable; copy it to a remote store every half minute."""
        if self._lines:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._lines = 0
        if self._store.local(self._path) is None and (copy or time.monotonic() - self._copied > 30):
            self._store.write(self._path, self._local.read_bytes())
            self._copied = time.monotonic()

    def close(self) -> None:
        """Sync and close."""
        self.sync(copy=True)
        self._file.close()


def read(store: Store, sweep: str) -> Iterator[dict[str, Any]]:
    """Yield every whole line of every run of a sweep, in the order of runs."""
    for path in sorted(store.list(f"sweeps/{sweep}/ledger")):
        for line in (store.read(path) or b"").splitlines():
            try:
                yield json.loads(line)
            except ValueError:
                continue


def log_path(sweep: str, key: str) -> str:
    """Return where the traceback of a failed stage is kept, relative to the store."""
    return f"sweeps/{sweep}/logs/{key}.txt"


def local_log(store: Store, sweep: str, key: str) -> str:
    """Return the traceback file as a user can open it."""
    return store.where(log_path(sweep, key))

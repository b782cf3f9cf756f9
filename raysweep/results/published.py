"""The memory of what W&B is seen to hold: a file of lines, so that publishing goes on anywhere.

What was seen online is remembered in the storage, where every machine finds it; what was written
offline, on the machine where it lies. Nothing depends on it: what is forgotten is asked for again.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Sequence

from raysweep.results.entries import Entry
from raysweep.store import Store

COPY_SECONDS = 30.0  # between two copies to a remote store, which cannot append


class Memory:
    """Run → the mark of the content that was published last.

    Attributes:
        marks: run id → mark.
    """

    def __init__(self, store: Store, path: str) -> None:
        """Read the file of a store; lines that are none are skipped."""
        self._store, self._path = store, path
        self._local = store.local(path)
        data = store.read(path) or b""
        self._lines = data.splitlines()
        self._copied = time.monotonic()
        self._torn = bool(data) and not data.endswith(b"\n")
        self.marks: dict[str, str] = {}
        for line in self._lines:
            with contextlib.suppress(ValueError, KeyError, TypeError):
                told = json.loads(line)
                self.marks[str(told["run"])] = str(told["mark"])

    def holds(self, entry: Entry) -> bool:
        """Return whether a run was published with this very content."""
        return self.marks.get(entry.run) == entry.mark

    def add(self, entries: Sequence[Entry]) -> None:
        """Remember runs, for those who come later, too."""
        new = [json.dumps({"run": one.run, "mark": one.mark}).encode() for one in entries]
        if not new:
            return
        self.marks |= {entry.run: entry.mark for entry in entries}
        if self._local is None:
            self._lines += new
            if time.monotonic() - self._copied > COPY_SECONDS:
                self.close()
            return
        self._local.parent.mkdir(parents=True, exist_ok=True)
        with self._local.open("ab") as file:
            file.write((b"\n" if self._torn else b"") + b"\n".join(new) + b"\n")
        self._torn = False

    def close(self) -> None:
        """Copy the lines to a remote store; best effort."""
        if self._local is None:
            self._store.try_write(self._path, b"\n".join(self._lines) + b"\n")
            self._copied = time.monotonic()

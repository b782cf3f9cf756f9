"""The memory of what W&B is seen to hold: a file of lines, so that publishing goes on anywhere.

What was seen online is remembered in the storage, where every machine finds it; what was written
offline, on the machine where it lies. Nothing depends on it: what is forgotten is asked for again.

A file beside it tells of which records nothing is left to publish, so that a launch which changes
nothing need not look at each run.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import replace

from raysweep.errors import StoreError
from raysweep.identity import digest
from raysweep.results import records
from raysweep.results.description import described
from raysweep.results.entries import Entry
from raysweep.store import Store
from raysweep.store.sweepfolder import SweepFolder

MEMORY, OFFLINE_MEMORY = "published.jsonl", "offline.jsonl"
COMPLETE = "complete.json"
COPY_SECONDS = 30.0  # between two copies to a remote store, which cannot append


class Memory:
    """Run → the mark of the content that was published last.

    Attributes:
        marks: run id → mark.
    """

    def __init__(self, folder: SweepFolder, *, online: bool) -> None:
        """Read the file of a sweep; lines that are none are skipped."""
        file = MEMORY if online else OFFLINE_MEMORY
        self._store, self._path = store, path = _place(folder, file, online=online)
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


class Completion:
    """Whether everything of a sweep is published, as its records stand.

    Attributes:
        online: whether it is published to W&B, or as offline runs.
    """

    def __init__(self, folder: SweepFolder, *, online: bool) -> None:
        """Name the sweep; nothing is read yet."""
        self.online = online
        self._folder = folder
        self._store, self._path = _place(folder, COMPLETE, online=online)

    def note(self) -> str | None:
        """Return the line on the runs that was said when the last was published.

        None if something is left, or records, sweep, code or tuning have changed since.
        """
        try:
            kept = json.loads(self._store.read(self._path) or b"{}")
            same = kept["state"] == self.state() != ""
            return str(kept["note"]) if same else None
        except (StoreError, ValueError, KeyError, TypeError):
            return None

    def state(self) -> str:
        """Return a digest of all that is published; empty while a launch has not concluded.

        The time of the launch is left out: another launch that changes nothing is no news.
        """
        folder = self._folder
        if described(folder.store, folder.name).concluded is False:
            return ""
        about = replace(records.describe(folder.store, folder.name), created_at=None)
        files = [folder.store.read(path) or b"" for path in (folder.records, folder.tuned)]
        sums = [hashlib.sha256(data).hexdigest() for data in files]
        return digest(json.dumps([about.pack(), *sums], sort_keys=True))

    def begin(self) -> None:
        """Forget that everything is published, before something is."""
        with contextlib.suppress(StoreError):
            self._store.delete(self._path)

    def end(self, state: str, note: str) -> None:
        """Remember that everything of a state is published, and what was said then."""
        if state:
            kept = json.dumps({"state": state, "note": note})
            self._store.try_write(self._path, kept.encode())


def _place(folder: SweepFolder, file: str, *, online: bool) -> tuple[Store, str]:
    """Return a file on what is published: in the storage, or beside the offline runs."""
    if online:
        return folder.store, folder.path(f"wandb/{file}")
    return Store(str(folder.wandb)), file

"""The ledger of a sweep: what was handed out, what failed, what grew; one file a run.

Manifests say what is done. The ledger records how: attempts, failures, seconds, growth. A line that
is no event (the torn last line of a killed driver, a damaged file) is skipped in reading.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import BinaryIO

from raysweep.identity import cache_folder
from raysweep.store import events
from raysweep.store.events import (
    Damaged,
    Dispatch,
    Done,
    End,
    Event,
    Failed,
    Grow,
    Kept,
    Start,
    UpstreamFailed,
)
from raysweep.store.sweepfolder import SweepFolder


class Ledger:
    """Appends JSON lines; `sync` makes all of them durable with one fsync."""

    def __init__(self, folder: SweepFolder) -> None:
        """Open a new file below the folder of a sweep, or of its tuning."""
        self.run = _new_run()
        self._store = store = folder.store
        self._path = f"{folder.ledger}/{self.run}.jsonl"
        # A remote store cannot append: the file is kept here and copied there now and then.
        self._local = store.local(self._path) or cache_folder() / "ledgers" / f"{self.run}.jsonl"
        self._local.parent.mkdir(parents=True, exist_ok=True)
        self._file: BinaryIO = self._local.open("ab")
        self._next_copy = time.monotonic() + 30
        self._lines = 0

    def write(self, event: Event) -> None:
        """Append one line with the time of now, to be made durable by the next `sync`."""
        self._file.write(replace(event, t=round(time.time(), 3)).pack() + b"\n")
        self._lines += 1

    def sync(self, *, copy: bool = False) -> None:
        """Make all written lines durable; copy them to a remote store now and then.

        A copy is made every half minute, and rarer where the ledger has grown so large that copies
        would take more than a twentieth of the time. One that fails is made later.
        """
        if self._lines:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._lines = 0
        began = time.monotonic()
        if self._store.local(self._path) is None and (copy or began > self._next_copy):
            self._store.try_write(self._path, self._local.read_bytes())
            self._next_copy = began + max(30, 20 * (time.monotonic() - began))

    def close(self) -> None:
        """Sync and close."""
        self.sync(copy=True)
        self._file.close()


def _new_run() -> str:
    """Return an id that no other run has, on any host; ids sort by time."""
    seconds, nanoseconds = divmod(time.time_ns(), 10**9)
    date = time.strftime("%Y%m%d-%H%M%S", time.gmtime(seconds))
    return f"{date}-{nanoseconds // 1000:06}-{uuid.uuid4().hex[:8]}"


def read(folder: SweepFolder) -> Iterator[Event]:
    """Yield every event of every run of a sweep, or of its tuning, in the order of runs."""
    for path in folder.store.list(folder.ledger):
        yield from _events(folder, path)


def has_ended(folder: SweepFolder, run: str) -> bool:
    """Return whether a run of a sweep, or of its tuning, has come to its end, stopped or not."""
    path = f"{folder.ledger}/{run}.jsonl"
    return any(isinstance(event, End) for event in _events(folder, path))


def _events(folder: SweepFolder, path: str) -> Iterator[Event]:
    for line in (folder.store.read(path) or b"").splitlines():
        if (event := events.unpack(line)) is not None:
            yield event


@dataclass
class Standing:
    """The standing of the last run of a sweep, from its ledger.

    Attributes:
        start: the event that the run began with; none if none has begun.
        done: keys of stages that it ran.
        failed: key → error.
        upstream: key → key of the failed stage that it waits for.
        out: keys that were handed out and have not come back.
        stages, cached, trials: numbers of them, with all that the plan has gained.
        ended: whether the run came to its end.
        last: when its last event was written, in seconds since 1970.
    """

    start: Start | None = None
    done: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)
    upstream: dict[str, str] = field(default_factory=dict)
    out: set[str] = field(default_factory=set)
    stages: int = 0
    cached: int = 0
    trials: int = 0
    ended: bool = False
    last: float = 0

    def take(self, event: Event) -> None:
        """Take in one event of the run."""
        match event:
            case Dispatch():
                self.out.update(event.keys)
            case Done():
                self.done.add(event.key)
                self.out.discard(event.key)
                self.failed.pop(event.key, None)
            case Failed():
                self.failed[event.key] = event.error
                self.out.discard(event.key)
            case Kept():
                self.done.add(event.key)
            case Damaged():
                self.done.discard(event.key)
            case UpstreamFailed():
                self.upstream[event.key] = event.cause
            case Grow():
                self.stages += event.stages
                self.cached += event.cached or 0
                self.trials += event.trials or 0
            case End():
                self.ended = True


def standing(folder: SweepFolder, paths: Sequence[str] | None = None) -> Standing:
    """Return the standing of the last run of a sweep, or of its tuning.

    Ledgers are read from the newest back to the first that says how its run began: one request.

    Args:
        folder: of the sweep, or of its tuning.
        paths: of its ledgers, sorted, if they are known; else they are listed.
    """
    known = folder.store.list(folder.ledger) if paths is None else paths
    events_of_run: list[Event] = []
    for path in reversed(known):
        events_of_run[:0] = _events(folder, path)
        if any(isinstance(event, Start) for event in events_of_run):
            break
    now = Standing()
    for event in events_of_run:
        if isinstance(event, Start):
            now = Standing(
                start=event, stages=event.stages, cached=event.cached, trials=event.trials
            )
        else:
            now.take(event)
        now.last = event.t
    return now

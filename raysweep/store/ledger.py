"""The ledger of a sweep: what was handed out, what failed, what grew; one file a run.

Manifests say what is done. The ledger tells how it went: attempts, failures, seconds, growth. What
is no event (a torn last line of a killed driver, a damaged file) is skipped when it is read.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from raysweep.identity import cache_folder
from raysweep.store.sweepfolder import SweepFolder

# Every kind of event, and what each of its lines holds at least.
EVENTS: dict[str, dict[str, type]] = {
    "start": {"trials": int, "stages": int, "cached": int},
    "dispatch": {"keys": list, "ready": int},
    "done": {"key": str, "seconds": float, "host": str, "pid": int},
    "failed": {"key": str, "error": str},
    "upstream_failed": {"key": str, "cause": str},
    "retry": {"key": str, "error": str},
    "damaged": {"key": str},
    "grow": {"key": str, "stages": int},
    "told": {
        "study": str, "tied": str, "params": dict, "values": list, "constraints": dict,
        "attrs": dict, "state": str,
    },
    "end": {"complete": bool},
}  # fmt: skip


class Ledger:
    """Appends JSON lines; `sync` makes all of them durable with one fsync."""

    def __init__(self, folder: SweepFolder) -> None:
        """Open a new file below the folder of a sweep, or of its tuning."""
        self.run = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{os.getpid()}"
        self._store = store = folder.store
        self._path = f"{folder.ledger}/{self.run}.jsonl"
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


def read(folder: SweepFolder) -> Iterator[dict[str, Any]]:
    """Yield every event of every run of a sweep, or of its tuning, in the order of runs."""
    for path in folder.store.list(folder.ledger):
        for line in (folder.store.read(path) or b"").splitlines():
            try:
                found = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if _is_event(found):
                yield found


def _is_event(line: Any) -> bool:
    """Return whether a value is an event with a time and all that its kind holds."""
    if not isinstance(line, dict) or not isinstance(line.get("event"), str):
        return False
    at = line.get("t")
    if not isinstance(at, int | float) or not math.isfinite(at) or not 0 <= at < 1e11:
        return False
    for name, kind in EVENTS.get(line["event"], {}).items():
        value = line.get(name)
        if not isinstance(value, int | float if kind is float else kind):
            return False
        if isinstance(value, list) and name == "keys" and not all(map(_is_text, value)):
            return False
    return True


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


@dataclass
class Standing:
    """How the last run of a sweep stands, from its ledger.

    Attributes:
        start: the line that the run began with; empty if none has begun.
        done: keys of stages that it ran.
        failed: key → error.
        upstream: key → key of the failed stage that it waits for.
        out: keys that were handed out and have not come back.
        stages, cached, trials: how many there are; what grew is counted.
        ended: whether the run came to its end.
    """

    start: dict[str, Any] = field(default_factory=dict)
    done: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)
    upstream: dict[str, str] = field(default_factory=dict)
    out: set[str] = field(default_factory=set)
    stages: int = 0
    cached: int = 0
    trials: int = 0
    ended: bool = False

    def take(self, line: dict[str, Any]) -> None:
        """Take in one event of the run."""
        event, key = line["event"], line.get("key", "")
        if event == "dispatch":
            self.out.update(line["keys"])
        elif event == "done":
            self.done.add(key)
            self.out.discard(key)
            self.failed.pop(key, None)
        elif event == "failed":
            self.failed[key] = line["error"]
            self.out.discard(key)
        elif event == "damaged":
            self.done.discard(key)
        elif event == "upstream_failed":
            self.upstream[key] = line["cause"]
        elif event == "grow":
            self.stages += line["stages"]
            self.cached += _count(line.get("cached"))
            self.trials += _count(line.get("trials"))
        elif event == "end":
            self.ended = True


def _count(value: Any) -> int:
    return value if isinstance(value, int) else 0


def standing(folder: SweepFolder) -> Standing:
    """Return how the last run of a sweep, or of its tuning, stands."""
    now = Standing()
    for line in read(folder):
        if line["event"] == "start":
            now = Standing(
                start=line, stages=line["stages"], cached=line["cached"], trials=line["trials"]
            )
        else:
            now.take(line)
    return now

"""This run among the other drivers of a store: its heartbeat, its leases, what others hold.

    drivers/<run>.json     the heartbeat of a driver      drivers/<run>.stop   asks it to stop
    drivers/<run>.heir     who clears up after a driver that is dead
    leases/<key>           the driver that works on a stage, where a place lets exactly one make it

Where a place cannot promise that, the heartbeats alone tell what others hold, so that two drivers
may begin one stage within a beat or two: that is harmless, and costs its seconds. A thread beats
and looks around; what it finds waits in `news` and `notes` for the thread that has the schedule. No
trouble with the store ends a sweep here: it goes on as if it were alone.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from raysweep.errors import StoreError
from raysweep.store import Manifest, Store
from raysweep.store.heartbeat import (
    BEATS_UNTIL_DEAD,
    DRIVERS,
    Heartbeat,
    path_of,
    stop_path_of,
)
from raysweep.store.liveness import Drivers

T = TypeVar("T")
LEASES = "leases"
SLOWEST = BEATS_UNTIL_DEAD // 2  # beats between two attempts while the store fails
JOIN_SECONDS = 3.0


@dataclass(frozen=True, kw_only=True)
class News:
    """The end of other drivers' hold on stages.

    Attributes:
        stored: their manifests by key, where they are stored.
        free: keys of stages that are not stored, and that nobody holds any more.
    """

    stored: Mapping[str, Manifest]
    free: Collection[str]


class Leases:
    """The part of one run in the company of others: it claims stages, and learns of theirs."""

    def __init__(
        self,
        store: Store,
        run: str,
        tell: Callable[[int, tuple[str, ...]], Heartbeat],
        stop: Callable[[], bool],
        beat: float,
    ) -> None:
        """Prepare; nothing is written yet.

        Args:
            store: that the drivers share.
            run: id of this run.
            tell: makes the heartbeat from its count and the keys held; called in a thread.
            stop: stops the run, as somebody has asked; False if it cannot yet. Called in a thread.
            beat: seconds between two heartbeats.
        """
        self.run = run
        self._store = store
        self._tell = tell
        self._stop = stop
        self._seconds = beat
        self._drivers = Drivers()
        self._lock = threading.Lock()
        self._mine: set[str] = set()
        self._lasting: set[str] = set()  # what stays ours after `close`
        self._undropped: set[str] = set()
        self._aside: dict[str, bool] = {}  # whether a lease file tells that it is held
        self._held: frozenset[str] = frozenset()
        self._exclusive = False
        self._company = False
        self._told: set[str] = set()
        self._notes: deque[str] = deque()
        self._news: deque[News] = deque()
        self._count = 0
        self._looks = 0
        self._written = time.monotonic()
        self._doubtful = False
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._beating, name=f"driver {run}", daemon=True)

    # The life of a run

    def start(self) -> None:
        """Write the first heartbeat, look around, and beat in a thread from now on."""
        self.beat()
        self._thread.start()

    def close(self) -> None:
        """Give back the leases of all stages and say that the run has ended."""
        if self._closing.is_set():
            return
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(JOIN_SECONDS)
        self.release(self._mine - self._lasting)
        with contextlib.suppress(StoreError):
            self._write(ended=True)

    def leave(self) -> None:
        """Give back what was held until now, and remove the heartbeat: nothing is left to tell."""
        self.close()
        self.release(self._lasting)
        with contextlib.suppress(StoreError):
            self._store.delete(stop_path_of(self.run))
            self._store.delete(path_of(self.run))

    # Claims

    def claim(self, keys: Iterable[str]) -> set[str]:
        """Claim stages before they are handed out; return those that another driver holds.

        It keeps them until `release`. What became of those that it was refused comes with `news`.
        """
        refused = set()
        for key in keys:
            if key not in self._mine and (by_file := self._refused(key)) is not None:
                refused.add(key)
                with self._lock:
                    self._aside[key] = by_file
        return refused

    def hold(self, name: str) -> bool:
        """Claim what is no stage, until `leave`; return whether this run has it.

        What a driver that is gone has left is taken over at once.
        """
        if name in self._lasting:
            return True
        refused = self._refused(name)
        with contextlib.suppress(StoreError):
            if refused and (owner := self._owner(name)) and self._is_gone(owner):
                self._inherit(owner)
                refused = self._refused(name)
        if refused is None:
            self._lasting.add(name)
        return refused is None

    def _refused(self, name: str) -> bool | None:
        """Claim a name; None if it is ours now, else whether a lease file tells that it is not."""
        self._mine.add(name)
        made = None
        with contextlib.suppress(StoreError):
            made = self._store.create(_lease(name), self.run.encode())
        self._exclusive = self._exclusive or made is not None
        if made is False or (made is None and name in self._held):
            self._mine.discard(name)
            return made is False
        return None

    def release(self, keys: Iterable[str]) -> None:
        """Give back stages that are stored, or have failed for good; others are passed over."""
        mine = self._mine.intersection(keys)
        self._mine -= mine
        if self._exclusive:
            self._drop(mine)

    def stored_meanwhile(self, keys: Collection[str]) -> Mapping[str, Manifest]:
        """Return the manifests of stages, claimed just now, that another driver has stored.

        Where lease files decide, everybody is asked: a driver may have come and gone between two
        beats. Elsewhere that costs requests, and is done only in company.
        """
        if not keys or not (self._exclusive or self._company):
            return {}
        return self._store.manifests_now(list(keys))[0]

    def news(self) -> list[News]:
        """Return the news on stages that were refused, each once."""
        return _emptied(self._news)

    def notes(self) -> list[str]:
        """Return the remarks on other drivers, a line each, each once."""
        return _emptied(self._notes)

    def _drop(self, keys: Iterable[str]) -> None:
        """Remove lease files of ours; what cannot be removed now is tried again with every beat."""
        self._undropped |= set(keys)
        for key in self._undropped.copy():
            try:
                if key not in self._mine and (not self._in_doubt() or self._owner(key) == self.run):
                    self._store.delete(_lease(key))
            except StoreError:
                return
            self._undropped.discard(key)

    def _in_doubt(self) -> bool:
        """Return whether others may have taken this run for dead, and its leases over."""
        silence = time.monotonic() - self._written
        self._doubtful = self._doubtful or silence > self._seconds * SLOWEST
        return self._doubtful

    def _owner(self, key: str) -> str | None:
        raw = self._store.read(_lease(key))
        return None if raw is None else raw.decode()

    # The thread

    def _beating(self) -> None:
        wait = self._seconds
        while not self._closing.wait(wait):
            wait = self._seconds if self.beat() else min(2 * wait, SLOWEST * self._seconds)

    def beat(self) -> bool:
        """Write a heartbeat and look around, once; return whether everything went well."""
        whole = True
        for step in (self._write, self._look, self._look_after_refused):
            try:
                step()
            except Exception:  # noqa: BLE001  a heartbeat that fails ends no sweep
                whole = False
        return whole

    def _write(self, *, ended: bool = False) -> None:
        if self._closing.is_set() and not ended:
            return  # a beat that outlived the run must not bring its file back
        self._in_doubt()
        self._count += 1
        beat = self._tell(self._count, tuple(self._mine))
        beat = replace(beat, state="ended") if ended else beat
        self._store.write(path_of(self.run), beat.pack())
        self._written = time.monotonic()
        if self._undropped:
            self._drop(())

    def _look(self) -> None:
        """Look at the other drivers, clear up after dead ones, find a request to stop."""
        paths = self._store.list(DRIVERS)
        beats = {run: self._store.read(path_of(run)) for run in _runs(paths) if run != self.run}
        self._drivers.look({run: raw for run, raw in beats.items() if raw is not None})
        alive = self._drivers.alive
        self._held = frozenset(key for driver in alive.values() for key in driver.held)
        self._company = self._company or bool(alive)
        self._note()
        for run in self._drivers.dead:
            self._inherit(run)
        for path in paths:
            run, _, ending = path.removeprefix(f"{DRIVERS}/").rpartition(".")
            if ending != "json" and run not in beats and run != self.run:
                self._remove_stray(path)
        if stop_path_of(self.run) in paths and self._stop():
            self._store.delete(stop_path_of(self.run))

    def _note(self) -> None:
        for run, driver in self._drivers.known.items():
            ended = driver.heartbeat is not None and driver.heartbeat.state == "ended"
            if driver.dead and run in self._told:
                self._told.discard(run)
                if not ended:
                    self._notes.append(f"the driver of {driver.name} is gone; its leases end")
            elif driver.seen_alive and not (driver.dead or ended or run in self._told):
                self._told.add(run)
                self._notes.append(
                    f"another driver works on this storage: {driver.name}; its stages are waited "
                    f"for, not computed again"
                )

    def _look_after_refused(self) -> None:
        """Find out which of the refused stages nobody holds any more, and whether they are stored.

        A lease ends after its stage is stored, so it is looked at first.
        """
        self._looks += 1
        with self._lock:
            aside = dict(self._aside)
        if not aside:
            return
        leased = _leased(self._store) if any(aside.values()) else set()
        if self._looks % BEATS_UNTIL_DEAD == 0:
            self._end_orphans(leased.intersection(aside))
        free = {key for key, file in aside.items() if key not in (leased if file else self._held)}
        if free:
            stored = self._store.manifests_now(list(free))[0]
            with self._lock:
                for key in free:
                    del self._aside[key]
            self._news.append(News(stored=stored, free=free - stored.keys()))

    # Drivers that are gone

    def _end_orphans(self, keys: Iterable[str]) -> None:
        """End leases whose owner has no heartbeat: it has one from before its first claim.

        One of our own is a file that could not be removed, or was made though its write failed.
        """
        for key in keys:
            owner = self._owner(key)
            if owner == self.run and key not in self._mine:
                self._store.delete(_lease(key))
            elif owner and owner != self.run and self._is_gone(owner):
                self._inherit(owner)

    def _inherit(self, dead: str) -> None:
        """Remove what a dead driver has left. One heir does: a lease made anew is not removed."""
        heir = f"{DRIVERS}/{dead}.heir"
        made = self._store.create(heir, self.run.encode())
        if made is False:
            self._remove_stray(heir)
            return
        for key in _leased(self._store) if made else ():
            if self._owner(key) == dead:
                self._store.delete(_lease(key))
        for path in (stop_path_of(dead), path_of(dead), heir):
            self._store.delete(path)

    def _remove_stray(self, path: str) -> None:
        """Remove a file about a driver that is gone, unless it is of an heir who is at work."""
        heir = (self._store.read(path) or b"").decode() if path.endswith(".heir") else self.run
        if heir == self.run or self._is_gone(heir):
            self._store.delete(path)

    def _is_gone(self, run: str) -> bool:
        """Return whether another driver is dead, or has left nothing."""
        known = self._drivers.known.get(run)
        return known.dead if known else self._store.read(path_of(run)) is None


def _lease(key: str) -> str:
    return f"{LEASES}/{key}"


def _leased(store: Store) -> set[str]:
    """Return the keys of all leases."""
    return {path.rpartition("/")[2] for path in store.list(LEASES)}


def _runs(paths: Iterable[str]) -> list[str]:
    """Return the runs whose heartbeats are among paths."""
    names = (path.removeprefix(f"{DRIVERS}/") for path in paths)
    return [name.removesuffix(".json") for name in names if name.endswith(".json")]


def _emptied(found: deque[T]) -> list[T]:
    """Return the items that another thread has left, and remove them."""
    return [found.popleft() for _ in range(len(found))]

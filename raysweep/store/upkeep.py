"""The upkeep of a store: a survey of its files, a check of everything, and a removal.

Ages are told by the clock of the storage alone: the modification time of a file is compared with
that of a probe which was written just now.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from raysweep.errors import DamagedArtifact
from raysweep.store import heartbeat
from raysweep.store.files import Stamp, temporary
from raysweep.store.heartbeat import BEAT_SECONDS, BEATS_UNTIL_DEAD, Heartbeat
from raysweep.store.index import FOLDER
from raysweep.store.store import REQUESTS, Store

DAY = 86_400 * 10**9  # nanoseconds: how long a writer may take from an object to its manifest
_CHECKPOINT = re.compile(r"scratch/(.+)\.checkpoint")
_OBJECT = re.compile(r"objects/[^/]+/[^/]+/(.+)-[0-9a-f]{12}\.safetensors")


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A stored stage.

    Attributes:
        key: of the stage.
        size: of its manifest and its objects, in bytes.
        stored: when, in nanoseconds since 1970 by the storage's clock.
    """

    key: str
    size: int
    stored: int


@dataclass(frozen=True, kw_only=True)
class Survey:
    """The files of a store.

    Attributes:
        artifacts: key → artifact; one whose manifest is damaged counts with its manifest alone.
        damaged: the keys of artifacts whose manifests are damaged.
        files: path → stamp of everything else: objects, checkpoints, the index, unfinished files.
        named: the paths of the objects that a manifest names.
    """

    artifacts: Mapping[str, Artifact]
    damaged: frozenset[str]
    files: Mapping[str, Stamp]
    named: frozenset[str]

    def litter(self, now: int) -> dict[str, int]:
        """Return path → bytes of what killed writers have left, older than a day.

        These are unfinished files, objects that no manifest names, probes, and checkpoints of
        stages that are stored. Objects of a damaged manifest are none: what it named is not known.

        Args:
            now: of the storage's clock, in nanoseconds since 1970.
        """
        return {
            path: size
            for path, (size, modified) in self.files.items()
            if modified < now - DAY and self._is_litter(path)
        }

    def _is_litter(self, path: str) -> bool:
        name = path.rpartition("/")[2]
        if temporary(name) or path.startswith("scratch/.probe-"):
            return True
        if found := _CHECKPOINT.fullmatch(path):
            return found[1] in self.artifacts
        found = _OBJECT.fullmatch(path)
        return found is not None and path not in self.named and found[1] not in self.damaged


def survey(store: Store) -> Survey:
    """Return the files of a store; one listing of each folder, and the manifests."""
    keys = sorted(store.done())
    manifests, damaged = store.manifests(keys)
    objects, sizes = set[str](), dict[str, int]()
    for key in manifests:
        files = manifests[key].files
        objects.update(files)
        sizes[key] = sum(facts["size"] for facts in files.values())
    stamps = {key: store.listed(key) for key in keys}
    others = ("objects", "scratch", "sweeps", "manifests", heartbeat.DRIVERS, FOLDER)
    found = {path: stamp for folder in others for path, stamp in store.stamps(folder).items()}
    return Survey(
        artifacts={
            key: Artifact(key=key, size=size + sizes.get(key, 0), stored=stored)
            for key, (size, stored) in stamps.items()
        },
        damaged=frozenset(damaged),
        files=found,
        named=frozenset(objects),
    )


def verify(store: Store, keys: Iterable[str]) -> dict[str, str]:
    """Return key → what is wrong, for each artifact that is damaged where it is stored.

    Everything is read, nothing is taken from the cache of this host or from the index.

    Raises:
        StoreError: if the storage cannot be read.
    """

    def look(key: str) -> tuple[str, str]:
        try:
            store.verify(key)
        except DamagedArtifact as error:
            return key, str(error)
        return key, ""

    with ThreadPoolExecutor(REQUESTS) as pool:
        return {key: wrong for key, wrong in pool.map(look, keys) if wrong}


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The files that are to be removed: artifacts, oldest first, and litter as path → bytes."""

    artifacts: tuple[Artifact, ...]
    litter: Mapping[str, int]

    def remove(self, store: Store) -> None:
        """Remove it: of each artifact the manifest first.

        Raises:
            StoreError: if something cannot be removed; what is gone by then stays gone.
        """
        with ThreadPoolExecutor(REQUESTS) as pool:
            list(pool.map(store.discard, [artifact.key for artifact in self.artifacts]))
            list(pool.map(store.delete, self.litter))


def select(
    found: Survey,
    kept: Collection[str],
    now: int,
    *,
    among: Collection[str] | None = None,
    older_seconds: float | None = None,
    to_bytes: float | None = None,
) -> Selection:
    """Return the files that may go: litter always, artifacts if a condition is given.

    Args:
        found: what the store holds.
        kept: keys that are needed.
        now: of the storage's clock, in nanoseconds since 1970.
        among: keys that may go; none: all that are not kept.
        older_seconds: the least age of an artifact that goes.
        to_bytes: artifacts go, the oldest first, until all that are left are not larger.
    """
    litter = found.litter(now)
    if among is None and older_seconds is None and to_bytes is None:
        return Selection(artifacts=(), litter=litter)
    oldest = sorted(found.artifacts.values(), key=lambda one: (one.stored, one.key))
    chosen = [
        one
        for one in oldest
        if one.key not in kept
        and (among is None or one.key in among)
        and (older_seconds is None or one.stored < now - older_seconds * 1e9)
    ]
    if to_bytes is not None:
        left = sum(one.size for one in oldest)
        going = 0
        while going < len(chosen) and left > to_bytes:
            left -= chosen[going].size
            going += 1
        chosen = chosen[:going]
    return Selection(artifacts=tuple(chosen), litter=litter)


def living(
    store: Store, beat_seconds: float = BEAT_SECONDS, wait: Callable[[float], None] = time.sleep
) -> list[Heartbeat]:
    """Return the last heartbeats of the drivers that are alive: whose counts rise while we look.

    Without a heartbeat in the store it returns at once; a dead driver costs the time after which
    it is taken for dead.
    """
    first = _working(store)
    alive: dict[str, Heartbeat] = {}
    for _ in range(BEATS_UNTIL_DEAD if first else 0):
        wait(beat_seconds)
        now = _working(store)
        alive |= {r: b for r, b in now.items() if r not in first or first[r].count != b.count}
        if first.keys() <= alive.keys():
            break
    return list(alive.values())


def _working(store: Store) -> dict[str, Heartbeat]:
    beats = heartbeat.heartbeats(store)
    return {run: beat for run, beat in beats.items() if beat.state != "ended"}

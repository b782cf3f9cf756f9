"""Judges a sweep that was disturbed by the same sweep undisturbed; a tool for tests."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from raysweep.run import __path__ as run_folder
from raysweep.store import Manifest, Store
from raysweep.store.events import Dispatch, Done, unpack
from tests.chaos_faults import DriverReplaced, Fault
from tests.chaos_world import World
from tests.test_execute import values

LEASES = Path(run_folder[0], "leases.py").exists()


@dataclass(frozen=True, kw_only=True)
class Struck:
    """A fault that has struck, and when: seconds since 1970."""

    fault: Fault
    said: str
    began: float
    ended: float


@dataclass(kw_only=True)
class Waste:
    """The work of one kind of fault that was done more than once.

    Attributes:
        struck: how many faults of the kind there were.
        stages: how many stages were begun once more because of them.
        seconds: that those take undisturbed.
        longest: the most of one fault.
    """

    struck: int = 0
    stages: int = 0
    seconds: float = 0.0
    longest: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What has become of a sweep.

    Attributes:
        faults: what should not be; empty if all is well.
        facts: lines on what is as it may be.
        waste: by kind of fault.
    """

    faults: list[str]
    facts: list[str]
    waste: dict[str, Waste] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """A stage that was handed out: when, and after which others of its batch."""

    t: float
    batch: tuple[str, ...]


def judge(world: World, struck: list[Struck]) -> Verdict:
    """Return what is wrong with a sweep that has met faults and come to its end."""
    calm, disturbed = Store(str(world.calm)), Store(str(world.whole))
    ours, theirs = (manifests(one) for one in (disturbed, calm))
    faults = [fault for launch in world.launches for fault in launch.faults()]
    faults += compared_records(world)
    faults += compared_stages(ours, theirs)
    facts = []
    damaged = {key for one in struck for key in one.fault.hit}
    unread, lost = broken_objects(world.whole, ours, damaged)
    faults += [f"{path} is damaged, and by none of the faults" for path in lost]
    facts.append(f"{len(unread)} damaged artifacts that nobody reads again")
    attempts, done = handed_out(world.whole)
    again = Again(attempts, done, struck, {k: m.info["seconds"] for k, m in theirs.items()})
    faults += again.faults
    litter = list(litter_of(world.whole, ours))
    explained = again.came_to_nothing | damaged
    strange = [path for path in litter if not any(key in path for key in explained | {".tmp"})]
    faults += [f"{path} is litter that no fault explains" for path in strange]
    facts.append(f"{len(litter)} files of litter")
    facts += again.facts
    return Verdict(faults=faults, facts=facts, waste=again.waste)


def manifests(store: Store) -> dict[str, Manifest]:
    return store.manifests(sorted(store.done()))[0]


def compared_records(world: World) -> list[str]:
    ours, theirs = (
        pd.read_parquet(place / "sweeps" / "chaos" / "records.parquet")
        for place in (world.whole, world.calm)
    )
    try:
        pd.testing.assert_frame_equal(values(ours), values(theirs), check_exact=True)
    except AssertionError as error:
        return [f"the records differ: {error}"]
    return []


def compared_stages(ours: dict[str, Manifest], theirs: dict[str, Manifest]) -> list[str]:
    faults = [f"{key} is lost" for key in sorted(theirs.keys() - ours.keys())]
    faults += [f"{key} is of no trial" for key in sorted(ours.keys() - theirs.keys())]
    return faults + [
        f"{key} has another content"
        for key in sorted(ours.keys() & theirs.keys())
        if ours[key].content != theirs[key].content
    ]


def broken_objects(
    root: Path, stored: dict[str, Manifest], damaged: set[str]
) -> tuple[list[str], list[str]]:
    """Return the paths of objects that are not as their manifests say: damaged by us, and not."""
    by_us, strange = [], []
    for key, manifest in stored.items():
        for path, facts in manifest.files.items():
            file = root / path
            data = file.read_bytes() if file.exists() else b""
            if hashlib.sha256(data).hexdigest() != facts["sha256"]:
                (by_us if key in damaged else strange).append(path)
    return by_us, strange


def litter_of(root: Path, stored: dict[str, Manifest]) -> Iterator[str]:
    """Yield the paths of files that no manifest names, and that are no records."""
    named = {path for manifest in stored.values() for path in manifest.files}
    for folder in ("objects", "manifests", "scratch"):
        for file in sorted((root / folder).rglob("*")):
            path = str(file.relative_to(root))
            sound = folder == "manifests" and file.stem in stored
            if file.is_file() and path not in named and not sound:
                yield path


def handed_out(root: Path) -> tuple[dict[str, list[Attempt]], dict[str, list[float]]]:
    """Return by stage when it was handed out, and when it was done, over all launches."""
    attempts, done = defaultdict[str, list[Attempt]](list), defaultdict[str, list[float]](list)
    for file in sorted((root / "sweeps" / "chaos" / "ledger").glob("*.jsonl")):
        for line in file.read_bytes().splitlines():
            match event := unpack(line):
                case Dispatch():
                    for key in event.keys:
                        attempts[key].append(Attempt(t=event.t, batch=event.keys))
                case Done():
                    done[event.key].append(event.t)
    for times in attempts.values():
        times.sort(key=lambda attempt: attempt.t)
    return attempts, done


class Again:
    """The stages that were begun more than once, and why."""

    def __init__(
        self,
        attempts: dict[str, list[Attempt]],
        done: dict[str, list[float]],
        struck: list[Struck],
        seconds: dict[str, float],
    ) -> None:
        self.faults: list[str] = []
        self.came_to_nothing: set[str] = set()
        self._struck = struck
        self._seconds = seconds
        self._by_fault = defaultdict[int, list[str]](list)
        beside = 0
        for key, times in attempts.items():
            for one, other in zip(times, times[1:], strict=False):
                finished = [t for t in done.get(key, []) if one.t <= t <= other.t]
                number = self._cause(one.t, other.t, key if finished else "")
                if not finished:
                    self.came_to_nothing.add(key)
                if finished and number is None and self._two_drivers(one.t, other.t):
                    beside += 1
                elif number is None:
                    what = "done" if finished else "begun"
                    self.faults.append(f"{key} is {what} twice, and no fault explains it")
                elif finished or self._begun(key, one, attempts, done):
                    self._by_fault[number].append(key)
        self.facts = []
        if beside:
            line = f"{beside} stages are done twice while two drivers worked"
            (self.faults if LEASES else self.facts).append(line)
        self.waste = self._table()

    def _cause(self, begin: float, end: float, damaged: str) -> int | None:
        """Return the number of the first fault between two attempts at a stage."""
        for number, one in enumerate(self._struck):
            if one.ended >= begin and one.began <= end:
                if not damaged or damaged in one.fault.hit:
                    return number
        return None

    def _two_drivers(self, begin: float, end: float) -> bool:
        return any(
            isinstance(one.fault, DriverReplaced) and one.ended >= begin and one.began <= end
            for one in self._struck
        )

    def _begun(
        self,
        key: str,
        attempt: Attempt,
        attempts: dict[str, list[Attempt]],
        done: dict[str, list[float]],
    ) -> bool:
        """Return whether a stage was under way when its batch was lost: all before it are done."""
        before = attempt.batch[: attempt.batch.index(key)]
        return not any(
            any(other.t > attempt.t for other in attempts[earlier])
            and not any(t > attempt.t for t in done.get(earlier, [])[:1])
            for earlier in before
        )

    def _table(self) -> dict[str, Waste]:
        table = defaultdict[str, Waste](Waste)
        for number, one in enumerate(self._struck):
            keys = self._by_fault[number]
            row, lost = table[one.fault.NAME], sum(self._seconds.get(key, 0) for key in keys)
            row.struck += 1
            row.stages += len(keys)
            row.seconds += lost
            row.longest = max(row.longest, lost)
        return dict(table)

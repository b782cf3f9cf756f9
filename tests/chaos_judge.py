"""Judges a sweep that was disturbed by the same sweep undisturbed; a tool for tests."""

from __future__ import annotations

import hashlib
import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from raysweep.run import __path__ as run_folder
from raysweep.store import Manifest, Store
from raysweep.store.events import Dispatch, Done, Failed, Retry, unpack
from tests.chaos_faults import DriverReplaced, Fault
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


def judge(calm: Path, root: Path, struck: Sequence[Struck]) -> Verdict:
    """Return what is wrong with a sweep that has met faults and come to its end.

    Args:
        calm: the storage of the same sweep undisturbed.
        root: the storage of the disturbed one.
        struck: the faults, in order.
    """
    ours, theirs = (manifests(Store(str(place))) for place in (root, calm))
    faults = [*compared_records(root, calm), *compared_stages(ours, theirs)]
    facts = []
    damaged = {key for one in struck for key in one.fault.hit}
    unread, lost = broken_objects(root, ours, damaged)
    faults += [f"{path} is damaged, and by none of the faults" for path in lost]
    facts.append(f"{len(unread)} damaged artifacts that nobody reads again")
    again = Again(History(root), struck, {key: m.info["seconds"] for key, m in theirs.items()})
    faults += again.faults
    litter = list(litter_of(root, ours))
    explained = again.came_to_nothing | damaged
    strange = [path for path in litter if not any(key in path for key in explained)]
    faults += [f"{path} is litter that no fault explains" for path in strange]
    facts.append(f"{len(litter)} files of litter")
    facts += again.facts
    return Verdict(faults=faults, facts=facts, waste=again.waste)


def manifests(store: Store) -> dict[str, Manifest]:
    return store.manifests(sorted(store.done()))[0]


def compared_records(root: Path, calm: Path) -> list[str]:
    ours, theirs = (
        pd.read_parquet(place / "sweeps" / "chaos" / "records.parquet") for place in (root, calm)
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


class History:
    """The stages of all launches: when each was handed out, done, and tried in vain."""

    def __init__(self, root: Path) -> None:
        self.attempts = defaultdict[str, list[Attempt]](list)
        self.done = defaultdict[str, list[float]](list)
        self.tried = defaultdict[str, list[float]](list)
        for file in sorted((root / "sweeps" / "chaos" / "ledger").glob("*.jsonl")):
            for event in map(unpack, file.read_bytes().splitlines()):
                match event:
                    case Dispatch():
                        for key in event.keys:
                            self.attempts[key].append(Attempt(t=event.t, batch=event.keys))
                    case Done():
                        self.done[event.key].append(event.t)
                    case Retry() | Failed():
                        self.tried[event.key].append(event.t)
        for times in self.attempts.values():
            times.sort(key=lambda attempt: attempt.t)

    def again(self) -> Iterator[tuple[str, Attempt, float]]:
        """Yield each attempt at a stage that was followed by another one, and when it was."""
        for key, times in self.attempts.items():
            for one, other in itertools.pairwise(times):
                yield key, one, other.t

    def finished(self, key: str, begin: float, end: float) -> bool:
        """Return whether a stage was done in a span of time."""
        return any(begin <= t <= end for t in self.done[key])

    def begun(self, key: str, attempt: Attempt, end: float) -> bool:
        """Return whether somebody worked on a stage: nothing before it in its batch was lost."""
        if any(attempt.t <= t <= end for t in self.tried[key]):
            return True
        for earlier in attempt.batch[: attempt.batch.index(key)]:
            later = [other.t for other in self.attempts[earlier] if other.t > attempt.t]
            if later and not self.finished(earlier, attempt.t, later[0]):
                return False
        return True


class Again:
    """The stages that were begun more than once, and why."""

    def __init__(
        self, history: History, struck: Sequence[Struck], seconds: dict[str, float]
    ) -> None:
        self.faults: list[str] = []
        self.facts: list[str] = []
        self.came_to_nothing: set[str] = set()
        self._struck = struck
        lost = defaultdict[int, float](float)
        stages = defaultdict[int, int](int)
        beside = 0
        for key, one, end in history.again():
            finished = history.finished(key, one.t, end)
            number = self._cause(one.t, end, key) if finished else self._blow(one.t, end)
            if not finished:
                self.came_to_nothing.add(key)
            if number is not None and (finished or history.begun(key, one, end)):
                stages[number] += 1
                lost[number] += seconds.get(key, 0)
            elif number is None and finished and self._two_drivers(one.t, end):
                beside += 1
            elif number is None:
                what = "done" if finished else "begun"
                self.faults.append(f"{key} is {what} twice, and no fault explains it")
        if beside:
            line = f"{beside} stages are done twice while two drivers worked"
            (self.faults if LEASES else self.facts).append(line)
        self.waste: dict[str, Waste] = defaultdict(Waste)
        for number, fault in enumerate(struck):
            row = self.waste[fault.fault.NAME]
            row.struck += 1
            row.stages += stages[number]
            row.seconds += lost[number]
            row.longest = max(row.longest, lost[number])

    def _cause(self, begin: float, end: float, damaged: str) -> int | None:
        """Return the number of the first fault that damaged a stage between two attempts at it."""
        for number, one in enumerate(self._struck):
            if one.ended >= begin and one.began <= end and damaged in one.fault.hit:
                return number
        return None

    def _blow(self, begin: float, end: float) -> int | None:
        """Return the number of the first fault that an attempt which came to nothing has felt."""
        for number, one in enumerate(self._struck):
            if one.ended + one.fault.FELT >= begin and one.began <= end:
                return number
        return None

    def _two_drivers(self, begin: float, end: float) -> bool:
        return any(
            isinstance(one.fault, DriverReplaced) and one.ended >= begin and one.began <= end
            for one in self._struck
        )

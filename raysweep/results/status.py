"""The status of one sweep, and of all sweeps in a store, as values; reads and changes nothing else.

All sweeps together cost two listings and two requests a sweep: its description, and its records; or
the ledger of the last run in their place, where the launch has not concluded. While drivers are at
work it takes as long as a sign of life of each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

from raysweep.results import history
from raysweep.results.description import described
from raysweep.results.drivers import Driver, drivers
from raysweep.results.table import read_table
from raysweep.store import Store, ledger
from raysweep.store.heartbeat import Heartbeat
from raysweep.store.store import REQUESTS
from raysweep.store.sweepfolder import SweepFolder

RunState = Literal["running", "stopping", "dead", "ended"]
SweepState = Literal["complete", "incomplete", RunState, "only tuned", "damaged"]


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A stage that failed: its key, the error, and where the log with the traceback is."""

    stage: str
    error: str
    log: str


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """The status of the last launch of a sweep, or of its last tuning run.

    Attributes:
        state: dead if it has no end, and no driver gives a sign of life.
        drivers: those that have not ended, the newest last; one that is dead may be among them.
        started: when, in seconds since 1970; none if nothing was handed out yet.
        last: when its ledger was last written, in seconds since 1970; 0 if it never was.
        trials, stages: numbers of them in the plan so far.
        stored: how many of the stages are stored.
        out: how many were handed out and have not come back.
        waiting: how many cannot run, since another one failed.
        failures: the stages that failed.
        damaged: keys of stored stages that cannot be read, hence count as missing.
    """

    state: RunState
    drivers: tuple[Driver, ...]
    started: float | None
    last: float
    trials: int
    stages: int
    stored: int
    out: int
    waiting: int
    failures: tuple[Failure, ...]
    damaged: tuple[str, ...]

    @property
    def finished(self) -> bool:
        """Whether the run has ended and everything is stored."""
        return self.state == "ended" and self.stored >= self.stages


@dataclass(frozen=True, kw_only=True)
class SweepStatus:
    """The status of a sweep.

    Attributes:
        name: of the sweep.
        launch: of its last launch; none if it was only tuned.
        tuning: of its last tuning run; none if it was never tuned.
        versions: of its records, the newest last.
        notes: files of its records that are damaged, a line each.
    """

    name: str
    launch: RunStatus | None
    tuning: RunStatus | None
    versions: tuple[history.Version, ...]
    notes: tuple[str, ...]


def status(
    store: Store, name: str, waiting: Callable[[Heartbeat], None] = lambda beat: None
) -> SweepStatus:
    """Return the status of a sweep, after a sign of life of each of its drivers.

    Args:
        store: where it is.
        name: of the sweep.
        waiting: called for each driver of which no sign has come yet.

    Raises:
        StoreError: if there is no sweep of that name; the message lists all sweeps.
    """
    place = history.folder_of(store, name)
    folder = SweepFolder(store, name)
    tuned = bool(store.list(folder.tuning.ledger))
    found = drivers(store, name, waiting)
    launching = [driver for driver in found if not driver.tuning]
    tuning = [driver for driver in found if driver.tuning]
    return SweepStatus(
        name=name,
        launch=_run_status(folder, launching) if place == name else None,
        tuning=_run_status(folder.tuning, tuning) if tuned else None,
        versions=tuple(history.versions(store, name)),
        notes=tuple(history.damage(store, place)),
    )


def _run_state(ended: bool, found: Sequence[Driver]) -> RunState:
    alive = [driver.state for driver in found if driver.alive]
    return alive[-1] if alive else "ended" if ended else "dead"


def _run_status(folder: SweepFolder, found: Sequence[Driver]) -> RunStatus:
    now = ledger.standing(folder)
    stages = read_table(folder.store, folder.name, "stages")
    known = now.done if stages is None else now.done | set(stages["key"].map(str))
    folder.store.done()  # so that manifests come from the index
    _, damaged = folder.store.manifests(sorted(known))
    return RunStatus(
        state=_run_state(now.ended, found),
        drivers=tuple(found),
        started=now.start.t if now.start else None, last=now.last,
        trials=now.trials, stages=now.stages,
        stored=now.cached + len(now.done) - len(damaged),
        out=len(now.out), waiting=len(now.upstream),
        failures=tuple(
            Failure(stage=key, error=error, log=folder.store.where(folder.log(key)))
            for key, error in now.failed.items()
        ),
        damaged=tuple(damaged),
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SweepSummary:
    """One sweep among all sweeps of a store.

    Attributes:
        name: of the sweep.
        state: complete if every trial of a launch that has concluded succeeded; damaged if its
            records or their description cannot be read.
        trials, ok, failed: numbers of trials; none where that is not known: while a launch runs.
            Trials that wait for a failed stage count as failed.
        launched: when, in seconds since 1970; of a sweep that was only tuned, when that began.
        versions: how many versions of its records there are; 0 if it was only tuned.
        tuning: `tuned` if it has left its table; none if it was never tuned.
    """

    name: str
    state: SweepState
    trials: int | None
    ok: int | None
    failed: int | None
    launched: float | None
    versions: int
    tuning: Literal["tuned", "not concluded"] | None


def all_sweeps(store: Store) -> list[SweepSummary]:
    """Return a summary of every sweep in a store, in the order of their names."""
    files: dict[str, list[str]] = {}
    for path in store.list("sweeps"):
        _, name, *rest = path.split("/")
        if rest:
            files.setdefault(name, []).append(path)
    at_work = drivers(store)
    with ThreadPoolExecutor(REQUESTS) as pool:
        summaries = pool.map(
            lambda one: _summary(store, one[0], one[1], at_work), sorted(files.items())
        )
        return list(summaries)


def _summary(
    store: Store, name: str, paths: Sequence[str], at_work: Sequence[Driver]
) -> SweepSummary:
    folder = SweepFolder(store, name)
    there = set(paths)
    earlier = {p.split("/")[3] for p in paths if p.startswith(f"{folder.path('versions')}/")}
    begun = any(path.startswith(f"{folder.tuning.path()}/") for path in paths)
    launched = not there.isdisjoint((folder.description, folder.records))
    about = described(store, name if launched else folder.tuning.name)
    trials = ok = failed = None
    state: SweepState = "only tuned"
    if launched and about.concluded is False:
        state = _run_state(False, [one for one in at_work if one.beat.folder == folder.name])
        ledgers = [path for path in paths if path.startswith(f"{folder.ledger}/")]
        trials = ledger.standing(folder, ledgers).trials or None
    elif launched:
        rows = read_table(store, name, "records")
        state = "damaged"
        if rows is not None:
            counts = rows["status"].value_counts()
            trials, ok = len(rows), int(counts.get("ok", 0))
            failed = int(counts.get("failed", 0) + counts.get("upstream_failed", 0))
            state = "complete" if ok == trials else "incomplete"
    return SweepSummary(
        name=name, state=state, trials=trials, ok=ok, failed=failed, launched=about.created_at,
        versions=len(earlier) + launched,
        tuning="tuned" if folder.tuned in there else "not concluded" if begun else None,
    )  # fmt: skip

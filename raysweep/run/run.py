"""One run of a sweep, whatever executes it: schedule, ledger, provenance, and the end of it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

from raysweep.errors import StoreError
from raysweep.methods.recipe import Recipe
from raysweep.plan.costs import Costs, record
from raysweep.plan.planner import Planner
from raysweep.provenance import git_commit, versions
from raysweep.results import history
from raysweep.results.description import Description, described, write_description
from raysweep.run.force import forcing
from raysweep.run.schedule import Schedule
from raysweep.stages.stage import Result, Stage
from raysweep.store import Manifest, Store
from raysweep.store.events import Dispatch, Done, End, Event, Grow, Note, Start
from raysweep.store.heartbeat import RunningStage
from raysweep.store.ledger import Ledger
from raysweep.store.sweepfolder import SweepFolder
from raysweep.sweep.spec import Sweep, check_layers, to_plain


def slots_of(cpus: float, gpus: float, sweep: Sweep, max_concurrent: int | None) -> dict[str, int]:
    """Return the number of stages of each class that fit at once, from 1 to `max_concurrent`."""
    slots = {}
    for name, size in (("cpu", sweep.resources.cpu), ("gpu", sweep.resources.gpu)):
        fit = cpus / size.cpu if size.cpu else cpus
        if size.gpu:
            fit = min(fit, gpus / size.gpu)
        slots[name] = max(1, min(int(fit), max_concurrent or int(fit) or 1))
    return slots


class TrialSource(Protocol):
    """Gives a run more trials while it runs; the searches of a tuning run are one."""

    @property
    def exhausted(self) -> bool:
        """Whether no more trials will come."""

    def more(self, slots: int) -> bool:
        """Give the planner more trials; False if there are none now."""

    def planned(self, schedule: Schedule) -> Sequence[Event]:
        """Look at trials that were taken in, and may be stored already; return the events."""

    def settled(self, keys: Iterable[str], schedule: Schedule) -> Sequence[Event]:
        """Take in that stages have ended; return the events."""


class Run:
    """A sweep under way: hands stages to an executor and takes in their results."""

    def __init__(
        self,
        sweep: Sweep,
        store: Store,
        text: str,
        watch: Callable[[Run], None] = lambda run: None,
        planner: Planner | None = None,
        source: TrialSource | None = None,
        folder: SweepFolder | None = None,
        force: Sequence[str] = (),
    ) -> None:
        """Plan against the store and write the description of the sweep.

        Args:
            sweep: what to run.
            store: where artifacts and records are.
            text: the sweep file as written.
            watch: called whenever the state has changed, for progress.
            planner: makes the stages; by default those of the sweep.
            source: gives the planner more trials whenever slots would stay empty.
            folder: of ledger, logs and description, if it is not the sweep's own.
            force: stage kinds and methods whose stages are done again although they are stored.

        `notes` holds what is to be said to the user, a line each; `before` describes the records
        that were there; `running` returns what workers do now, and is set by what executes the run.
        """
        self.sweep = sweep
        self.store = store
        self.watch = watch
        self.source = source
        self.started = time.time()
        self.planner = planner or Planner(sweep)
        check_layers(sweep)
        forced = forcing(force, sweep)
        store.check()
        self.folder = folder or SweepFolder(store, sweep.name)
        self.ledger = Ledger(self.folder)
        self.damaged: list[str] = []
        self.notes: list[str] = []
        self.provenance = {"run": self.ledger.run}
        self.costs = Costs(self.planner, store)
        self.schedule = Schedule(
            self.planner,
            store.done(),
            lambda keys: store.manifests(keys)[0],
            force=forced,
            expected=self.costs,
            discard=self._discard,
            log=self.ledger.write,
        )
        self.cached = len(self.schedule.done)
        self._begun: set[str] = set()
        self._spent: dict[str, list[tuple[float, float]]] = {}
        self.running: Callable[[], Sequence[RunningStage]] = tuple
        self.before = described(store, self.folder.name)
        self.notes += [] if folder else history.keep_earlier(store, sweep)
        if self.damaged:
            self.notes.append(f"{len(self.damaged)} stored stages are damaged and run again")
        self._describe(text)
        self.watch(self)

    def _discard(self, key: str) -> None:
        self.damaged.append(key)
        self.store.discard(key)

    def _describe(self, text: str) -> None:
        description = Description(
            name=self.sweep.name,
            question=self.sweep.question,
            text=text,
            sweep=to_plain(self.sweep),
            created_at=self.started,
            storage=self.store.where(),
            versions=versions(),
            git_commit=git_commit(),
            precision=self.planner.resolved(Recipe()).precision,
            concluded=False,
        )
        write_description(self.store, self.folder.name, description)
        trials, stages = len(self.planner.trials), len(self.schedule.wanted)
        self.ledger.write(Start(trials=trials, stages=stages, cached=self.cached))
        self.ledger.sync()

    def take(self, slots: Mapping[str, int]) -> list[Stage]:
        """Return the next batch, written down durably before anybody works on it."""
        self._replenish(slots)
        batch = self.schedule.take(slots)
        if batch:
            keys = tuple(stage.key for stage in batch)
            self._begin_anew(keys)
            self.ledger.write(Dispatch(keys=keys, ready=self.schedule.ready))
            self.ledger.sync()
        return batch

    def _begin_anew(self, keys: Iterable[str]) -> None:
        """Remove what a forced stage would go on from, before its first attempt."""
        for key in self.schedule.stored.forced.intersection(keys) - self._begun:
            self._begun.add(key)
            self.store.drop_checkpoint(key)

    def _replenish(self, slots: Mapping[str, int]) -> None:
        """Ask the source for trials until every slot has a stage that is ready."""
        if self.source is None or self.schedule.stopping:
            return
        self._extend()
        while self.schedule.ready < sum(slots.values()) and self.source.more(max(slots.values())):
            self._extend()

    def _extend(self) -> None:
        """Add the new trials. Trials that are stored already may make the source give more."""
        assert self.source is not None
        while True:
            stored, trials = len(self.schedule.done), self.schedule.routed
            if grown := self.schedule.extend():
                cached, more = len(self.schedule.done) - stored, self.schedule.routed - trials
                self.ledger.write(Grow(key="", stages=grown, cached=cached, trials=more))
            self._remember(self.source.planned(self.schedule))
            if not self.schedule.has_new_trials:
                return

    def _remember(self, events: Iterable[Event]) -> None:
        for event in events:
            self.ledger.write(event)

    def finished(self, results: Iterable[Result]) -> None:
        """Take in results, keep the traceback of each failure, tell the watcher."""
        for result in results:
            stage = self.planner.stages[result.key]
            if result.status == "done":
                took = (result.seconds, self.costs.work(stage))
                self._spent.setdefault(self.costs.name(stage), []).append(took)
                seconds = round(result.seconds, 4)
                self.ledger.write(
                    Done(key=result.key, seconds=seconds, host=result.host, pid=result.pid)
                )
            elif result.trace:
                with contextlib.suppress(StoreError):  # the ledger has the error
                    self.store.write(self.folder.log(result.key), result.trace.encode())
            self.schedule.finished([result])
            self._settled([result.key])
        self.watch(self)

    def lost(self, keys: Iterable[str], reason: str) -> None:
        """Take in the death of a process; the stages that it had stored count as done."""
        gone = list(keys)
        stored = self._made_here(gone)
        for key, manifest in stored.items():
            seconds, host = manifest.info.get("seconds", 0.0), manifest.info.get("host", "")
            self.ledger.write(Done(key=key, seconds=seconds, host=host, pid=0))
        self.schedule.lost(gone, stored, reason)
        self._settled(gone)
        self.watch(self)

    def _made_here(self, keys: Iterable[str]) -> dict[str, Manifest]:
        """Return the manifests of stages that are stored, but not of those that are to be replaced.

        A stage that is done again is still stored as it was, until this run has stored it.
        """
        stored, _ = self.store.manifests(keys)
        before = self.schedule.stored.forced | self.schedule.stored.replaced
        mine = self.ledger.run
        return {k: m for k, m in stored.items() if k not in before or m.info.get("run") == mine}

    def returned(self, keys: Iterable[str]) -> None:
        """Take back stages that no process has begun; nothing counts against them."""
        self.schedule.returned(keys)
        self.watch(self)

    def note(self, text: str) -> None:
        """Keep a remark for the user beside the results, and tell the watcher."""
        self.notes.append(text)
        self.ledger.write(Note(text=text))
        self.watch(self)

    def _settled(self, keys: Iterable[str]) -> None:
        if self.source is not None:
            self._remember(self.source.settled(keys, self.schedule))

    def close(self) -> None:
        """Write down how long things took, for the next plan's estimate."""
        self.ledger.write(End(complete=self.complete))
        self.ledger.close()
        record(self.store, self._spent)

    @property
    def over(self) -> bool:
        """Whether no stage can be handed out any more."""
        exhausted = self.source is None or self.schedule.stopping or self.source.exhausted
        return exhausted and self.schedule.finished_all

    @property
    def complete(self) -> bool:
        """Whether every stage that can be run has been run."""
        return self.over and not self.schedule.stopping

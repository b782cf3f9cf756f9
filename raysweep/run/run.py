"""One run of a sweep, whatever executes it: schedule, ledger, provenance, and the end of it."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Self

from raysweep.methods.recipe import Recipe
from raysweep.plan.costs import Costs, record
from raysweep.plan.fits import check_fits
from raysweep.plan.planner import Planner
from raysweep.plan.race import RacingPlanner, planner_of
from raysweep.results import history
from raysweep.results.description import described, launched_now, write_description
from raysweep.run import interruption
from raysweep.run.force import forcing
from raysweep.run.leases import Leases
from raysweep.run.limits import Limits, limits_of
from raysweep.run.pace import Pace
from raysweep.run.pauses import Pauses
from raysweep.run.racing import Racing
from raysweep.run.schedule import Schedule
from raysweep.run.source import TrialSource
from raysweep.stages.stage import Result, Stage
from raysweep.store import Manifest, Store, heartbeat
from raysweep.store.events import Dispatch, Done, End, Event, Grow, Note, Start
from raysweep.store.heartbeat import Heartbeat, RunningStage
from raysweep.store.ledger import Ledger
from raysweep.store.liveness import machine
from raysweep.store.sweepfolder import SweepFolder
from raysweep.sweep.spec import Sweep, check_layers


class Run:
    """A sweep under way: hands stages to an executor and takes in their results.

    Among other drivers of its store it claims what it hands out, and waits for what they hold. As a
    context it removes, at the end, what told other drivers of it.
    """

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
        self.planner = planner or planner_of(sweep)
        if isinstance(self.planner, RacingPlanner):
            self.source = Racing(self.planner, store)
        check_layers(sweep)
        forced = forcing(force, sweep)
        limits_of(sweep)
        store.check()
        self.folder = folder or SweepFolder(store, sweep.name)
        self.ledger = Ledger(self.folder)
        self.damaged: list[str] = []
        self.notes: list[str] = []
        self.provenance = {"run": self.ledger.run}
        self.running: Callable[[], Sequence[RunningStage]] = tuple
        self._begun: set[str] = set()
        self._signalled = interruption.taken_here()
        self._planned = False
        self._pauses = Pauses()
        beat = heartbeat.BEAT_SECONDS
        self.leases = Leases(store, self.ledger.run, self._heartbeat, self._stop, beat)
        try:
            self.leases.start()
            self._plan(forced, text, keep=folder is None)
        except BaseException:
            self.leases.leave()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *ended: object) -> None:
        self.leases.leave()

    def _plan(self, forced: Callable[[Stage], bool], text: str, *, keep: bool) -> None:
        """Plan against the store, while other drivers know of this run already."""
        store = self.store
        self.costs = Costs(self.planner, store)
        self.limits = Limits(self.sweep, self.costs, store)
        self.schedule = Schedule(
            self.planner,
            store.done(),
            lambda keys: store.manifests(keys)[0],
            force=forced,
            expected=self.costs,
            batched=lambda stage: self.pace.seconds(stage),
            discard=self._discard,
            log=self._log,
        )
        if not self.over:  # a launch that has nothing to run needs none of it
            check_fits(self.planner)
        self.pace = Pace(self.schedule, self.costs, lambda: self.running())
        self._planned = True
        if isinstance(self.source, Racing):
            self.source.take_in_stored(self.schedule)
        self.cached = len(self.schedule.done)
        self.before = described(store, self.folder.name)
        self.notes += history.keep_earlier(store, self.sweep) if keep else []
        if self.damaged:
            self.notes.append(f"{len(self.damaged)} stored stages are damaged and run again")
        self._describe(text)
        self._take_news()
        self.watch(self)

    def _discard(self, key: str) -> None:
        self.damaged.append(key)
        self.store.discard(key)

    def _describe(self, text: str) -> None:
        description = launched_now(
            self.sweep, text, self.store, self.planner.resolved(Recipe()).precision, self.started
        )
        write_description(self.store, self.folder.name, description)
        trials, stages = len(self.planner.trials), len(self.schedule.wanted)
        self.ledger.write(Start(trials=trials, stages=stages, cached=self.cached))
        self.ledger.sync()

    def take(self, slots: Mapping[str, int]) -> list[Stage]:
        """Return the next batch, claimed, and written down before anybody works on it."""
        self._take_news()
        self.schedule.came_back(self._pauses.over())
        self._replenish(slots)
        while batch := self.schedule.take(slots):
            if claimed := self._claimed(batch):
                keys = tuple(stage.key for stage in claimed)
                self._begin_anew(keys)
                self.ledger.write(Dispatch(keys=keys, ready=self.schedule.ready))
                self.ledger.sync()
                return claimed
        return []

    # Other drivers

    def _claimed(self, batch: Sequence[Stage]) -> list[Stage]:
        """Return the stages that are ours to do: no other driver holds them, or has stored them."""
        keys = {stage.key for stage in batch}
        refused = self.leases.claim(keys)
        self.schedule.set_aside(refused)
        stored = self._take_in(self.leases.stored_meanwhile(keys - refused))
        self.leases.release(stored)
        if refused:
            self.watch(self)
        return [stage for stage in batch if stage.key not in refused | stored]

    def _take_in(self, found: Mapping[str, Manifest]) -> set[str]:
        """Take in what another driver has stored; return the keys of the results that count."""
        counting = self.schedule.stored.counting(found) if found else set()
        if counting:
            self.schedule.stored_elsewhere(counting)
            self._settled(counting)
            self.watch(self)
        return counting

    def _take_news(self) -> None:
        """Take in what the heartbeat's thread has found."""
        for text in self.leases.notes():
            self.note(text)
        for news in self.leases.news():
            counting = self._take_in(news.stored)
            self.schedule.came_back({*news.free, *news.stored} - counting)

    def _heartbeat(self, count: int, held: tuple[str, ...]) -> Heartbeat:
        """Return the heartbeat of now; called in a thread."""
        stopping = self._planned and self.schedule.stopping
        return Heartbeat(
            run=self.ledger.run,
            folder=self.folder.name,
            host=socket.gethostname(),
            pid=os.getpid(),
            machine=machine(),
            count=count,
            state="stopping" if stopping else "running",
            started=self.started,
            held=held,
            kinds=self.schedule.tally.by_kind(self.schedule.out) if self._planned else {},
            running=tuple(self.running()),
            left_seconds=self.pace.left_seconds() if self._planned else None,
        )

    def _stop(self) -> bool:
        """Stop, since somebody has asked; False while there is nothing to stop yet."""
        if self._signalled:
            interruption.stop_main_thread()
        elif self._planned:
            self.schedule.stopping = True
        return self._signalled or self._planned

    def _log(self, event: Event) -> None:
        """Write down an event of the schedule; what has failed for good may be tried elsewhere."""
        self.ledger.write(event)
        if event.event == "failed" or event.event == "upstream_failed":
            self.leases.release([event.key])

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
                self.pace.add(stage, result.seconds)
                self.limits.add(stage, result.seconds)
                seconds = round(result.seconds, 4)
                self.ledger.write(
                    Done(key=result.key, seconds=seconds, host=result.host, pid=result.pid)
                )
            elif result.trace:
                self.store.try_write(self.folder.log(result.key), result.trace.encode())
            self.schedule.finished([result])
            if result.key in self.schedule.elsewhere:
                self._pauses.add(result.key)
            self._release([result.key])
            self._settled([result.key])
        self.watch(self)

    def lost(self, keys: Iterable[str], reason: str, *, counts: bool = True) -> None:
        """Take in the death of a process; the stages that it had stored count as done.

        Args:
            keys: the stages that it held.
            reason: why it died.
            counts: whether a lone death counts as an attempt at its stage.
        """
        gone = list(keys)
        stored = self._made_here(gone)
        for key, manifest in stored.items():
            seconds, host = manifest.info.get("seconds", 0.0), manifest.info.get("host", "")
            self.ledger.write(Done(key=key, seconds=seconds, host=host, pid=0))
        self.schedule.lost(gone, stored, reason, counts=counts)
        self._release(gone)
        self._settled(gone)
        self.watch(self)

    def _release(self, keys: Iterable[str]) -> None:
        """Give back what is done; stages that are tried again stay with this run."""
        self.leases.release(self.schedule.done.intersection(keys))

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
        """Write down the end, give back what is claimed, and keep what the next plan reads."""
        try:
            self.ledger.write(End(complete=self.complete))
            self.ledger.close()
        finally:
            self.leases.close()
        record(self.store, self.pace.spent)
        self.limits.save()
        if self.folder.name != self.sweep.name:  # of a launch, the table of stages says it
            wanted = "\n".join(sorted(self.schedule.wanted)).encode()
            self.store.try_write(self.folder.needs, wanted)
        self.store.remember(self.schedule.done, self.schedule.ran)
        self.notes += self.store.unwritten

    @property
    def over(self) -> bool:
        """Whether no stage can be handed out any more."""
        exhausted = self.source is None or self.schedule.stopping or self.source.exhausted
        return exhausted and self.schedule.finished_all

    @property
    def complete(self) -> bool:
        """Whether every stage that can be run has been run."""
        return self.over and not self.schedule.stopping

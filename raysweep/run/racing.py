"""Gives a run the seeds that its races ask for."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence

from raysweep.plan.race import AttackRace, RacingPlanner, value_in
from raysweep.run.schedule import Schedule
from raysweep.store import Store
from raysweep.store.events import Event
from raysweep.sweep.trials import Trial


class Racing:
    """A source of trials: the next seed of a race once all that it waits for has come.

    Attributes:
        planner: takes in the trials.
    """

    def __init__(self, planner: RacingPlanner, store: Store) -> None:
        self.planner = planner
        self._store = store
        self._schedule: Schedule | None = None
        self._due: list[AttackRace] = [race for race in planner.races if not race.over]
        self._awaited: dict[str, list[AttackRace]] = defaultdict(list)
        self._known: dict[Trial, float] = {}

    def take_in_stored(self, schedule: Schedule) -> None:
        """Let all races go as far as stored values take them."""
        self._schedule = schedule
        while self.more(0):
            schedule.extend()
            self.planned(schedule)

    @property
    def exhausted(self) -> bool:
        """Whether every race is over."""
        return all(race.over for race in self.planner.races)

    def more(self, slots: int) -> bool:
        """Give the planner the next seeds of every race that can go on; False if none can."""
        assert self._schedule is not None, "stored values are taken in first"
        before, due, self._due = len(self.planner.trials), self._due, []
        for race in due:
            for trial in self.planner.advance(race, self._value):
                self._await(trial, race)
        return len(self.planner.trials) > before

    def planned(self, schedule: Schedule) -> Sequence[Event]:
        """Look at trials that were taken in, and may be stored already."""
        ended = [key for key in self._awaited if key in schedule.done or key in schedule.failed]
        return self.settled(ended, schedule)

    def settled(self, keys: Iterable[str], schedule: Schedule) -> Sequence[Event]:
        """Take in that stages have ended."""
        for key in keys:
            if key in schedule.failed:
                self._due = [race for race in self.planner.races if not race.over]
            for race in self._awaited.pop(key, ()):
                if race not in self._due:
                    self._due.append(race)
        return []

    def _await(self, trial: Trial, race: AttackRace) -> None:
        """Look at a race again when the stage has ended that a trial waits for."""
        assert self._schedule is not None
        route = self.planner.route(trial, self._schedule.outcomes)
        self._awaited[route.waiting or route.evaluate or ""].append(race)

    def _value(self, trial: Trial) -> float | None:
        """Return the metric of a trial; NaN if it failed, None if it is not known yet."""
        if trial in self._known:
            return self._known[trial]
        assert self._schedule is not None
        schedule = self._schedule
        route = self.planner.route(trial, schedule.outcomes)
        key = route.waiting or route.evaluate or ""
        if schedule.upstream_failed.get(key, key) in schedule.failed:
            return math.nan
        if route.waiting or key not in schedule.done:
            return None
        whole, _ = self._store.manifests([key])
        if key not in whole:
            schedule.recompute(key)
            return None
        self._known[trial] = value_in(whole[key].outcome, self.planner.rules)
        return self._known[trial]

"""Trials of a sweep as they finish, found by their manifests while the sweep runs."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial

from raysweep.errors import DamagedArtifact, StoreError
from raysweep.plan.race import planner_of, value_in
from raysweep.plan.route import Route, followed
from raysweep.results.columns import COSTS, Cell
from raysweep.results.description import as_launched, described
from raysweep.results.rows import Collector, trial_id
from raysweep.stages.stage import Outcome
from raysweep.store import Store
from raysweep.store.sweepfolder import SweepFolder
from raysweep.sweep.spec import restored
from raysweep.sweep.trials import Trial

# What trials share of costs is known when all have finished.
SHARED = frozenset(COSTS) - {"standalone_seconds"}


class Arrivals:
    """Gives rows of finished trials, a few at a time, until they are settled.

    A look costs one listing of the store. A trial is routed anew only when an outcome has come that
    it waited for, and its manifests are read once it has finished.

    Attributes:
        total: how many trials the sweep has.
    """

    def __init__(self, store: Store, name: str, settled: Callable[[str], bool]) -> None:
        """Plan a sweep as it was launched.

        Args:
            store: where it is.
            name: of the sweep.
            settled: tells from a trial's id that its row is not wanted any more.

        Raises:
            RaysweepError, OSError: if it cannot be planned here.
        """
        about = described(store, name)
        if about.sweep is None:
            where = store.where(SweepFolder(store, name).description)
            raise StoreError(f"{where} is missing or damaged; launch the sweep's file again")
        self._store, self._name, self._settled = store, name, settled
        self._planner = planner_of(as_launched(restored(about.sweep), about), launched=True)
        self._open: dict[int, Route | None] = dict.fromkeys(range(len(self._planner.trials)))
        self._ids: dict[int, str] = {}
        self._values: dict[Trial, float] = {}
        self.total = len(self._open)

    def take(self, most: int) -> list[dict[str, Cell]]:
        """Return the rows of at most so many trials that have finished and are not settled."""
        stored = self._store.done()
        self._take_in_more(stored)
        found: list[int] = []
        for number in list(self._open):
            if len(found) == most:
                break
            if self._has_finished(number, stored):
                if self._settled(self._id(number)):
                    del self._open[number]
                else:
                    found.append(number)
        if not found:
            return []
        trials = [self._planner.trials[number] for number in found]
        collector = Collector(self._planner, self._store, {}, {}, trials=trials)
        rows = {n: collector.row(k, self._name).pack() for k, n in enumerate(found)}
        for number, row in rows.items():
            if row["status"] != "ok":  # Something that it read was replaced: it is done again.
                self._open[number] = None
        return [
            {column: cell for column, cell in row.items() if column not in SHARED}
            for row in rows.values()
            if row["status"] == "ok"
        ]

    def _take_in_more(self, stored: Collection[str]) -> None:
        """Let the planner take in the trials that depend on what others came to."""
        while self._planner.grow(partial(self._value, stored)):
            for number in range(self.total, len(self._planner.trials)):
                self._open[number] = None
            self.total = len(self._planner.trials)

    def _value(self, stored: Collection[str], trial: Trial) -> float | None:
        """Return the metric of a trial that a race is about; None if it is not stored."""
        if trial not in self._values:
            route = followed(partial(self._planner.route, trial), partial(self._outcome, stored))
            outcome = None if route.waiting else self._outcome(stored, route.evaluate or "")
            if outcome is None:
                return None
            self._values[trial] = value_in(outcome, self._planner.sweep.race)
        return self._values[trial]

    def _id(self, number: int) -> str:
        if number not in self._ids:
            self._ids[number] = trial_id(self._planner.trials[number], self._planner)
        return self._ids[number]

    def _has_finished(self, number: int, stored: Collection[str]) -> bool:
        route = self._open[number]
        if route is None or route.waiting in stored:
            route = followed(
                partial(self._planner.route, self._planner.trials[number]),
                partial(self._outcome, stored),
            )
            self._open[number] = route
        return route.waiting is None and route.evaluate in stored

    def _outcome(self, stored: Collection[str], key: str) -> Outcome | None:
        if key not in stored:
            return None
        try:
            return self._store.outcome(key)
        except DamagedArtifact:
            return None

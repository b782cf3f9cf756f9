"""Feeds searches into a running sweep: ask, stages, tell, with no slot idle while there is work.

The plan of a tuning run ends at the evidence, since decisions are replayed; only if a metric needs
a model that is trained after the decision does it go on to the evaluation.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from raysweep.defenses.none import NoDefense
from raysweep.errors import DamagedArtifact, PlanError
from raysweep.plan.planner import Planner
from raysweep.plan.route import Outcomes, Route
from raysweep.run.schedule import Schedule
from raysweep.store.events import CandidateEnd
from raysweep.sweep.spec import Sweep
from raysweep.sweep.trials import Trial
from raysweep.tuning.measurements import Measurements
from raysweep.tuning.search import Candidate, Search
from raysweep.tuning.stored import StoredFindings

AHEAD = 4  # candidates under way for each slot, at most


class TuningPlanner(Planner):
    """Plans trials as far as tuning needs them, and takes in more of them as it runs."""

    def __init__(self, sweep: Sweep, *, whole: bool) -> None:
        super().__init__(sweep)
        self.whole = whole
        self.every, self.trials = self.trials, ()

    def route(self, trial: Trial, outcomes: Outcomes) -> Route:
        """Add a trial's stages down to its evidence, or all of them.

        Where attacks are searched, the victim by itself is evaluated too, and the trigger measured.
        """
        if self.whole or not trial.defense.gives() - {"model"}:
            route = super().route(trial, outcomes)
        else:
            route = self.findings(trial, outcomes)  # the decision is replayed, and not run
        if self.sweep.tune is None or self.sweep.tune.who == "defense":
            return route
        alone = super().route(replace(trial, defense=NoDefense()), outcomes)
        seen = self.visibility(trial)
        return replace(route, undefended=alone.evaluate, visibility=seen)

    def refusal(self, trial: Trial) -> str:
        """Return why the dataset does not allow an attack's rate, classes or covers; or ""."""
        facts = self.facts(trial.dataset)
        try:
            trial.attack.counts(facts.labels, facts.num_classes)
        except PlanError as error:
            return str(error)
        return ""


@dataclass(kw_only=True, eq=False)
class _Pending:
    """A candidate in progress, or the final trials, which no search asked for."""

    trials: tuple[Trial, ...]
    search: Search | None = None
    candidate: Candidate | None = None
    issued: int = 0
    instances: list[StoredFindings] = field(default_factory=list)


class Feed:
    """Gives a run the trials of more candidates when slots would stay empty."""

    def __init__(
        self, planner: TuningPlanner, searches: Sequence[Search], measurements: Measurements
    ) -> None:
        self.planner, self.searches, self.measurements = planner, searches, measurements
        self._pending: list[_Pending] = []
        self._fresh: list[_Pending] = []
        self._watch: dict[str, list[_Pending]] = defaultdict(list)
        self._turn = 0
        self._last = False

    @property
    def exhausted(self) -> bool:
        """Whether every search is finished and what it chose has been evaluated."""
        return self._last and not self._pending

    def more(self, slots: int) -> bool:
        """Give the planner the trials of one more candidate; False if there is none now."""
        if self._last or len(self._pending) >= AHEAD * slots:
            return False
        for _ in self.searches:
            search = self.searches[self._turn % len(self.searches)]
            self._turn += 1
            candidate = search.ask()
            if candidate is not None:
                candidate = self._planned(candidate)
                self._issue(_Pending(trials=candidate.trials, search=search, candidate=candidate))
                return True
        if not self._pending and all(search.finished for search in self.searches):
            self._last = True
            trials = tuple(dict.fromkeys(self._final()))
            if trials:
                self._issue(_Pending(trials=trials))
            return bool(trials)
        return False

    def _planned(self, candidate: Candidate) -> Candidate:
        """Return a candidate, invalid and without trials if a dataset does not allow it."""
        why = next(filter(None, map(self.planner.refusal, candidate.trials)), "")
        return replace(candidate, trials=(), invalid=why) if why else candidate

    def _final(self) -> Iterable[Trial]:
        """Yield trials with the chosen parameters, and the method's own, on held-out settings.

        And those of all candidates, which the oracle reads: an earlier run may have tried them, and
        they may have been damaged since.
        """
        for search in self.searches:
            for tried in search.study.evaluated() if search.study is not None else ():
                yield from (search.trial_in(one, tried.parameters) for one in search.settings)
        for search in self.searches:
            if search.failures and search.study is None:
                continue
            for chosen in ({}, *search.chosen(self.measurements)):
                yield from (search.trial_in(one, chosen) for one in search.held_out)

    def _issue(self, pending: _Pending) -> None:
        """Plan a candidate's trials: all of them, or one by one if it may be pruned."""
        self._pending.append(pending)
        pruned = pending.search is not None and pending.search.tune.pruner != "none"
        self._plan(pending, 1 if pruned else len(pending.trials))

    def _plan(self, pending: _Pending, count: int) -> None:
        self.planner.trials += pending.trials[pending.issued : pending.issued + count]
        pending.issued += count
        self._fresh.append(pending)

    def planned(self, schedule: Schedule) -> list[CandidateEnd]:
        """Look at what was planned last: it may be stored already. Returns ledger lines."""
        fresh, self._fresh = self._fresh, []
        return [told for pending in fresh for told in self._advance(pending, schedule)]

    def settled(self, keys: Iterable[str], schedule: Schedule) -> list[CandidateEnd]:
        """Take in that stages ended, and tell the searches. Returns ledger lines."""
        ended = list(keys)
        if any(key in schedule.failed for key in ended):
            touched = list(self._pending)
        else:
            touched = [pending for key in ended for pending in self._watch.pop(key, ())]
        unique = dict.fromkeys(touched)
        return [told for pending in unique for told in self._advance(pending, schedule)]

    def _advance(self, pending: _Pending, schedule: Schedule) -> list[CandidateEnd]:
        """Find out how a candidate stands; tell its search when it is at its end."""
        if pending not in self._pending:
            return []
        waiting, failures = self._standing(pending, schedule)
        for key in waiting:
            if pending not in self._watch[key]:
                self._watch[key].append(pending)
        if waiting and not failures:
            return []
        if not failures and (damaged := self._damaged(pending)):
            if damaged not in schedule.failed:
                schedule.recompute(damaged)
            if damaged not in schedule.failed:
                self._watch[damaged].append(pending)
                return []
            failures = [schedule.failed[damaged].error]
        if pending.search is None or pending.candidate is None:
            if not waiting:
                self._pending.remove(pending)
            return []
        return self._told(pending, pending.search, pending.candidate, failures)

    def _damaged(self, pending: _Pending) -> str:
        """Return the key of a damaged artifact among all that is replayed; empty if all is whole.

        Every instance that the end of the tuning reads is read here first, while there is still
        somebody to compute it again.
        """
        for trial in pending.trials[: pending.issued]:
            try:
                self.measurements.stored(trial)
            except DamagedArtifact as error:
                return error.key
        return ""

    def _told(
        self, pending: _Pending, search: Search, candidate: Candidate, failures: list[str]
    ) -> list[CandidateEnd]:
        if failures:
            self._pending.remove(pending)
            told = search.answered(candidate, [], self.measurements, why=failures[0])
            return [told] if told else []
        if search.study is not None:
            for trial in candidate.trials[len(pending.instances) : pending.issued]:
                pending.instances.append(search.stored(trial, self.measurements))
        rest = pending.issued < len(pending.trials)
        pruned = rest and search.should_stop(candidate, pending.instances, self.measurements)
        if rest and not pruned:
            self._plan(pending, 1)
            return []
        self._pending.remove(pending)
        told = search.answered(candidate, pending.instances, self.measurements, pruned=pruned)
        return [told] if told else []

    def _standing(self, pending: _Pending, schedule: Schedule) -> tuple[list[str], list[str]]:
        """Return the keys that a candidate waits for, and why it failed."""
        if pending.candidate is not None and pending.candidate.invalid:
            return [], [pending.candidate.invalid]
        waiting, failures = [], []
        for trial in pending.trials[: pending.issued]:
            route = self.planner.route(trial, schedule.outcomes)
            last = route.waiting or route.evaluate or route.defend
            for key in filter(None, (last, route.undefended, route.visibility)):
                cause = schedule.upstream_failed.get(key, key)
                if cause in schedule.failed:
                    failures.append(schedule.failed[cause].error or f"{cause} failed")
                elif key not in schedule.done or key == route.waiting:
                    waiting.append(key)
        return waiting, failures

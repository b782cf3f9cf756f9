"""One search: a defense, its spaces, and the places that it may see.

A place is a setting (dataset, attack, rate, seed). The search asks for candidates of its outer
space, which need stages, and replays its inner space on what they find; with no outer space its
one candidate is the defense itself. Places that are held out are not among its own.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from raysweep.defenses import Defense
from raysweep.identity import canonical
from raysweep.plan.planner import Planner
from raysweep.store import Store
from raysweep.store.events import Told
from raysweep.sweep.spec import Trial
from raysweep.sweep.tuning import Tune
from raysweep.tuning.instances import Instance, false_alarms, instance_of, measure
from raysweep.tuning.ranking import Tried, best, front, joined
from raysweep.tuning.space import Space, Values, grid, own_values, points, with_parameters
from raysweep.tuning.study import Study, every_trial

REMEMBERED = 64  # instances in memory


class Bench:
    """Measures defenses on stored instances, and remembers what it has measured."""

    def __init__(self, planner: Planner, store: Store, settings: Tune) -> None:
        self.planner, self.store, self.settings = planner, store, settings
        self._instances: OrderedDict[str, Instance] = OrderedDict()
        self._measured: dict[tuple[str, str, str], dict[str, float]] = {}

    def instance(self, trial: Trial) -> Instance:
        """Return what is stored of a trial, open."""
        memo = repr(trial)
        if memo not in self._instances:
            found = instance_of(self.planner, self.store, trial)
            self._instances[memo] = found
            if len(self._instances) > REMEMBERED:
                self._instances.popitem(last=False)
        self._instances.move_to_end(memo)
        return self._instances[memo]

    def measured(self, defense: Defense, instance: Instance) -> dict[str, float]:
        """Return the metrics of a defense's decision on an open instance."""
        instance.check_open()  # a remembered value is no way around the seal
        where = canonical(dict(instance.where))
        memo = (canonical(defense.identity()), instance.key, where)
        if memo not in self._measured:
            self._measured[memo] = measure(defense, instance, self.settings.wanted)
        return self._measured[memo]

    def joined(self, defense: Defense, over: Sequence[Instance]) -> dict[str, float]:
        """Return the mean, or worst, metrics over open instances."""
        return joined([self.measured(defense, one) for one in over], self.settings.over)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """Parameters that are to be evaluated: the defense that has them, on trials in order."""

    number: int
    outer: Values
    defense: Defense
    trials: tuple[Trial, ...]


@dataclass(kw_only=True)
class Search:
    """One search of one defense; `places` is all that it can ever read the truth of.

    Attributes:
        part: what is held out, empty if nothing is.
        places: trials of the defense as it is, one for each setting that is open.
        held: the same of the settings that it is reported on.
        studied: opens an Optuna study over a space.
        failures: why candidates failed.
    """

    defense: Defense
    outer: Space
    inner: Space
    settings: Tune
    part: str
    places: tuple[Trial, ...]
    held: tuple[Trial, ...]
    studied: Callable[[Space], Study]
    failures: list[str] = field(default_factory=list)
    study: Study | None = None
    _asked: bool = False
    _answered: bool = False
    _tried: list[Tried] | None = None

    def __post_init__(self) -> None:
        if self.outer:
            self.study = self.studied(self.outer)

    # While stages run

    def ask(self) -> Candidate | None:
        """Return the next candidate; none if none is wanted now."""
        if self.study is None:
            if self._asked:
                return None
            self._asked = True
            return self._candidate(-1, {})
        asked = self.study.ask()
        return self._candidate(*asked) if asked else None

    def _candidate(self, number: int, outer: Values) -> Candidate:
        defense = with_parameters(self.defense, outer)
        trials = tuple(replace(place, defense=defense) for place in self.places)
        return Candidate(number=number, outer=outer, defense=defense, trials=trials)

    def hopeless(self, candidate: Candidate, found: Sequence[Instance], bench: Bench) -> bool:
        """Return whether a candidate should be stopped after the instances found so far."""
        if self.study is None or self.settings.pruner == "none":
            return False
        here = best(self._replayed(candidate, found[-1:], bench), self.settings)
        value = here.metrics[self.settings.metric[0].name]
        return self.study.hopeless(candidate.number, len(found) - 1, value)

    def answered(
        self,
        candidate: Candidate,
        found: Sequence[Instance],
        bench: Bench,
        *,
        pruned: bool = False,
        why: str = "",
    ) -> Told | None:
        """Take in what a candidate found, or why it failed; return a line for the ledger."""
        if why:
            self.failures.append(why)
        if self.study is None:
            self._answered = True
            return None
        if why or not found:
            return self.study.tell(candidate.number, None, why=why)
        chosen = best(self._replayed(candidate, found, bench), self.settings)
        inner = {name: chosen.parameters[name] for name in self.inner}
        return self.study.tell(candidate.number, chosen.metrics, replayed=inner, pruned=pruned)

    @property
    def finished(self) -> bool:
        """Whether nothing more will be asked and everything has been answered."""
        return self._answered if self.study is None else self.study.finished

    # Replaying

    def _replayed(
        self, candidate: Candidate, found: Sequence[Instance], bench: Bench
    ) -> list[Tried]:
        """Return every point of the inner space, with one candidate's outer parameters."""
        return [
            self._tried_at({**candidate.outer, **values}, found, bench)
            for values in grid(self.inner)
        ]

    def _tried_at(self, values: Values, found: Sequence[Instance], bench: Bench) -> Tried:
        chosen = with_parameters(self.defense, values)
        return Tried(parameters=values, metrics=bench.joined(chosen, found))

    def instance(self, trial: Trial, bench: Bench) -> Instance:
        """Return what is stored of a trial; its truth is sealed unless this search may see it."""
        found = bench.instance(trial)
        open_to_it = replace(trial, defense=self.defense) in self.places
        return found if open_to_it and self.settings.labels != "clean_only" else found.closed()

    def instances(self, bench: Bench) -> list[Instance]:
        """Return what the defense itself found in the places of this search."""
        return [self.instance(place, bench) for place in self.places]

    def tried(self, bench: Bench) -> list[Tried]:
        """Return everything that was tried, once all stages have run."""
        if self._tried is None:
            if self.study is not None:
                self._tried = self.study.tried()
            elif self.failures:
                self._tried = []
            else:
                self._tried = self._decisions(self.instances(bench), bench)
        return self._tried

    def _decisions(self, found: Sequence[Instance], bench: Bench) -> list[Tried]:
        """Search decisions alone: exactly in one dimension, with Optuna in several."""
        exact = points(self.inner)
        if exact is not None:
            return [self._tried_at(values, found, bench) for values in exact]
        study = self.studied(self.inner)
        every_trial(study, lambda values: self._tried_at(values, found, bench).metrics)
        study.close()
        return study.tried()

    def chosen(self, bench: Bench) -> list[Values]:
        """Return the parameters to use: one set, or the Pareto front; none if nothing worked."""
        if self.settings.labels == "clean_only" and not self.failures:
            blind = self.blind(self.instances(bench))
            return [blind] if blind else []
        tried = self.tried(bench)
        return [one.parameters for one in front(tried, self.settings)] if tried else []

    def blind(self, over: Sequence[Instance]) -> Values | None:
        """Return the decisions that use the most of a budget of clean false alarms.

        Reads the reserved clean set alone; none if the defense scores no clean samples.
        """
        budgets = [bound.bound for bound in self.settings.bounds]
        budget = min(budgets) if budgets else 0.05
        candidates, rates = grid(self.inner), []
        for values in candidates:
            chosen = with_parameters(self.defense, values)
            rates.append(float(np.mean([false_alarms(chosen, instance) for instance in over])))
        if np.isnan(rates).any():
            return None
        allowed = [i for i, rate in enumerate(rates) if rate <= budget]
        return candidates[max(allowed, key=lambda i: rates[i])] if allowed else None

    def own(self) -> Values:
        """Return the method's own values of what is searched."""
        return own_values(self.defense, {**self.outer, **self.inner})

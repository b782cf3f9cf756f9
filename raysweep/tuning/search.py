"""One search: a defense, its spaces, and the settings that it may see.

A setting is dataset, model, attack, recipe and seed, named by the trial of the defense there. The
search asks for candidates of its outer space, which need stages, and replays its inner space on
what they find; with no outer space its one candidate is the defense itself. Settings that are held
out are not among its own.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from raysweep import rng
from raysweep.defenses import Defense
from raysweep.identity import canonical
from raysweep.plan.planner import Planner
from raysweep.store import Store
from raysweep.store.events import CandidateEnd
from raysweep.sweep.ranges import Parameters
from raysweep.sweep.searching import broken_rule
from raysweep.sweep.trials import Trial
from raysweep.sweep.tuning import Metrics, Tune
from raysweep.tuning.ranking import Evaluated, best, excess, front, joined
from raysweep.tuning.space import Space, allowed, grid, own_values, points, with_parameters
from raysweep.tuning.stored import StoredFindings, false_alarms, measure, stored_findings
from raysweep.tuning.study import Study, every_trial

REMEMBERED = 64  # instances in memory
BROKEN = 1e6  # beyond every metric: what a pruner is told of a candidate that breaks constraints


class Measurements:
    """Measures defenses on stored instances, and remembers every measurement."""

    def __init__(self, planner: Planner, store: Store, tune: Tune) -> None:
        self.planner, self.store, self.tune = planner, store, tune
        self._instances: OrderedDict[str, StoredFindings] = OrderedDict()
        self._measured: dict[tuple[str, tuple[str, str]], Metrics] = {}

    def stored(self, trial: Trial) -> StoredFindings:
        """Return the stored findings of a trial, open."""
        memo = repr(trial)
        if memo not in self._instances:
            self._instances[memo] = stored_findings(self.planner, self.store, trial)
            if len(self._instances) > REMEMBERED:
                self._instances.popitem(last=False)
        self._instances.move_to_end(memo)
        return self._instances[memo]

    def measured(self, defense: Defense, instance: StoredFindings) -> Metrics:
        """Return the metrics of a defense's decision on an open instance."""
        instance.check_open()  # remembered metrics must not bypass the seal
        memo = (canonical(defense.identity()), instance.identity)
        if memo not in self._measured:
            self._measured[memo] = measure(defense, instance, self.tune.named_metrics)
        return self._measured[memo]

    def joined(self, defense: Defense, over: Sequence[StoredFindings]) -> Metrics:
        """Return the mean, or worst, metrics over open instances."""
        return joined([self.measured(defense, one) for one in over], self.tune.over)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """Parameters that are to be evaluated: the defense that has them, on trials in order.

    `invalid` is the rule that the parameters break together; such a candidate has no trials.
    """

    number: int
    outer: Parameters
    defense: Defense
    trials: tuple[Trial, ...]
    invalid: str = ""


@dataclass(kw_only=True)
class Search:
    """One search of one defense; `settings` are all that it can ever read the truth of.

    Attributes:
        part: the part that is held out, empty if nothing is.
        settings: trials of the defense as it is, one for each setting that is open.
        held_out: the same of the settings that it is reported on.
        studied: opens an Optuna study over a space.
        recorded: leaves an exact search as a study too; none: it leaves nothing.
        first: candidates that are tried before all others, in part or whole.
        failures: why candidates failed.
    """

    defense: Defense
    outer: Space
    inner: Space
    tune: Tune
    part: str
    settings: tuple[Trial, ...]
    held_out: tuple[Trial, ...]
    studied: Callable[[Space], Study]
    recorded: Callable[[Space, Sequence[Evaluated]], None] | None = None
    first: tuple[Parameters, ...] = ()
    failures: list[str] = field(default_factory=list)
    study: Study | None = None
    _asked: bool = False
    _answered: bool = False
    _tried: list[Evaluated] | None = None

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

    def _candidate(self, number: int, outer: Parameters) -> Candidate:
        broken = broken_rule(self.defense, outer)
        if broken is not None:
            return Candidate(
                number=number, outer=outer, defense=self.defense, trials=(),
                invalid=f"{self.defense.name} does not allow {dict(outer)}: {broken.rule}",
            )  # fmt: skip
        defense = with_parameters(self.defense, outer)
        trials = tuple(replace(setting, defense=defense) for setting in self._shuffled)
        return Candidate(number=number, outer=outer, defense=defense, trials=trials)

    @cached_property
    def _shuffled(self) -> tuple[Trial, ...]:
        """The settings in the order in which a pruner meets them: drawn, the same for all.

        In the order of the sweep file the first of them would decide for all.
        """
        if self.tune.pruner == "none":
            return self.settings
        order = rng.generator(self.tune.seed, "instances").permutation(len(self.settings))
        return tuple(self.settings[number] for number in order)

    def should_stop(
        self,
        candidate: Candidate,
        instances: Sequence[StoredFindings],
        measurements: Measurements,
    ) -> bool:
        """Return whether a candidate should be stopped after the instances so far."""
        if self.study is None or self.tune.pruner == "none":
            return False
        replayed = self._replayed(candidate, instances, measurements)
        if not replayed:
            return True
        so_far = best(replayed, self.tune)
        broken = excess(so_far.metrics, self.tune)
        (here,) = self._measured([so_far.parameters], instances[-1:], measurements)
        value = here.metrics[self.tune.metric[0].name]
        if broken > 0:  # worse than all that keep the constraints; pruners compare, and no more
            sign = 1.0 if self.tune.metric[0].goal == "minimize" else -1.0
            value = sign * (BROKEN + min(broken, BROKEN))
        return self.study.should_stop(candidate.number, len(instances) - 1, value)

    def answered(
        self,
        candidate: Candidate,
        instances: Sequence[StoredFindings],
        measurements: Measurements,
        *,
        pruned: bool = False,
        why: str = "",
    ) -> CandidateEnd | None:
        """Take in a candidate's instances, or why it failed; return it as told to its study."""
        if why:
            self.failures.append(why)
        if self.study is None:
            self._answered = True
            return None
        invalid = bool(candidate.invalid)
        if why or not instances:
            return self.study.tell(candidate.number, None, why=why, invalid=invalid)
        replayed = self._replayed(candidate, instances, measurements)
        if not replayed:
            why = f"{self.defense.name} allows no decision with {dict(candidate.outer)}"
            return self.study.tell(candidate.number, None, why=why, invalid=True)
        chosen = best(replayed, self.tune)
        inner = {name: value for name, value in chosen.parameters.items() if name in self.inner}
        return self.study.tell(
            candidate.number, chosen.metrics, replayed=inner, instances=len(instances),
            pruned=pruned,
        )  # fmt: skip

    @property
    def finished(self) -> bool:
        """Whether nothing more will be asked and everything has been answered."""
        return self._answered if self.study is None else self.study.finished

    # Replaying

    def _replayed(
        self,
        candidate: Candidate,
        instances: Sequence[StoredFindings],
        measurements: Measurements,
    ) -> list[Evaluated]:
        """Return every allowed point of the inner space, with one candidate's outer parameters."""
        every = grid(self.inner, {**self.known, **candidate.outer})
        return self._measured(
            [{**candidate.outer, **one} for one in every], instances, measurements
        )

    def _measured(
        self,
        points: Sequence[Parameters],
        instances: Sequence[StoredFindings],
        measurements: Measurements,
    ) -> list[Evaluated]:
        """Return the parameters that the defense allows, each with its metrics."""
        found = []
        for parameters in points:
            defense = allowed(self.defense, parameters)
            if defense is not None:
                metrics = measurements.joined(defense, instances)
                found.append(Evaluated(parameters=parameters, metrics=metrics))
        return found

    @cached_property
    def known(self) -> Parameters:
        """The defense's own values, which conditions may name."""
        return self.defense.model_dump()

    def stored(self, trial: Trial, measurements: Measurements) -> StoredFindings:
        """Return the findings of a trial; their truth is sealed unless this search may see it."""
        instance = measurements.stored(trial)
        open_to_it = replace(trial, defense=self.defense) in self.settings
        return instance if open_to_it and self.tune.labels != "clean_only" else instance.closed()

    def seen_first(self, outer: Parameters, measurements: Measurements) -> StoredFindings:
        """Return the findings in the first setting of this search, with some outer parameters."""
        defense = with_parameters(self.defense, outer)
        return self.stored(replace(self.settings[0], defense=defense), measurements)

    def all_stored(self, measurements: Measurements) -> list[StoredFindings]:
        """Return the findings of the defense itself in the settings of this search."""
        return [self.stored(setting, measurements) for setting in self.settings]

    def evaluated(self, measurements: Measurements) -> list[Evaluated]:
        """Return everything that was tried, once all stages have run."""
        if self._tried is None:
            if self.study is not None:
                self._tried = self.study.evaluated()
            elif self.failures:
                self._tried = []
            else:
                self._tried = self._decisions(self.all_stored(measurements), measurements)
        return self._tried

    def _decisions(
        self, instances: Sequence[StoredFindings], measurements: Measurements
    ) -> list[Evaluated]:
        """Search decisions alone: exactly in one dimension, with Optuna in several."""
        exact = points(self.inner, self.known)
        if exact is not None:
            first = [{**self.own(), **point} for point in self.first]
            found = self._measured([*first, *exact], instances, measurements)
            if self.recorded is not None and found:
                self.recorded(self.inner, found)
            return found
        study = self.studied(self.inner)

        def evaluate(decision: Parameters) -> Metrics | None:
            found = self._measured([decision], instances, measurements)
            return found[0].metrics if found else None

        every_trial(study, evaluate)
        study.close()
        return study.evaluated()

    def chosen(self, measurements: Measurements) -> list[Parameters]:
        """Return the parameters to use: one set, or the Pareto front; none if nothing worked."""
        if self.tune.labels == "clean_only" and not self.failures:
            blind = self.without_truth(self.all_stored(measurements))
            return [blind] if blind else []
        tried = self.evaluated(measurements)
        return [one.parameters for one in front(tried, self.tune)] if tried else []

    def without_truth(self, over: Sequence[StoredFindings]) -> Parameters | None:
        """Return the decisions that use the most of a budget of clean false alarms.

        Reads the reserved clean set alone; none if the defense scores no clean samples.
        """
        budgets = [bound.bound for bound in self.tune.bounds]
        budget = min(budgets) if budgets else 0.05
        candidates, rates = [], []
        for decision in grid(self.inner, self.known):
            chosen = allowed(self.defense, decision)
            if chosen is not None:
                candidates.append(decision)
                rates.append(float(np.mean([false_alarms(chosen, instance) for instance in over])))
        if np.isnan(rates).any():
            return None
        within = [i for i, rate in enumerate(rates) if rate <= budget]
        return candidates[max(within, key=lambda i: rates[i])] if within else None

    def own(self) -> Parameters:
        """Return the method's own values of what is searched."""
        return own_values(self.defense, {**self.outer, **self.inner})

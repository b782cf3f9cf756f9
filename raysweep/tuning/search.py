"""One search: its subject, a defense or an attack, its spaces, and the settings that it may see.

A setting of a defense is dataset, model, attack, recipe and seed; of an attack it has a defense in
place of the attack. It is named by the trial of the subject there. The search asks for candidates
of its outer space, which need stages, and replays its inner space on what they find; with no outer
space its one candidate is the subject itself. Settings that are held out are not among its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from raysweep import rng
from raysweep.attacks import Attack
from raysweep.defenses import Defense
from raysweep.methods import Method
from raysweep.results.account import NOTHING
from raysweep.store.events import CandidateEnd
from raysweep.sweep.ranges import Parameters
from raysweep.sweep.searching import broken_rule
from raysweep.sweep.trials import Trial
from raysweep.sweep.tuning import Knowledge, Metrics, Tune
from raysweep.tuning.measurements import Measurements
from raysweep.tuning.ranking import Evaluated, best, excess, front
from raysweep.tuning.space import Space, allowed, grid, own_values, points, with_parameters
from raysweep.tuning.stored import StoredFindings, false_alarms
from raysweep.tuning.study import Study, every_trial

BROKEN = 1e6  # beyond every metric: what a pruner is told of a candidate that breaks constraints


def attack_title(attack: Attack) -> str:
    """Return the label and the rate of an attack."""
    return f"{attack.label} @ {attack.rate:g}"


def with_subject(setting: Trial, subject: Method) -> Trial:
    """Return the trial of a defense, or of an attack, in a setting."""
    if isinstance(subject, Attack):
        return replace(setting, attack=subject)
    assert isinstance(subject, Defense), "only attacks and defenses are searched"
    return replace(setting, defense=subject)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """Parameters that are to be evaluated: the trials of the subject that has them, in order.

    `invalid` is the rule that the parameters break together; such a candidate has no trials.
    """

    number: int
    outer: Parameters
    trials: tuple[Trial, ...]
    invalid: str = ""


@dataclass(kw_only=True)
class Search:
    """One search of one subject; `settings` are all that it can ever read the truth of.

    Attributes:
        subject: a defense or an attack, as the sweep file has it.
        knows: what it rests on.
        part: the part that it is reported on, empty if that is everything.
        settings: trials of the subject as it is, one for each setting that is open.
        held_out: the same of the settings that it is reported on.
        studied: opens an Optuna study over a space.
        recorded: leaves an exact search as a study too; none: it leaves nothing.
        first: candidates that are tried before all others, in part or whole.
        failures: why candidates failed.
    """

    subject: Method
    outer: Space
    inner: Space
    tune: Tune
    knows: Knowledge
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

    @property
    def title(self) -> str:
        """Its subject, and what is held out, or known, in words."""
        if isinstance(self.subject, Attack):
            return f"{attack_title(self.subject)} against {self.part}, {self.knows}"
        return f"{self.subject.label}, held out {self.part or NOTHING}"

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
        broken = broken_rule(self.subject, outer)
        if broken is not None:
            why = f"{self.subject.name} does not allow {dict(outer)}: {broken.rule}"
            return Candidate(number=number, outer=outer, trials=(), invalid=why)
        trials = tuple(self.trial_in(setting, outer) for setting in self._shuffled)
        return Candidate(number=number, outer=outer, trials=trials)

    def trial_in(self, setting: Trial, parameters: Parameters) -> Trial:
        """Return the trial of the subject in a setting, with those parameters that need stages."""
        outer = {name: value for name, value in parameters.items() if name in self.outer}
        return with_subject(setting, with_parameters(self.subject, outer))

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
            why = f"{self.subject.name} allows no decision with {dict(candidate.outer)}"
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
        """Return the parameters that the subject allows, each with its metrics."""
        found = []
        for parameters in points:
            subject = allowed(self.subject, parameters)
            if subject is not None:
                metrics = measurements.joined(subject, instances)
                found.append(Evaluated(parameters=parameters, metrics=metrics))
        return found

    @cached_property
    def known(self) -> Parameters:
        """The subject's own values, which conditions may name."""
        return self.subject.model_dump()

    def stored(self, trial: Trial, measurements: Measurements) -> StoredFindings:
        """Return the findings of a trial; their truth is sealed unless this search may see it."""
        instance = measurements.stored(trial)
        open_to_it = with_subject(trial, self.subject) in self.settings
        return instance if open_to_it and self.knows != "clean_only" else instance.closed()

    def seen_first(self, outer: Parameters, measurements: Measurements) -> StoredFindings:
        """Return the findings in the first setting of this search, with some outer parameters."""
        return self.stored(self.trial_in(self.settings[0], outer), measurements)

    def all_stored(self, measurements: Measurements) -> list[StoredFindings]:
        """Return the findings of the subject itself in the settings of this search."""
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
        if self.knows == "clean_only" and not self.failures:
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
            chosen = allowed(self.subject, decision)
            if isinstance(chosen, Defense):
                candidates.append(decision)
                rates.append(float(np.mean([false_alarms(chosen, instance) for instance in over])))
        if np.isnan(rates).any():
            return None
        within = [i for i, rate in enumerate(rates) if rate <= budget]
        return candidates[max(within, key=lambda i: rates[i])] if within else None

    def own(self) -> Parameters:
        """Return the method's own values of what is searched."""
        return own_values(self.subject, {**self.outer, **self.inner})

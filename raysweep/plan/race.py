"""Trials that a race asks for: more seeds of those defenses that are not separated yet.

The trials of a sweep with a race are a function of the values that are known, as the stages of a
trial are one of the outcomes: whoever plans it asks again, in any order, and after a kill.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from raysweep.errors import PlanError
from raysweep.metrics.race import Standing, fewest_seeds, standing
from raysweep.plan.planner import Planner
from raysweep.stages.stage import Outcome
from raysweep.sweep.race import Race
from raysweep.sweep.spec import Sweep
from raysweep.sweep.trials import Trial

ValueOf = Callable[[Trial], float | None]


@dataclass(kw_only=True, eq=False)
class AttackRace:
    """The race of all defenses against one attack at one rate, in one arena.

    Attributes:
        trials: of each defense, one for each seed.
        asked: how many seeds each defense was given so far.
        over: whether no more seeds will be asked for.
    """

    trials: tuple[tuple[Trial, ...], ...]
    asked: list[int]
    over: bool = False

    def standing(self, value_of: ValueOf, rules: Race, level: float) -> Standing:
        """Return the standing, given the value of each trial: NaN for none, None if not known."""
        return standing(
            lambda one, seed: value_of(self.trials[one][seed]),
            len(self.trials), rules.max, rules.min, level,
        )  # fmt: skip


class RacingPlanner(Planner):
    """Plans the first seeds of all defenses, and takes in more trials as their values are known."""

    def __init__(self, sweep: Sweep, *, launched: bool = False) -> None:
        """Plan the first seeds of a sweep that has a race.

        Raises:
            PlanError: if no pair can be separated with the seeds that there are at most.
        """
        super().__init__(sweep, launched=launched)
        assert sweep.race is not None, "a sweep without a race is planned by Planner"
        self.rules = sweep.race
        self._every = {trial: number for number, trial in enumerate(self.trials)}
        self.races: list[AttackRace] = []
        self.trials = ()
        for group in _groups(tuple(self._every)):
            attack = group[0][0].attack
            race = AttackRace(trials=group, asked=[0] * len(group))
            race.over = len(group) < 2 or not (attack.rate > 0 or attack.EVADES)
            self._ask(race, [self.rules.min] * len(group))
            self.races.append(race)
        self.running = sum(not race.over for race in self.races)
        self.level = self.rules.false_separations / max(1, self.running)
        fewest = fewest_seeds(self.level)
        if self.running and self.rules.max < fewest:
            raise PlanError(
                f"seeds.max: {self.rules.max} seeds cannot separate any two defenses when "
                f"{self.running} attacks share false_separations: "
                f"{self.rules.false_separations:g}; give at least {fewest}"
            )

    @property
    def most(self) -> int:
        """The number of trials that there are at most."""
        return len(self._every)

    def forecast(self) -> str:
        """Return in a sentence how many trials there are so far, and at most."""
        running = sum(not race.over for race in self.races)
        return (
            f"race: {len(self.trials)} trials so far, {self.most} at most; {running} of "
            f"{self.running} attacks still ask for seeds"
        )

    def listed(self) -> Sequence[Trial]:
        """Return the trials so far, in the order of the sweep."""
        return sorted(self.trials, key=self._every.__getitem__)

    def advance(self, race: AttackRace, value_of: ValueOf) -> list[Trial]:
        """Take in more trials of a race; return those that it waits for."""
        if race.over:
            return []
        now = race.standing(value_of, self.rules, self.level)
        race.over = now.over
        self._ask(race, now.spent)
        return [race.trials[one][seed] for one, seed in now.wanted]

    def grow(self, value_of: ValueOf) -> bool:
        """Take in more trials of every race, given the metric of each trial; see `Planner`."""
        before = len(self.trials)
        for race in self.races:
            self.advance(race, value_of)
        return len(self.trials) > before

    def _ask(self, race: AttackRace, seeds: Sequence[int]) -> None:
        """Take in the trials of the first seeds of each defense."""
        most = max([*seeds, *race.asked])
        for seed in range(most):
            self.trials += tuple(
                own[seed]
                for own, had, now in zip(race.trials, race.asked, seeds, strict=True)
                if had <= seed < now
            )
        race.asked = [max(pair) for pair in zip(race.asked, seeds, strict=True)]


def planner_of(sweep: Sweep, *, launched: bool = False) -> Planner:
    """Return the planner of a sweep's trials, or of the first of them if it has a race."""
    return (RacingPlanner if sweep.race else Planner)(sweep, launched=launched)


def value_in(outcome: Outcome, rules: Race | None) -> float:
    """Return the metric of a race in an evaluation's outcome; NaN where it is undefined."""
    found = outcome.get(rules.metric) if rules else None
    return float(found) if isinstance(found, int | float) else math.nan


def _groups(every: Sequence[Trial]) -> list[tuple[tuple[Trial, ...], ...]]:
    """Return the trials by what they share, then by defense, in the order of seeds."""
    found: dict[object, dict[object, list[Trial]]] = {}
    for trial in every:
        # A data set that is drawn anew by each seed is the same one still.
        shared = (trial.dataset.of_seed(-trial.seed), trial.model, trial.attack, trial.recipe)
        found.setdefault(shared, {}).setdefault(trial.defense, []).append(trial)
    return [tuple(map(tuple, defenses.values())) for defenses in found.values()]

"""The trials of a sweep: the product of its axes and seeds, less what `exclude` names."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from raysweep.attacks import Attack
from raysweep.datasets import Dataset
from raysweep.defenses import Defense
from raysweep.errors import SpecError
from raysweep.methods.recipe import Recipe
from raysweep.models import Model
from raysweep.sweep.spec import Scalar, Sweep


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One line of the results."""

    dataset: Dataset
    model: Model
    attack: Attack
    defense: Defense
    recipe: Recipe
    seed: int


def trials(sweep: Sweep) -> tuple[Trial, ...]:
    """Expand a sweep, in the order in which it is written.

    Raises:
        SpecError: if an exclusion matches nothing, or everything is excluded.
    """
    conditions = [_Condition(sweep, number) for number in range(len(sweep.exclude))]
    expanded = []
    axes = (sweep.datasets, sweep.models, sweep.recipes, sweep.attacks, sweep.defenses)
    for dataset, model, recipe, attack, defense in itertools.product(*axes):
        excluding = [c for c in conditions if c.matches(dataset, model, recipe, attack, defense)]
        for seed in sweep.seeds:
            if not any(c.seeds is None or seed in c.seeds for c in excluding):
                trial = Trial(
                    dataset=dataset.of_seed(seed),
                    model=model,
                    attack=attack,
                    defense=defense,
                    recipe=recipe,
                    seed=seed,
                )
                expanded.append(trial)
    if not expanded:
        raise SpecError(f"sweep {sweep.name}: exclude leaves no trial; remove a condition")
    return tuple(expanded)


class _Condition:
    """One `exclude` entry: a combination is left out when every axis matches."""

    def __init__(self, sweep: Sweep, number: int) -> None:
        self.seeds: tuple[Scalar, ...] | None = None
        self._matching: dict[int, set[int]] = {}
        axes: dict[str, Sequence[Any]] = {
            "dataset": sweep.datasets,
            "model": sweep.models,
            "recipe": sweep.recipes,
            "attack": sweep.attacks,
            "defense": sweep.defenses,
        }
        for field, wanted in sweep.exclude[number].items():
            if field == "seed":
                self.seeds = wanted
                if not set(wanted) & set(sweep.seeds):
                    raise self._error(number, field, wanted, sweep.seeds)
                continue
            axis, _, parameter = ("attack.rate" if field == "rate" else field).partition(".")
            if axis not in axes or (axis == "recipe" and not parameter):
                raise SpecError(
                    f"exclude.{number}: {field}: unknown axis; one of dataset, model, attack, "
                    f"defense, rate, seed, or a parameter such as attack.alpha or recipe.epochs"
                )
            have = [_held(value, parameter) for value in axes[axis]]
            matching = {id(v) for v, held in zip(axes[axis], have, strict=True) if held in wanted}
            if not matching:
                raise self._error(number, field, wanted, have)
            position = list(axes).index(axis)
            before = self._matching.get(position)
            self._matching[position] = matching if before is None else before & matching

    @staticmethod
    def _error(number: int, field: str, wanted: Any, have: Sequence[Any]) -> SpecError:
        names = sorted({str(value) for value in have if value is not _ABSENT})
        near = difflib.get_close_matches(str(wanted[0]), names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"it holds {', '.join(names) or 'nothing'}"
        return SpecError(
            f"exclude.{number}: {field}: no combination of this sweep has "
            f"{' or '.join(map(repr, wanted))}; {hint}"
        )

    def matches(self, *values: Any) -> bool:
        return all(id(values[n]) in chosen for n, chosen in self._matching.items())


_ABSENT = object()


def _held(value: Any, parameter: str) -> Any:
    return getattr(value, parameter, _ABSENT) if parameter else value.name

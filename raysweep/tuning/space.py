"""What is searched: ranges as W&B's sweep files write them, in two parts.

Parameters of the inner space are replayed on stored scores; those of the outer space need stages.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import optuna
from pydantic import ValidationError

from raysweep.defenses import Defense
from raysweep.errors import SpecError
from raysweep.methods import decision_fields, search_ranges
from raysweep.sweep.tuning import Tune

POINTS = 400  # of an exact sweep over one number
GRID = 2000  # of a grid over several numbers, for each candidate of an outer space
MOST_POINTS = 40_000
Values = dict[str, Any]
Space = Mapping[str, Mapping[str, Any]]


def distribution(rule: Mapping[str, Any]) -> optuna.distributions.BaseDistribution:
    """Return Optuna's form of a parameter as W&B's sweep files write it.

    Raises:
        SpecError: if it is none.
    """
    if "values" in rule:
        return optuna.distributions.CategoricalDistribution(tuple(rule["values"]))
    if not {"min", "max"} <= set(rule) or not rule["min"] < rule["max"]:
        raise SpecError(
            f"tune.parameters: a range needs min below max, or values, got {dict(rule)}"
        )
    log = rule.get("distribution", "uniform").startswith("log")
    low, high = rule["min"], rule["max"]
    if isinstance(low, int) and isinstance(high, int):
        return optuna.distributions.IntDistribution(low, high, log=log)
    return optuna.distributions.FloatDistribution(float(low), float(high), log=log)


def _axis(rule: Mapping[str, Any], most: int) -> list[Any]:
    """Return the values of one parameter, at most `most` of a range."""
    spread = distribution(rule)
    if isinstance(spread, optuna.distributions.CategoricalDistribution):
        return list(spread.choices)
    assert isinstance(
        spread, optuna.distributions.IntDistribution | optuna.distributions.FloatDistribution
    )
    cut = np.geomspace if spread.log else np.linspace
    if isinstance(spread, optuna.distributions.IntDistribution):
        if spread.high - spread.low < most:
            return list(range(spread.low, spread.high + 1))
        return sorted({round(v) for v in cut(spread.low, spread.high, most)})
    return [float(v) for v in cut(spread.low, spread.high, most)]


def _ranges(space: Space) -> int:
    return sum("values" not in rule for rule in space.values())


def points(space: Space) -> list[Values] | None:
    """Return all candidates of a space of one number, or of listed values; else none."""
    if _ranges(space) > 1:
        return None
    every = _product(space, POINTS)
    return every if len(every) <= MOST_POINTS else None


def grid(space: Space) -> list[Values]:
    """Return all candidates of a small space, or an even grid of about `GRID` of a large one."""
    exact = points(space)
    if exact is not None:
        return exact
    listed = math.prod(len(rule["values"]) for rule in space.values() if "values" in rule)
    each = max(2, int((GRID / max(listed, 1)) ** (1 / _ranges(space))))
    return _product(space, each)


def _product(space: Space, most: int) -> list[Values]:
    axes = [_axis(rule, most) for rule in space.values()]
    return [dict(zip(space, chosen, strict=True)) for chosen in itertools.product(*axes)]


def with_parameters(defense: Defense, values: Values) -> Defense:
    """Return the defense with other parameters, validated."""
    return type(defense).model_validate({**defense.model_dump(), **values})


def spaces_of(defense: Defense, settings: Tune) -> tuple[Space, Space]:
    """Return the (outer, inner) space of a defense: the sweep file's, else its own suggestion.

    A decision parameter is replayed, unless a metric is wanted that needs a model trained after
    the decision.

    Raises:
        SpecError: if a parameter is unknown, or a bound breaks its rules.
    """
    kind = type(defense)
    own, decisions = search_ranges(kind), decision_fields(kind)
    given = settings.parameters.get(defense.name)
    if given is None:
        given = {name: rule for name, rule in own.items() if name in decisions}
    space = {
        name: _checked(defense, name, rule or own.get(name, {})) for name, rule in given.items()
    }
    scores = bool(defense.gives() & {"train_scores", "input_scores"})
    replayed = decisions if scores and not settings.whole else frozenset()
    return (
        {name: rule for name, rule in space.items() if name not in replayed},
        {name: rule for name, rule in space.items() if name in replayed},
    )


def _checked(defense: Defense, name: str, rule: Mapping[str, Any]) -> Mapping[str, Any]:
    where = f"tune.parameters.{defense.name}"
    if name not in type(defense).model_fields:
        known = ", ".join(sorted(type(defense).model_fields)) or "none"
        raise SpecError(f"{where}: {name!r} is no parameter of it; one of: {known}")
    if not rule:
        raise SpecError(
            f"{where}.{name}: the method suggests no range; give min and max, or values"
        )
    distribution(rule)
    for bound in (rule.get("min"), rule.get("max"), *rule.get("values", ())):
        try:
            if bound is not None:
                with_parameters(defense, {name: bound})
        except ValidationError as error:
            said = error.errors()[0]["msg"]
            raise SpecError(f"{where}.{name}: {bound} is not allowed: {said}") from None
    return rule


def own_values(defense: Defense, space: Space) -> Values:
    """Return the defense's own values of the parameters of a space."""
    return {name: getattr(defense, name) for name in space}


def inside(space: Space, values: Values) -> bool:
    """Return whether values lie in a space; Optuna itself takes any that are enqueued."""
    for name, rule in space.items():
        spread = distribution(rule)
        try:
            if not spread._contains(spread.to_internal_repr(values[name])):
                return False
        except (TypeError, ValueError):
            return False
    return True

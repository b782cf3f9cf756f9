"""The space that is searched, in two parts.

Parameters of the inner space are replayed on stored scores; those of the outer space need stages.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import numpy as np
import optuna

from raysweep.defenses import Defense
from raysweep.methods import decision_fields, search_ranges
from raysweep.sweep.ranges import range_of
from raysweep.sweep.tuning import Parameters, ParameterValue, Range, Tune

POINTS = 400  # of an exact sweep over one number
GRID = 2000  # of a grid over several numbers, for each candidate of an outer space
MOST_POINTS = 40_000
Space = Mapping[str, Range]


def distribution(values: Range) -> optuna.distributions.BaseDistribution:
    """Return Optuna's form of a range."""
    if values.values is not None:
        return optuna.distributions.CategoricalDistribution(values.values)
    low, high = values.span
    if isinstance(low, int) and isinstance(high, int):
        return optuna.distributions.IntDistribution(low, high, log=values.log)
    return optuna.distributions.FloatDistribution(low, high, log=values.log)


def _axis(values: Range, most: int) -> list[ParameterValue]:
    """Return the values of one parameter, at most `most` of a span."""
    if values.values is not None:
        return list(values.values)
    low, high = values.span
    cut = np.geomspace if values.log else np.linspace
    if not isinstance(low, int) or not isinstance(high, int):
        return [float(value) for value in cut(low, high, most)]
    if high - low < most:
        return list(range(low, high + 1))
    return [*sorted({round(value) for value in cut(low, high, most)})]


def _spans(space: Space) -> int:
    return sum(values.values is None for values in space.values())


def points(space: Space) -> list[Parameters] | None:
    """Return all candidates of a space of one number, or of listed values; else none."""
    if _spans(space) > 1:
        return None
    every = _product(space, POINTS)
    return every if len(every) <= MOST_POINTS else None


def grid(space: Space) -> list[Parameters]:
    """Return all candidates of a small space, or an even grid of about `GRID` of a large one."""
    exact = points(space)
    if exact is not None:
        return exact
    listed = math.prod(len(one.values) for one in space.values() if one.values is not None)
    each = max(2, int((GRID / max(listed, 1)) ** (1 / _spans(space))))
    return _product(space, each)


def _product(space: Space, most: int) -> list[Parameters]:
    axes = [_axis(values, most) for values in space.values()]
    return [dict(zip(space, chosen, strict=True)) for chosen in itertools.product(*axes)]


def spaces_of(defense: Defense, tune: Tune) -> tuple[Space, Space]:
    """Return the (outer, inner) space of a defense: the sweep file's, else its own suggestion.

    A decision parameter is replayed, unless a metric is wanted that needs a model trained after
    the decision.

    Raises:
        SpecError: if a parameter is unknown, or a bound breaks its rules.
    """
    kind = type(defense)
    decisions = decision_fields(kind)
    own = {name: Range.model_validate(rule) for name, rule in search_ranges(kind).items()}
    given = tune.parameters.get(defense.name)
    if given is None:
        given = {name: values for name, values in own.items() if name in decisions}
    space = {name: range_of(defense, name, values) for name, values in given.items()}
    scores = bool(defense.gives() & {"train_scores", "input_scores"})
    replayed = decisions if scores and not tune.needs_models else frozenset()
    return (
        {name: values for name, values in space.items() if name not in replayed},
        {name: values for name, values in space.items() if name in replayed},
    )


def own_values(defense: Defense, space: Space) -> Parameters:
    """Return the defense's own values of the parameters of a space."""
    return {name: getattr(defense, name) for name in space}


def inside(space: Space, parameters: Parameters) -> bool:
    """Return whether parameters lie in a space; Optuna itself takes any that are enqueued."""
    for name, values in space.items():
        spread = distribution(values)
        try:
            if not spread._contains(spread.to_internal_repr(parameters[name])):
                return False
        except (TypeError, ValueError):
            return False
    return True

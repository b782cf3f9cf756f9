"""The space that is searched, in two parts.

Parameters of the inner space are replayed on stored scores; those of the outer space need stages.
A parameter whose condition is not met keeps the defense's own value, and is no part of a candidate.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np
import optuna
from pydantic import ValidationError

from raysweep.defenses import Defense
from raysweep.errors import SpecError
from raysweep.methods import Method, decision_fields
from raysweep.sweep.ranges import Number, Parameters, ParameterValue, Range
from raysweep.sweep.searching import in_order, method_faults, searched_ranges
from raysweep.sweep.tuning import Tune

POINTS = 400  # of an exact sweep over one number
GRID = 2000  # of a grid over several numbers, for each candidate of an outer space
MOST_POINTS = 40_000
Space = Mapping[str, Range]
M = TypeVar("M", bound=Method)


# What Optuna holds


def distribution(values: Range) -> optuna.distributions.BaseDistribution:
    """Return Optuna's form of a range."""
    if values.listed is not None:
        return optuna.distributions.CategoricalDistribution([_choice(v) for v in values.listed])
    low, high = values.span
    if isinstance(low, int) and isinstance(high, int):
        step = values.spacing if isinstance(values.spacing, int) else 1
        if not values.log or step == 1:
            return optuna.distributions.IntDistribution(low, high, log=values.log, step=step)
    if values.log:  # Optuna knows no logarithmic steps: multiples are rounded to
        return optuna.distributions.FloatDistribution(low, high, log=True)
    return optuna.distributions.FloatDistribution(low, high, step=values.spacing)


def _choice(value: ParameterValue) -> str | int | float | bool | None:
    """Return a listed value as a database of Optuna's can hold it: a tuple as JSON."""
    return json.dumps(value) if isinstance(value, tuple) else value


def into_study(space: Space, parameters: Parameters) -> dict[str, ParameterValue]:
    """Return parameters as a study holds them."""
    return {name: _choice(value) for name, value in parameters.items() if name in space}


def from_study(space: Space, held: Parameters) -> dict[str, ParameterValue]:
    """Return the parameters that a study holds."""
    return {name: _parameter(space[name], value) for name, value in held.items()}


def _parameter(values: Range, held: ParameterValue) -> ParameterValue:
    if values.listed is not None:
        known = {_choice(one): one for one in values.listed if isinstance(one, tuple)}
        return known.get(held, held) if isinstance(held, str) else held
    assert isinstance(held, int | float), "values of a span are numbers"
    return values.nearest(held)


def inside(space: Space, parameters: Parameters, known: Parameters | None = None) -> bool:
    """Return whether parameters lie in a space; Optuna itself takes any that are enqueued."""
    for name in applicable(space, parameters, known):
        spread, values = distribution(space[name]), space[name]
        try:
            held = _choice(parameters[name])
            if not spread._contains(spread.to_internal_repr(held)):
                return False
            if values.listed is None and values.nearest(parameters[name]) != parameters[name]:  # type: ignore[arg-type]
                return False
        except (KeyError, TypeError, ValueError):
            return False
    return True


# Conditions


def applicable(space: Space, parameters: Parameters, known: Parameters | None = None) -> list[str]:
    """Return the parameters whose conditions are met.

    Args:
        space: what is searched.
        parameters: a candidate.
        known: what conditions may name beside it, the defense's own values among them.
    """
    if not any(values.when for values in space.values()):
        return list(space)
    standing, names = dict(known or {}), []
    for name in in_order(space):
        if space[name].applies(standing):
            names.append(name)
            if name in parameters:
                standing[name] = parameters[name]
    return names


def within(space: Space, parameters: Parameters, known: Parameters | None) -> Parameters:
    """Return a candidate without the parameters whose conditions are not met."""
    names = applicable(space, parameters, known)
    return {name: value for name, value in parameters.items() if name in names}


# Candidates


def _axis(values: Range, most: int) -> Sequence[ParameterValue]:
    """Return the values of one parameter, at most `most` of a span."""
    if values.listed is not None:
        return values.listed
    low, high = values.span
    cut = np.geomspace if values.log else np.linspace
    whole = isinstance(low, int) and isinstance(high, int)
    if values.spacing is not None:
        every = values.multiples(most + 1)
        cuts: Sequence[Number] = cut(low, high, most).tolist()
        return every if len(every) <= most else sorted({*map(values.nearest, cuts)})
    if not whole:
        return [float(value) for value in cut(low, high, most)]
    if high - low < most:
        return list(range(int(low), int(high) + 1))
    return sorted({round(value) for value in cut(low, high, most)})


def _spans(space: Space) -> int:
    return sum(values.listed is None for values in space.values())


def points(space: Space, known: Parameters | None = None) -> list[Parameters] | None:
    """Return all candidates of a space of one number, or of listed values; else none."""
    if _spans(space) > 1 or _count(space, POINTS) > MOST_POINTS:
        return None
    return _product(space, POINTS, known)


def grid(space: Space, known: Parameters | None = None) -> list[Parameters]:
    """Return all candidates of a small space, or an even grid of about `GRID` of a large one."""
    exact = points(space, known)
    if exact is not None:
        return exact
    listed = math.prod(len(one.listed) for one in space.values() if one.listed is not None)
    each = max(2, int((GRID / max(listed, 1)) ** (1 / max(_spans(space), 1))))
    return _product(space, each, known)


def covering(space: Space, most: int, known: Parameters | None = None) -> list[Parameters]:
    """Return an even grid from end to end of every range, as fine as `most` candidates allow.

    Raises:
        SpecError: if `most` are too few for both ends of each range with every listed value.
    """
    least = len(_product(space, 2, known))
    if least > most:
        raise SpecError(
            f"tune.trials: {most} candidates cannot cover the space of {', '.join(space)}: a grid "
            f"of both ends and every listed value has {least}; give trials: {least}, or another "
            f"sampler"
        )
    low, high = 2, max(most, 2)
    while low < high:
        middle = (low + high + 1) // 2
        fits = _fits(space, middle, most, known)
        low, high = (middle, high) if fits else (low, middle - 1)
    return _product(space, low, known)


def _fits(space: Space, each: int, most: int, known: Parameters | None) -> bool:
    """Return whether a grid of `each` values of every range has at most `most` candidates."""
    count = _count(space, each)
    conditional = any(values.when for values in space.values())
    if count > most and conditional and count <= MOST_POINTS:
        return len(_product(space, each, known)) <= most
    return count <= most


def _count(space: Space, most: int) -> int:
    return math.prod(len(_axis(values, most)) for values in space.values())


def _product(space: Space, most: int, known: Parameters | None) -> list[Parameters]:
    axes = [_axis(values, most) for values in space.values()]
    every = (dict(zip(space, chosen, strict=True)) for chosen in itertools.product(*axes))
    if not any(values.when for values in space.values()):
        return list(every)
    kept = (within(space, one, known) for one in every)
    return list({json.dumps(one): one for one in kept}.values())


def with_parameters(method: M, parameters: Parameters) -> M:
    """Return the method with other parameters, validated."""
    return type(method).model_validate({**method.model_dump(), **parameters})


def allowed(method: M, parameters: Parameters) -> M | None:
    """Return the method with other parameters; none if it refuses them."""
    try:
        return with_parameters(method, parameters)
    except ValidationError:
        return None


# What is searched of a method


def spaces_of(method: Method, tune: Tune) -> tuple[Space, Space]:
    """Return the (outer, inner) space of a method: the sweep file's, else its own suggestion.

    A decision parameter is replayed, unless a metric is wanted that needs a model trained after
    the decision, or a parameter that needs stages depends on it.

    Raises:
        SpecError: if a parameter is unknown, or a bound breaks its rules.
    """
    for path, message in method_faults(method, tune):
        raise SpecError(f"{'.'.join(map(str, ('tune', *path)))}: {message}")
    space = searched_ranges(method, tune)
    decides = isinstance(method, Defense) and bool(method.gives() - {"model"})
    replayed = decision_fields(type(method)) if decides and not tune.needs_models else frozenset()
    outer = {name for name in space if name not in replayed}
    while (
        asked := {other for name in outer for other in space[name].when if other in space} - outer
    ):
        outer |= asked
    return _part(space, outer.__contains__), _part(space, lambda name: name not in outer)


def _part(space: Space, chosen: Callable[[str], bool]) -> Space:
    return {name: values for name, values in space.items() if chosen(name)}


def own_values(method: Method, space: Space) -> Parameters:
    """Return the method's own values of the parameters of a space."""
    return {name: getattr(method, name) for name in space}

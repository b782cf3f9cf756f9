"""The ranges of a `tune` section against the parameters that they search."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import ValidationError

from raysweep.defenses import Defense
from raysweep.errors import SpecError
from raysweep.methods import load, search_ranges
from raysweep.sweep.faults import near, rule
from raysweep.sweep.tuning import Parameters, Range, Tune


def with_parameters(defense: Defense, parameters: Parameters) -> Defense:
    """Return the defense with other parameters, validated."""
    return type(defense).model_validate({**defense.model_dump(), **parameters})


def range_of(defense: Defense, name: str, values: Range) -> Range:
    """Return a range of one parameter, or the method's own suggestion if it says none.

    Raises:
        SpecError: if there is no such parameter, no suggestion, or a bound breaks its rules.
    """
    where = f"tune.parameters.{defense.name}"
    known = type(defense).model_fields
    if name not in known:
        raise SpecError(f"{where}.{name}: {name!r} is no parameter of it; {near(name, known)}")
    if values.suggested:
        own = search_ranges(type(defense))
        if name not in own:
            raise SpecError(
                f"{where}.{name}: the method suggests no range; give min and max, or values"
            )
        values = Range.model_validate(own[name])
    for bound in values.values or values.span:
        try:
            with_parameters(defense, {name: bound})
        except ValidationError as error:
            raise SpecError(
                f"{where}.{name}: {bound} is not allowed: {rule(error.errors()[0])}"
            ) from None
    return values


def check_ranges(tune: Tune, defenses: Iterable[Defense]) -> None:
    """Make sure that every range is one of a parameter that there is.

    A method that this sweep does not have, since it is a part of a larger one, is no fault.

    Raises:
        SpecError: names the parameter, the rule and the remedy.
    """
    named = {name: [d for d in defenses if d.name == name] for name in tune.parameters}
    for name, given in tune.parameters.items():
        try:
            load("defenses", name)
        except SpecError as error:
            raise SpecError(f"tune.parameters.{name}: {error}") from None
        for defense in named[name]:
            for parameter, values in given.items():
                range_of(defense, parameter, values)

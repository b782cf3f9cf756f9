"""The `tune` section against the defenses of its sweep: what is searched, and what it is judged by.

Every fault is told when the file is loaded, by the field that it lies in.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from pydantic import ValidationError

from raysweep.defenses import Defense, Gift
from raysweep.methods import available, decision_fields, search_ranges
from raysweep.sweep.faults import near, rule
from raysweep.sweep.ranges import Parameters, Range
from raysweep.sweep.tuning import COSTS, EVALUATED, SCORED, MetricName, Tune

Fault = tuple[tuple[str | int, ...], str]  # the path below `tune`, and the message


def searched_ranges(defense: Defense, tune: Tune) -> dict[str, Range]:
    """Return the ranges that are searched: the sweep file's, else the method's own of decisions.

    A range without bounds is the method's own, under the conditions that the sweep file gives.
    """
    kind = type(defense)
    own = {name: Range.model_validate(given) for name, given in search_ranges(kind).items()}
    given = tune.parameters.get(defense.name)
    if given is None:
        return {name: values for name, values in own.items() if name in decision_fields(kind)}
    return {
        name: _as_suggested(own[name], values) if values.suggested and name in own else values
        for name, values in given.items()
    }


def in_order(space: Mapping[str, Range]) -> list[str]:
    """Return the parameters of a space, each after those that its conditions name.

    Parameters whose conditions go in a circle are left out.
    """
    ordered: list[str] = []
    while free := [
        name for name, values in space.items()
        if name not in ordered and not ({*values.when} & {*space}) - {*ordered}
    ]:  # fmt: skip
        ordered += free
    return ordered


def _as_suggested(own: Range, given: Range) -> Range:
    return Range.model_validate({**own.pack(), **given.pack()}) if given.when else own


def defined_metrics(gives: Collection[Gift]) -> tuple[MetricName, ...]:
    """Return the metrics that a defense can have, from what it gives."""
    scores = bool({"train_scores", "input_scores"} & {*gives})
    verdict = "verdict" in gives
    judged: tuple[MetricName, ...] = (
        *(SCORED if scores else ()),
        *(("false_alarms",) if scores or verdict else ()),
        *(("verdict_correct",) if verdict else ()),
    )
    return (*judged, *EVALUATED, *COSTS)


def tuning_faults(tune: Tune, defenses: Sequence[Defense]) -> Iterator[Fault]:
    """Yield every fault of a `tune` section that follows from the defenses of the sweep."""
    names = sorted({defense.name for defense in defenses})
    known = available("defenses")
    for name in tune.parameters:
        if name not in {
            *names,
            *known,
        }:  # others may be in the larger sweep that this one is a part of
            yield ("parameters", name), f"{name!r} is no defense; {near(name, known)}"
    for number, point in enumerate(tune.first):
        for name in point.keys() - {*names}:
            yield (
                ("first", number, name),
                f"{name!r} is no defense of this sweep; one of: {', '.join(names)}",
            )
    for defense in defenses:
        yield from defense_faults(defense, tune)


def defense_faults(defense: Defense, tune: Tune) -> Iterator[Fault]:
    """Yield the faults of what is searched of one defense, and of what it is judged by."""
    space = searched_ranges(defense, tune)
    faults = [fault for name in space for fault in _range_faults(defense, name, space)]
    yield from faults
    for name in space.keys() - {*in_order(space)}:
        yield ("parameters", defense.name, name, "when"), "the conditions go in a circle"
    if not space:
        return
    yield from _metric_faults(defense, tune)
    if not faults:
        yield from _first_faults(defense, tune, space)


def _metric_faults(defense: Defense, tune: Tune) -> Iterator[Fault]:
    """Yield objectives and constraints that the defense can never have a value of."""
    gives = defense.gives()
    known = defined_metrics(gives)
    named: list[tuple[tuple[str | int, ...], MetricName]] = [
        *((("metric",), objective.name) for objective in tune.metric),
        *((("constraints", n), bound.metric) for n, bound in enumerate(tune.bounds)),
    ]
    for path, metric in named:
        if metric not in known:
            given = " and ".join(sorted(gives)) or "nothing"
            default = "" if path[0] in tune.model_fields_set else ", the default,"
            named_there = defense.name in tune.parameters
            yield (
                path,
                f"{metric}{default} is undefined for {defense.name}, which gives {given}; it has: "
                f"{', '.join(known)}"
                + ("" if named_there else "; or name the defenses to search in tune.parameters"),
            )


def _range_faults(defense: Defense, name: str, space: Mapping[str, Range]) -> Iterator[Fault]:
    """Yield the faults of one range: its name, its conditions, or its ends."""
    where, values = ("parameters", defense.name, name), space[name]
    fields = type(defense).model_fields
    if name not in fields:
        yield where, f"{name!r} is no parameter of it; {near(name, fields)}"
        return
    for other in values.when:
        if other not in fields or other == name:
            known = ", ".join(sorted({*fields} - {name}))
            yield (*where, "when"), f"{other!r} is no other parameter of it; one of: {known}"
            return
    if values.suggested:
        yield where, "the method suggests no range; give min and max, or values"
        return
    conditions = {other: allowed[0] for other, allowed in values.when.items()}
    for value in values.listed or values.span:
        broken = broken_rule(defense, {**conditions, name: value})
        # With other values of the other parameters that are searched it may be allowed.
        if broken is not None and (broken.field == name or len(space) == 1):
            yield where, f"{value} is not allowed: {broken.rule}"


def _first_faults(defense: Defense, tune: Tune, space: Mapping[str, Range]) -> Iterator[Fault]:
    """Yield first candidates that hold what is not searched, or is not allowed."""
    for number, point in enumerate(tune.first):
        given = point.get(defense.name, {})
        for name in given.keys() - space.keys():
            yield (
                ("first", number, defense.name, name),
                f"{name!r} is not searched; one of: {', '.join(space)}",
            )
        if (broken := broken_rule(defense, given)) is not None:
            yield ("first", number, defense.name), f"{given} is not allowed: {broken.rule}"


@dataclass(frozen=True)
class BrokenRule:
    """A rule that parameters break: of one field, or of several together (no field)."""

    field: str | None
    rule: str


def broken_rule(defense: Defense, parameters: Parameters) -> BrokenRule | None:
    """Return the rule that a defense with other parameters breaks; none if it is allowed."""
    try:
        type(defense).model_validate({**defense.model_dump(), **parameters})
    except ValidationError as error:
        first = error.errors()[0]
        return BrokenRule(str(first["loc"][0]) if first["loc"] else None, rule(first))
    return None

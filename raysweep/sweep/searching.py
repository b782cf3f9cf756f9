"""The `tune` section against the methods of its sweep: what is searched, and what it is judged by.

Every fault is told when the file is loaded, by the field that it lies in.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from pydantic import ValidationError

from raysweep.attacks import Attack
from raysweep.datasets import Dataset
from raysweep.defenses import Defense, Gift
from raysweep.methods import Method, available, decision_fields, search_ranges
from raysweep.sweep.faults import near, rule
from raysweep.sweep.ranges import Parameters, Range
from raysweep.sweep.tuning import ATTACKED, COSTS, EVALUATED, SCORED, MetricName, Tune

Fault = tuple[tuple[str | int, ...], str]  # the path below `tune`, and the message


def searched_ranges(method: Method, tune: Tune) -> dict[str, Range]:
    """Return the ranges that are searched: the sweep file's, else the method's own of decisions.

    A range without bounds is the method's own, under the conditions that the sweep file gives.
    """
    kind = type(method)
    own = {name: Range.model_validate(given) for name, given in search_ranges(kind).items()}
    given = tune.parameters.get(method.name)
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


def tuning_faults(
    tune: Tune,
    defenses: Sequence[Defense],
    attacks: Sequence[Attack] = (),
    datasets: Sequence[Dataset] = (),
) -> Iterator[Fault]:
    """Yield every fault of a `tune` section that follows from the methods of the sweep."""
    attacking = tune.who == "attack"
    searched: Sequence[Method] = attacks if attacking else defenses
    names = sorted({method.name for method in searched})
    known = available("attacks" if attacking else "defenses")
    for name in tune.parameters:
        if name not in {
            *names,
            *known,
        }:  # others may be in the larger sweep that this one is a part of
            yield ("parameters", name), f"{name!r} is no {tune.who}; {near(name, known)}"
    for number, point in enumerate(tune.first):
        for name in point.keys() - {*names}:
            yield (
                ("first", number, name),
                f"{name!r} is no {tune.who} of this sweep; one of: {', '.join(names)}",
            )
    for method in searched:
        yield from method_faults(method, tune)
    yield from _attacker_faults(tune, defenses, datasets) if attacking else _defender_faults(tune)


def method_faults(method: Method, tune: Tune) -> Iterator[Fault]:
    """Yield the faults of what is searched of one method, and of what a defense is judged by."""
    space = searched_ranges(method, tune)
    faults = [fault for name in space for fault in _range_faults(method, name, space)]
    yield from faults
    for name in space.keys() - {*in_order(space)}:
        yield ("parameters", method.name, name, "when"), "the conditions go in a circle"
    if not space:
        return
    if isinstance(method, Defense):
        yield from _metric_faults(method, tune)
    if not faults:
        yield from _first_faults(method, tune, space)


def named_metrics(tune: Tune) -> list[tuple[tuple[str | int, ...], MetricName]]:
    """Return every metric that is improved or bounded, by the field that names it."""
    return [
        *((("metric",), objective.name) for objective in tune.metric),
        *((("constraints", n), bound.metric) for n, bound in enumerate(tune.bounds)),
    ]


def _defender_faults(tune: Tune) -> Iterator[Fault]:
    """Yield the fields of an attacker's search that stand in a defender's."""
    for field in ("against", "budget"):
        if getattr(tune, field) != Tune.model_fields[field].default:
            yield (field,), f"goes with who: attack alone; remove {field}, or add who: attack"


def _attacker_faults(
    tune: Tune, defenses: Sequence[Defense], datasets: Sequence[Dataset]
) -> Iterator[Fault]:
    """Yield metrics that an attacker's search cannot have, and bounds that it lacks."""
    for field in ("labels", "hold_out"):
        if getattr(tune, field) != Tune.model_fields[field].default:
            yield (
                (field,),
                "goes with who: defense alone: an attacker knows its own poison, and one defense "
                f"after the other is held out; remove {field}",
            )
    if not any((bound.metric, bound.sign) == ("victim_asr", ">=") for bound in tune.bounds):
        yield (
            ("constraints",),
            "must bound victim_asr from below, such as victim_asr >= 0.9: poison that does not "
            "work evades every defense",
        )
    for path, metric in named_metrics(tune):
        if metric == "ssim" and any(dataset.DOMAIN != "images" for dataset in datasets):
            other = next(dataset for dataset in datasets if dataset.DOMAIN != "images")
            yield (
                path,
                f"ssim is undefined on dataset {other.name}, which holds {other.DOMAIN}; it has: "
                f"l2, linf",
            )
        if tune.against == "tuned" and metric in (*EVALUATED, "verdict_correct"):
            yield (
                path,
                f"{metric} is undefined under against: tuned, whose decisions are replayed for "
                f"TPR on stored scores; one of: {', '.join(SCORED)}, or against: own",
            )
        for defense in defenses:
            known = attacked_metrics(defense.gives())
            if defense.gives() and metric not in known:
                yield (
                    path,
                    f"{metric} is undefined for {defense.name}, which gives "
                    f"{' and '.join(sorted(defense.gives()))}; it has: {', '.join(known)}",
                )


def attacked_metrics(gives: Collection[Gift]) -> tuple[MetricName, ...]:
    """Return the metrics that an attack can have against a defense, from what that gives.

    A verdict alone changes neither the model nor what it answers.
    """
    unchanged = EVALUATED if {*gives} == {"verdict"} else ()
    known = (name for name in defined_metrics(gives) if name not in (*unchanged, "false_alarms"))
    return (*known, *ATTACKED)


def _metric_faults(defense: Defense, tune: Tune) -> Iterator[Fault]:
    """Yield objectives and constraints that the defense can never have a value of."""
    gives = defense.gives()
    known = defined_metrics(gives)
    for path, metric in named_metrics(tune):
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


def _range_faults(method: Method, name: str, space: Mapping[str, Range]) -> Iterator[Fault]:
    """Yield the faults of one range: its name, its conditions, or its ends."""
    where, values = ("parameters", method.name, name), space[name]
    fields = type(method).model_fields
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
        broken = broken_rule(method, {**conditions, name: value})
        # With other values of the other parameters that are searched it may be allowed.
        if broken is not None and (broken.field == name or len(space) == 1):
            yield where, f"{value} is not allowed: {broken.rule}"


def _first_faults(method: Method, tune: Tune, space: Mapping[str, Range]) -> Iterator[Fault]:
    """Yield first candidates that hold what is not searched, or is not allowed."""
    for number, point in enumerate(tune.first):
        given = point.get(method.name, {})
        for name in given.keys() - space.keys():
            yield (
                ("first", number, method.name, name),
                f"{name!r} is not searched; one of: {', '.join(space)}",
            )
        if (broken := broken_rule(method, given)) is not None:
            yield ("first", number, method.name), f"{given} is not allowed: {broken.rule}"


@dataclass(frozen=True)
class BrokenRule:
    """A rule that parameters break: of one field, or of several together (no field)."""

    field: str | None
    rule: str


def broken_rule(method: Method, parameters: Parameters) -> BrokenRule | None:
    """Return the rule that a method with other parameters breaks; none if it is allowed."""
    try:
        type(method).model_validate({**method.model_dump(), **parameters})
    except ValidationError as error:
        first = error.errors()[0]
        return BrokenRule(str(first["loc"][0]) if first["loc"] else None, rule(first))
    return None

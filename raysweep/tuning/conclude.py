"""The end of a tuning run: held-out instances are opened, and what tuning gained is told."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from raysweep.errors import PlanError
from raysweep.identity import canonical, digest
from raysweep.metrics.intervals import t_interval, wilson
from raysweep.sweep.spec import Sweep
from raysweep.sweep.tuning import COSTS, CostName, MetricName, Metrics, Tune
from raysweep.tuning.instances import Instance
from raysweep.tuning.ranking import Tried, best, joined
from raysweep.tuning.search import Bench, Search
from raysweep.tuning.space import Values, points, with_parameters

NOTHING = "nothing"
SUFFIX = "-tuned"
MOST_CHARACTERS = 64  # of a sweep's name
CURVE_POINTS = 80
FEW = 5  # values under which a range says more than an interval
Row = dict[str, Any]


def rows(searches: Sequence[Search], bench: Bench) -> list[Row]:
    """Return a row for each search and point of its front: what its parameters do where held out.

    `tuned`, `default` and `oracle` are metrics on the held-out instances: with the parameters that
    the search chose, with the method's own, and with the best for these instances of all that any
    search of this defense tried. An interval stands beside the first.
    """
    return [row for search in searches for row in _rows(search, searches, bench)]


def _rows(search: Search, searches: Sequence[Search], bench: Bench) -> Iterable[Row]:
    settings, own = search.settings, search.own()
    about: Row = {
        "defense": search.defense.label, "labels": settings.labels,
        "held_out": search.part or NOTHING,
    }  # fmt: skip
    try:
        default = _held(search, own, bench)
    except PlanError as error:
        note = search.failures[0] if search.failures else str(error)
        nothing = {"tried": 0, "seconds": 0.0, "gpu_seconds": 0.0}
        yield {**about, "point": 0, "parameters": own, **nothing, "note": note}
        return
    chosen = search.chosen(bench)
    note = _note(search, chosen)
    ideal = _oracle(search, searches, bench)
    spent: Row = {cost: _spent(search, bench, cost) for cost in COSTS}
    tried = 0 if settings.labels == "clean_only" else len(search.tried(bench))
    for point, values in enumerate(chosen or [own]):
        held = _held(search, values, bench)
        row = {**about, "point": point, "parameters": values, "tried": tried, **spent, "note": note}
        for who, found in (("tuned", held), ("default", default), ("oracle", ideal)):
            mean = joined(found, settings.over)
            row |= {f"{who}_{name}": mean[name] for name in _shown(settings)}
        for name in _shown(settings):
            row[f"tuned_{name}_low"], row[f"tuned_{name}_high"] = _interval(
                [one[name] for one in held], name, search, bench
            )
        yield row


def means(table: Sequence[Row], settings: Tune) -> list[Row]:
    """Return a row for each defense: means over what was held out, and how often bounds held.

    Of a Pareto front, its first point; searches without metrics there are left out.
    """
    found = []
    for defense in dict.fromkeys(row["defense"] for row in table):
        held = [
            row for row in table
            if row["defense"] == defense and row["held_out"] != NOTHING and row["point"] == 0
            and f"tuned_{_shown(settings)[0]}" in row
        ]  # fmt: skip
        if len(held) < 2:
            continue
        kept = {
            who: sum(
                all(b.excess({b.metric: row[f"{who}_{b.metric}"]}) <= 0 for b in settings.bounds)
                for row in held
            )
            for who in ("tuned", "default")
        }
        merged: Row = {
            "defense": defense, "labels": settings.labels, "held_out": f"mean of {len(held)}",
            "point": 0, "parameters": {}, "tried": sum(row["tried"] for row in held),
            **{cost: math.fsum(row[cost] for row in held) for cost in COSTS},
            "note": f"constraints hold: tuned {kept['tuned']}, own {kept['default']}",
        }  # fmt: skip
        for name in _shown(settings):
            for who in ("tuned", "default", "oracle"):
                known = [row[f"{who}_{name}"] for row in held]
                known = [value for value in known if not math.isnan(value)]
                merged[f"{who}_{name}"] = math.fsum(known) / len(known) if known else math.nan
        found.append(merged)
    return found


def _shown(settings: Tune) -> tuple[MetricName, ...]:
    """Return the metrics of a table: those that are wanted, and always TPR and FPR."""
    return tuple(dict.fromkeys((*settings.wanted, "tpr", "fpr")))


def _note(search: Search, chosen: list[Values]) -> str:
    if chosen:
        return ""
    if search.settings.labels == "clean_only":
        return "scores no clean samples: the method's own parameters"
    return f"every candidate failed: {search.failures[0]}" if search.failures else "nothing tried"


def _instances(search: Search, values: Values, bench: Bench) -> list[Instance]:
    """Return the held-out instances, open, as a defense with these outer parameters found them."""
    staged = {name: value for name, value in values.items() if name in search.outer}
    defense = with_parameters(search.defense, staged)
    return [bench.instance(replace(place, defense=defense)) for place in search.held]


def _held(search: Search, values: Values, bench: Bench) -> list[Metrics]:
    chosen = with_parameters(search.defense, values)
    return [bench.measured(chosen, one) for one in _instances(search, values, bench)]


def _oracle(search: Search, searches: Sequence[Search], bench: Bench) -> list[Metrics]:
    """Return the metrics of the best on the held-out instances of all that was tried anywhere."""
    settings = search.settings
    union = {canonical(search.own()): search.own()}
    for other in searches:
        if other.defense == search.defense:
            values = other.chosen(bench)
            if settings.labels != "clean_only":
                values = [*values, *(one.parameters for one in other.tried(bench))]
            union |= {canonical(one): one for one in values}
    evaluated: list[tuple[Tried, list[Metrics]]] = []
    for parameters in union.values():
        try:
            held = _held(search, parameters, bench)
        except PlanError:  # never run where this search is reported on
            continue
        merged = joined(held, settings.over)
        evaluated.append((Tried(parameters=parameters, metrics=merged), held))
    ideal = best([one for one, _ in evaluated], settings)
    return next(held for one, held in evaluated if one is ideal)


def _spent(search: Search, bench: Bench, cost: CostName) -> float:
    """Return the seconds, or GPU seconds, of the stages that a search asked for."""
    if search.study is None:
        return 0.0
    spent = [one.metrics.get(cost, math.nan) for one in search.tried(bench)]
    return float(np.nansum(spent)) * len(search.places)


def _interval(
    values: list[float], metric: str, search: Search, bench: Bench
) -> tuple[float, float]:
    """Return a 95 % interval of five values or more, the range of fewer, Wilson's of one share."""
    known = np.array([v for v in values if not math.isnan(v)])
    if len(known) >= FEW:
        return t_interval(known)
    if len(known) != 1:
        return (float(known.min()), float(known.max())) if len(known) else (math.nan, math.nan)
    if metric not in ("tpr", "fpr"):
        return math.nan, math.nan
    instance = bench.instance(search.held[0])
    counts = [len(one) for one in instance.sorted_inputs] if instance.inputs else instance.counts
    n = counts[0] if metric == "tpr" else counts[1]
    return wilson(round(known[0] * n), n) if n else (math.nan, math.nan)


def accounts(searches: Sequence[Search], bench: Bench) -> list[Row]:
    """Return how each search went: its candidates, what mattered, and its threshold's curve."""
    told = []
    for search in searches:
        account: Row = {"defense": search.defense.label, "held_out": search.part or NOTHING}
        if search.study is not None:
            account["history"] = search.study.history()
            account["importance"] = search.study.importance()
        try:
            account["curve"] = _curve(search, bench)
        except PlanError:
            account["curve"] = None
        told.append(account)
    return told


def _curve(search: Search, bench: Bench) -> Row | None:
    """Return metrics against the one decision that is searched, where the search is reported on."""
    ranges = [name for name, rule in search.inner.items() if "values" not in rule]
    chosen = search.chosen(bench)
    if len(search.inner) != 1 or len(ranges) != 1 or not chosen:
        return None
    (name,) = ranges
    outer = {key: value for key, value in chosen[0].items() if key in search.outer}
    instances = _instances(search, outer, bench)
    every = points(search.inner) or []
    thinned = every[:: max(1, len(every) // CURVE_POINTS)]
    curve = []
    for values in thinned:
        defense = with_parameters(search.defense, {**outer, **values})
        mean = bench.joined(defense, instances)
        curve.append({"value": values[name], "tpr": mean["tpr"], "fpr": mean["fpr"]})
    return {"parameter": name, "chosen": chosen[0][name], "points": curve}


def tuned_sweep(sweep: Sweep, table: Sequence[Row]) -> Sweep:
    """Return the sweep with the parameters that were tuned on everything, and without `tune`.

    It is named `<name>-tuned`: under the old name it would take the place of the sweep's records.
    Of a Pareto front, the point that is best by the first objective.
    """
    final = {
        row["defense"]: row["parameters"]
        for row in table
        if row["held_out"] == NOTHING and row["point"] == 0
    }
    defenses = tuple(
        with_parameters(defense, final[defense.label]) if defense.label in final else defense
        for defense in sweep.defenses
    )
    named = tuned_name(sweep.name)
    return sweep.model_copy(update={"name": named, "defenses": defenses, "tune": None})


def tuned_name(name: str) -> str:
    """Return `<name>-tuned`; a name that would be longer than names may be is cut, with a digest.

    Two long names that begin alike still have two tuned ones.
    """
    if len(name) + len(SUFFIX) > MOST_CHARACTERS:
        mark = f"-{digest(name)[:8]}"
        name = name[: MOST_CHARACTERS - len(mark) - len(SUFFIX)] + mark
    return name + SUFFIX

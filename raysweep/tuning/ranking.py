"""Ranking of candidates: metrics over instances, constraints, one objective or a Pareto front."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raysweep.sweep.ranges import Parameters
from raysweep.sweep.tuning import MetricName, Metrics, Tune, better


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """Parameters and their metrics over the instances that a search may see."""

    parameters: Parameters
    metrics: Metrics


def joined(rows: Sequence[Metrics], tune: Tune) -> dict[MetricName, float]:
    """Return the mean, or the worst, of each metric over instances; NaN where none is defined.

    The worst is so for the one who searches.
    """
    return {name: _joined(name, [row[name] for row in rows], tune) for name in rows[0]}


def _joined(metric: MetricName, values: list[float], tune: Tune) -> float:
    known = [v for v in values if not math.isnan(v)]
    if not known:
        return math.nan
    if tune.over == "worst":
        return max(known) if better(metric, tune.who) == "minimize" else min(known)
    return math.fsum(known) / len(known)


def excess(metrics: Metrics, tune: Tune) -> float:
    """Return by how much constraints are broken; 0 where all hold."""
    return sum(max(bound.excess(metrics), 0.0) for bound in tune.bounds)


def losses(metrics: Metrics, tune: Tune) -> tuple[float, ...]:
    """Return the objectives so that smaller is better."""
    return tuple(objective.loss(metrics) for objective in tune.metric)


def rank(metrics: Metrics, tune: Tune) -> tuple[float, ...]:
    """Return a sort key, the better first: constraints before objectives, the first before all."""
    return excess(metrics, tune), *losses(metrics, tune)


def best(tried: Sequence[Evaluated], tune: Tune) -> Evaluated:
    """Return the best: of those that break constraints least, by the first objective."""
    return min(tried, key=lambda one: rank(one.metrics, tune))


def front(tried: Sequence[Evaluated], tune: Tune) -> list[Evaluated]:
    """Return the Pareto front of those that keep all constraints, the best by `rank` first.

    If none keeps them, the one that breaks them least. Of equals the first tried stands.
    """
    first = best(tried, tune)
    if len(tune.metric) == 1 or excess(first.metrics, tune) > 0:
        return [first]
    kept = [one for one in tried if excess(one.metrics, tune) == 0]
    ordered = sorted(kept, key=lambda one: rank(one.metrics, tune))
    values = np.array([losses(one.metrics, tune) for one in ordered])
    chosen: list[int] = []
    for number, value in enumerate(values):
        # Nothing later in this order can dominate it.
        better = values[chosen]
        if not len(better) or not (better <= value).all(axis=1).any():
            chosen.append(number)
    return [ordered[number] for number in chosen]

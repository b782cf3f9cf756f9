"""What is better: metrics over instances, constraints, one objective or a Pareto front."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raysweep.sweep.tuning import SMALLER_IS_BETTER, MetricName, Metrics, Tune
from raysweep.tuning.space import Values


@dataclass(frozen=True, kw_only=True)
class Tried:
    """Parameters and their metrics over the instances that a search may see."""

    parameters: Values
    metrics: Metrics


def joined(rows: Sequence[Metrics], over: str) -> dict[MetricName, float]:
    """Return the mean, or the worst, of each metric over instances; NaN where none is defined."""
    return {name: _joined(name, [row[name] for row in rows], over) for name in rows[0]}


def _joined(metric: MetricName, values: list[float], over: str) -> float:
    known = [v for v in values if not math.isnan(v)]
    if not known:
        return math.nan
    if over == "worst":
        return max(known) if metric in SMALLER_IS_BETTER else min(known)
    return math.fsum(known) / len(known)


def excess(metrics: Metrics, settings: Tune) -> float:
    """Return by how much constraints are broken; 0 where all hold."""
    return sum(max(bound.excess(metrics), 0.0) for bound in settings.bounds)


def losses(metrics: Metrics, settings: Tune) -> tuple[float, ...]:
    """Return the objectives so that smaller is better."""
    return tuple(objective.loss(metrics) for objective in settings.metric)


def rank(metrics: Metrics, settings: Tune) -> tuple[float, ...]:
    """Return what sorts the better first: constraints before objectives, the first before all."""
    return excess(metrics, settings), *losses(metrics, settings)


def best(tried: Sequence[Tried], settings: Tune) -> Tried:
    """Return the best: of those that break constraints least, by the first objective."""
    return min(tried, key=lambda one: rank(one.metrics, settings))


def front(tried: Sequence[Tried], settings: Tune) -> list[Tried]:
    """Return the Pareto front of those that keep all constraints, the best by `rank` first.

    If none keeps them, the one that breaks them least. Of equals the first tried stands.
    """
    first = best(tried, settings)
    if len(settings.metric) == 1 or excess(first.metrics, settings) > 0:
        return [first]
    kept = [one for one in tried if excess(one.metrics, settings) == 0]
    ordered = sorted(kept, key=lambda one: rank(one.metrics, settings))
    values = np.array([losses(one.metrics, settings) for one in ordered])
    chosen: list[int] = []
    for number, value in enumerate(values):
        # Nothing later in this order can dominate it.
        better = values[chosen]
        if not len(better) or not (better <= value).all(axis=1).any():
            chosen.append(number)
    return [ordered[number] for number in chosen]

"""Intervals of confidence, by the unit that was drawn: inputs of one model, seeds, attacks.

Everything that is printed with an interval has it from here. `benchmarks/coverage.py` simulates how
often each covers the truth; where none covers it in 92 to 99 % of cases, there is none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from raysweep.arrays import Floats

Unit = Literal["inputs", "seeds", "rates", "attacks", ""]
Bounds = tuple[float, float]
LEVEL = 0.95
FEWEST = 3  # values from which an interval says something
NONE: Bounds = (math.nan, math.nan)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean of shares or scores within [0, 1], and how sure it is.

    Attributes:
        value: the mean; NaN where nothing is defined.
        low, high: its 95 % interval; NaN where no interval is honest.
        n: how many of the unit there are.
        unit: the thing that was drawn: test inputs of one model, models (seeds), rates or families
            of attacks; empty where nothing is defined.
        values: the value of each seed, rate or attack; of a single model, its own.
    """

    value: float
    low: float
    high: float
    n: int
    unit: Unit
    values: tuple[float, ...]

    @property
    def bounded(self) -> bool:
        """Whether it has an interval."""
        return not math.isnan(self.low)


NOTHING = Estimate(value=math.nan, low=math.nan, high=math.nan, n=0, unit="", values=())


def _score(p: float, n: float, z: float) -> Bounds:
    """Return the score interval of a share of n cases, at a normal or Student's quantile z."""
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, min(p, middle - half)), min(1.0, max(p, middle + half))


def _normal(level: float) -> float:
    from scipy import special

    return float(special.ndtri((1 + level) / 2))


def _student(level: float, freedom: int) -> float:
    from scipy import special

    return float(special.stdtrit(freedom, (1 + level) / 2))


def wilson(successes: int, n: int, level: float = LEVEL) -> Bounds:
    """Return the Wilson score interval of a proportion; n must be positive."""
    if not 0 <= successes <= n or n <= 0:
        raise ValueError(f"0 <= successes <= n and n > 0 must hold, got {successes} of {n}")
    return _score(successes / n, n, _normal(level))


def of_model(value: float, cases: float, level: float = LEVEL) -> Estimate:
    """Return the estimate of one model's share of `cases` inputs; NaN cases: it is no share."""
    if math.isnan(value):
        return NOTHING
    known = cases > 0
    low, high = wilson(round(value * cases), int(cases), level) if known else NONE
    return Estimate(
        value=value, low=low, high=high, n=int(cases) if known else 1,
        unit="inputs" if known else "seeds", values=(value,),
    )  # fmt: skip


def of_seeds(values: Sequence[float], cases: Sequence[float], level: float = LEVEL) -> Estimate:
    """Return the estimate over the models of one cell, a share of `cases` inputs each.

    One model has Wilson's interval of its inputs. Two have none: both are shown. Three and more
    have a score interval whose effective number of cases is what explains the variance between
    the models, and never more than their inputs together.

    Args:
        values: one a model, within [0, 1]; NaN does not count.
        cases: (same length) the inputs behind each value; NaN where it is no share of inputs.
        level: of confidence.
    """
    known = [(v, c) for v, c in zip(values, cases, strict=True) if math.isfinite(v)]
    if len(known) <= 1:
        return of_model(*known[0], level) if known else NOTHING
    shares = np.array([value for value, _ in known])
    total = sum(count for _, count in known)
    low, high = mean_interval(shares, total, level)
    return Estimate(
        value=float(shares.mean()), low=low, high=high, n=len(known), unit="seeds",
        values=tuple(shares.tolist()),
    )  # fmt: skip


def of_attacks(values: Sequence[float], level: float = LEVEL) -> Estimate:
    """Return the estimate over families of attacks, of the mean within each; NaN does not count."""
    known = np.array([value for value in values if math.isfinite(value)])
    if not len(known):
        return NOTHING
    low, high = mean_interval(known, math.nan, level)
    return Estimate(
        value=float(known.mean()), low=low, high=high, n=len(known), unit="attacks",
        values=tuple(known.tolist()),
    )  # fmt: skip


def mean_interval(values: Floats, cases: float, level: float = LEVEL) -> Bounds:
    """Return an interval of the mean of values (n,) within [0, 1]; NaN where none is honest.

    Args:
        values: independent draws.
        cases: the inputs behind all of them together; NaN where they are no shares.
        level: of confidence.
    """
    n = len(values)
    if n < FEWEST:
        return NONE
    mean = float(values.mean())
    room = mean * (1 - mean)
    between = float(values.var(ddof=1)) / n
    within = room / cases if cases > 0 else 0.0
    if max(between, within) <= 0:
        return _score(mean, cases, _student(level, n - 1)) if cases > 0 else NONE
    return _score(mean, room / max(between, within), _student(level, n - 1))


def t_interval(values: Floats, level: float = LEVEL) -> Bounds:
    """Return the t interval of the mean of differences (n,); NaN for fewer than two."""
    n = len(values)
    if n < 2:
        return NONE
    mean, error = float(values.mean()), float(values.std(ddof=1)) / math.sqrt(n)
    half = _student(level, n - 1) * error
    return mean - half, mean + half


def difference(one: Estimate, other: Estimate) -> Bounds:
    """Return the interval of `one - other` from the two intervals, as if they were independent.

    R. G. Newcombe: Interval estimation for the difference between independent proportions, 1998,
    method 10. Of two defenses on one victim it is too wide rather than too narrow: their errors
    go together.
    """
    mean = one.value - other.value
    down = math.hypot(one.value - one.low, other.high - other.value)
    up = math.hypot(one.high - one.value, other.value - other.low)
    return max(-1.0, mean - down), min(1.0, mean + up)

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
FEWEST = 3  # models from which there is an interval over seeds
FEWEST_FAMILIES = 10  # of attacks: of fewer, none covers where some attacks are stopped, some not
T_ERROR = 0.6  # of the error of an interval is left to Student's; skewed shares take the rest
ROUNDING = 1e-18  # variance of values that are all the same
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


def _student(level: float, freedom: float) -> float:
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
    have the score interval of `mean_interval`.

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
    """Return the estimate over families of attacks, of the mean within each; NaN does not count.

    Fewer than ten have no interval: their values are shown.
    """
    known = np.array([value for value in values if math.isfinite(value)])
    if not len(known):
        return NOTHING
    low, high = mean_interval(known, math.nan, level) if len(known) >= FEWEST_FAMILIES else NONE
    return Estimate(
        value=float(known.mean()), low=low, high=high, n=len(known), unit="attacks",
        values=tuple(known.tolist()),
    )  # fmt: skip


def mean_interval(values: Floats, cases: float, level: float = LEVEL) -> Bounds:
    """Return an interval of the mean of values (n,) within [0, 1]; NaN for fewer than three.

    The score interval of as many cases as explain the variance of the mean, so that its bounds lie
    within [0, 1]. The variance between the values has Student's quantile; where it is below the
    variance that the inputs alone explain, that one takes its place, with the normal quantile.
    Values that are all the same have an interval only by their inputs.

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
    if between > within and between > ROUNDING:
        return _score(mean, room / between, _student(level, n - 1))
    return _score(mean, cases, _normal(level)) if cases > 0 else NONE


def t_interval(values: Floats, level: float = LEVEL) -> Bounds:
    """Return the t interval of the mean of values (n,); NaN for fewer than two."""
    n = len(values)
    if n < 2:
        return NONE
    mean, error = float(values.mean()), float(values.std(ddof=1)) / math.sqrt(n)
    half = _student(level, n - 1) * error
    return mean - half, mean + half


def paired_interval(differences: Floats, level: float = LEVEL) -> Bounds:
    """Return an interval, within [-1, 1], of the mean of paired differences (n,) of shares.

    Student's at a higher level, which skewed differences bring down to `level`; NaN for fewer than
    three, and where all are the same.
    """
    if len(differences) < FEWEST or float(differences.var()) <= ROUNDING:
        return NONE
    low, high = t_interval(differences, 1 - T_ERROR * (1 - level))
    return max(-1.0, low), min(1.0, high)


def stratified_interval(strata: Sequence[Floats], level: float = LEVEL) -> Bounds:
    """Return an interval of the mean of the means of strata, each drawn from by itself.

    Student's, by the variance within the strata: what lies between them was chosen, not drawn. NaN
    where a stratum has one value, or none has two that differ.

    Args:
        strata: differences of shares, (n,) for each.
        level: of confidence.
    """
    if not strata or min(map(len, strata)) < 2:
        return NONE
    parts = np.array([part.var(ddof=1) / len(part) for part in strata]) / len(strata) ** 2
    if parts.sum() <= ROUNDING:
        return NONE
    # Satterthwaite's degrees of freedom.
    freedom = parts.sum() ** 2 / sum(
        v**2 / (len(part) - 1) for v, part in zip(parts, strata, strict=True)
    )
    mean = float(np.mean([part.mean() for part in strata]))
    half = _student(level, freedom) * math.sqrt(parts.sum())
    return max(-1.0, mean - half), min(1.0, mean + half)


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

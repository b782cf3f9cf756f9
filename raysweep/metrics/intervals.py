"""Intervals of confidence: Wilson for a share, Student for a mean."""

from __future__ import annotations

import math

from raysweep.arrays import Floats

FEW = 5  # values under which their range says more than an interval


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Return the 95 % Wilson score interval of a proportion; n must be positive."""
    if not 0 <= successes <= n or n <= 0:
        raise ValueError(f"0 <= successes <= n and n > 0 must hold, got {successes} of {n}")
    z = 1.959963984540054
    p, z2 = successes / n, z * z
    middle = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = z * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return max(0.0, middle - half), min(1.0, middle + half)


def t_interval(values: Floats) -> tuple[float, float]:
    """Return the 95 % t interval of the mean of values (n,); NaN for fewer than two."""
    from scipy import stats

    n = len(values)
    if n < 2:
        return math.nan, math.nan
    mean, error = float(values.mean()), float(values.std(ddof=1)) / math.sqrt(n)
    half = float(stats.t.ppf(0.975, n - 1)) * error
    return mean - half, mean + half

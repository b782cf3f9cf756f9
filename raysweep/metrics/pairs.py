"""Tests and intervals of paired differences: sign flips, Holm, McNemar, ranks over settings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raysweep.arrays import Bools, Floats

FLIPS = 9999  # drawn where there are more ways to flip the signs


def sign_flips(differences: Floats) -> float:
    """Return the two-sided p of a permutation test: no difference has a direction.

    Every sign may be flipped where nothing is different in truth. All 2^n ways are counted while
    there are at most 9,999, else as many are drawn, always the same. NaN for no differences.

    Args:
        differences: (n,) one of each independent pair.
    """
    n = len(differences)
    if n == 0:
        return math.nan
    if 2**n <= FLIPS:
        ways = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
    else:
        ways = np.random.default_rng(0).integers(0, 2, (FLIPS, n))
    sums = np.abs((1 - 2 * ways) @ differences)
    reached = sums >= abs(float(differences.sum())) - 1e-12
    # Of drawn ways, the observed one is counted too: p is never 0.
    return float(reached.mean() if 2**n <= FLIPS else (reached.sum() + 1) / (FLIPS + 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values after Holm's correction for all of them; NaN is none of them.

    S. Holm: A simple sequentially rejective multiple test procedure, 1979.
    """
    known = [n for n, p in enumerate(p_values) if not math.isnan(p)]
    corrected, largest = [math.nan] * len(p_values), 0.0
    for turn, n in enumerate(sorted(known, key=lambda n: p_values[n])):
        largest = max(largest, min(1.0, p_values[n] * (len(known) - turn)))
        corrected[n] = largest
    return corrected


def mcnemar(one: Bools, other: Bools) -> float:
    """Return the exact two-sided p of McNemar's test on paired outcomes (n,); 1 without discord."""
    from scipy import stats

    only_one, only_other = int((one & ~other).sum()), int((other & ~one).sum())
    if only_one + only_other == 0:
        return 1.0
    return float(stats.binomtest(only_one, only_one + only_other, 0.5).pvalue)


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """Mean ranks of several over blocks, 1 the best, as a critical-difference diagram shows them.

    Attributes:
        ranks: (k,) mean ranks; ties share theirs.
        blocks: over how many.
        p: of Friedman's test that all ranks are alike; NaN for fewer than three, or two blocks.
        critical: the difference of mean ranks from which two differ, by Nemenyi's test at 5 %.
    """

    ranks: tuple[float, ...]
    blocks: int
    p: float
    critical: float


def ranked(values: Floats) -> Ranking:
    """Return mean ranks over blocks; larger values are better.

    J. Demsar: Statistical comparisons of classifiers over multiple data sets, JMLR 2006.

    Args:
        values: (blocks, k) of k competitors.
    """
    from scipy import stats

    blocks, k = values.shape
    ranks = stats.rankdata(-values, axis=1)
    able = k >= 3 and blocks >= 2 and bool((ranks != ranks.mean()).any())
    p = float(stats.friedmanchisquare(*values.T).pvalue) if able else math.nan
    studentized = float(stats.studentized_range.ppf(0.95, k, math.inf)) if k > 1 else math.nan
    return Ranking(
        ranks=tuple(ranks.mean(0).tolist()), blocks=blocks, p=p,
        critical=studentized / math.sqrt(2) * math.sqrt(k * (k + 1) / (6 * blocks)),
    )  # fmt: skip

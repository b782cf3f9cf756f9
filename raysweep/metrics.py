"""Metrics: pure functions on arrays, each with its n.

Definitions. A rejected input is an error for clean accuracy and no success for the attack. Cover
samples are negatives of a training-set filter and are also counted apart. What has no sample to be
computed on is NaN, never 0. Scores: higher = more suspicious.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bools = NDArray[np.bool_]
Ints = NDArray[np.integer[Any]]
Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True, kw_only=True)
class Share:
    """A share of `n` cases, in [0, 1]; NaN if n is 0."""

    value: float
    n: int

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % Wilson interval."""
        return wilson(round(self.value * self.n), self.n) if self.n else (math.nan, math.nan)


@dataclass(frozen=True, kw_only=True)
class Detection:
    """Flags against the truth."""

    tpr: Share
    fpr: Share
    fpr_no_cover: Share
    cover_removal: Share


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """Scores against the truth, without a threshold; NaN where a class is empty."""

    auroc: float
    ap: float
    tpr_at_1fpr: float


def share(hits: Bools) -> Share:
    """Return the share of hits."""
    n = len(hits)
    return Share(value=float(hits.sum()) / n if n else math.nan, n=n)


def _accepted(n: int, rejected: Bools | None) -> Bools:
    return np.ones(n, bool) if rejected is None else ~rejected


def accuracy(predicted: Ints, labels: Ints, rejected: Bools | None = None) -> Share:
    """Return the clean accuracy of predictions (N,); rejected inputs are errors."""
    return share((predicted == labels) & _accepted(len(labels), rejected))


def attack_success(
    predicted: Ints, mapped: Ints, eligible: Bools, rejected: Bools | None = None
) -> Share:
    """Return the share of eligible triggered inputs that are given the mapped label."""
    success = (predicted == mapped) & _accepted(len(mapped), rejected)
    return share(success[eligible])


def robust_accuracy(
    predicted: Ints, labels: Ints, eligible: Bools, rejected: Bools | None = None
) -> Share:
    """Return the share of eligible triggered inputs that are still given their true label."""
    right = (predicted == labels) & _accepted(len(labels), rejected)
    return share(right[eligible])


def detection(flags: Bools, poison: Bools, cover: Bools) -> Detection:
    """Return the rates of flags (N,) against poison and cover masks (N,)."""
    return Detection(
        tpr=share(flags[poison]),
        fpr=share(flags[~poison]),
        fpr_no_cover=share(flags[~poison & ~cover]),
        cover_removal=share(flags[cover]),
    )


def _checked(scores: Floats, positive: Bools) -> Floats:
    if scores.shape != positive.shape or scores.ndim != 1:
        raise ValueError(f"scores {scores.shape} and truth {positive.shape} must both be (N,)")
    if np.isnan(scores).any():
        raise ValueError(f"{int(np.isnan(scores).sum())} of {len(scores)} scores are NaN")
    return scores


def _steps(scores: Floats, positive: Bools) -> tuple[Ints, Ints]:
    """Return cumulative (false, true) positives at every distinct threshold, from the top."""
    order = np.argsort(-scores, kind="stable")
    ranked, truth = scores[order], positive[order]
    last = np.append(ranked[1:] != ranked[:-1], True)
    return np.cumsum(~truth)[last], np.cumsum(truth)[last]


def ranking(scores: Floats, positive: Bools) -> Ranking:
    """Return AUROC (ties count half), average precision, and TPR at FPR <= 1 %.

    Raises:
        ValueError: if a score is NaN or shapes differ; infinite scores are fine.
    """
    _checked(scores, positive)
    negatives, positives = int((~positive).sum()), int(positive.sum())
    if not negatives or not positives:
        return Ranking(auroc=math.nan, ap=math.nan, tpr_at_1fpr=math.nan)
    false, true = _steps(scores, positive)
    fpr = np.concatenate([[0.0], false / negatives])
    tpr = np.concatenate([[0.0], true / positives])
    precision = true / (true + false)
    within = tpr[fpr <= 0.01]
    return Ranking(
        auroc=float(np.trapezoid(tpr, fpr)),
        ap=float((np.diff(tpr) * precision).sum()),
        tpr_at_1fpr=float(within.max()),
    )


def roc(scores: Floats, positive: Bools, points: int = 200) -> tuple[Floats, Floats]:
    """Return the ROC curve (fpr, tpr), thinned to at most about `points` points.

    Both are empty where a class is empty.
    """
    _checked(scores, positive)
    negatives, positives = int((~positive).sum()), int(positive.sum())
    if not negatives or not positives:
        return np.empty(0), np.empty(0)
    false, true = _steps(scores, positive)
    fpr = np.concatenate([[0.0], false / negatives])
    tpr = np.concatenate([[0.0], true / positives])
    if len(fpr) > points:
        # Half of the points by rank of FPR, half by rank of TPR: steep parts keep their shape.
        half = points // 2
        by_fpr = np.searchsorted(fpr, np.linspace(0, 1, half), side="right") - 1
        by_tpr = np.searchsorted(tpr, np.linspace(0, 1, half), side="left")
        keep = np.unique(np.concatenate([[0], by_fpr, by_tpr, [len(fpr) - 1]]))
        fpr, tpr = fpr[keep], tpr[keep]
    return fpr, tpr


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

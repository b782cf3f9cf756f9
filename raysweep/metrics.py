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


def _same_cases(n: int, *masks: Bools | None) -> None:
    for mask in masks:
        if mask is not None and (mask.dtype != np.bool_ or mask.shape != (n,)):
            # As integers, 0 and 1 would silently select rows 0 and 1.
            raise ValueError(f"a mask must be ({n},) bool, got {mask.shape} {mask.dtype}")


def _right(predicted: Ints, wanted: Ints, rejected: Bools | None) -> Bools:
    if predicted.shape != wanted.shape or predicted.ndim != 1:
        raise ValueError(
            f"predictions {predicted.shape} and labels {wanted.shape} must both be (N,)"
        )
    _same_cases(len(wanted), rejected)
    right = np.equal(predicted, wanted)
    return right if rejected is None else right & ~rejected


def accuracy(
    predicted: Ints, labels: Ints, rejected: Bools | None = None, among: Bools | None = None
) -> Share:
    """Return the clean accuracy of predictions (N,), or of some; rejected inputs are errors."""
    right = _right(predicted, labels, rejected)
    return share(right if among is None else right[among])


def attack_success(
    predicted: Ints, mapped: Ints, eligible: Bools, rejected: Bools | None = None
) -> Share:
    """Return the share of eligible triggered inputs that are given the mapped label."""
    _same_cases(len(mapped), eligible)
    return share(_right(predicted, mapped, rejected)[eligible])


def robust_accuracy(
    predicted: Ints, labels: Ints, eligible: Bools, rejected: Bools | None = None
) -> Share:
    """Return the share of eligible triggered inputs that are still given their true label."""
    _same_cases(len(labels), eligible)
    return share(_right(predicted, labels, rejected)[eligible])


def detection(flags: Bools, poison: Bools, cover: Bools) -> Detection:
    """Return the rates of flags (N,) against poison and cover masks (N,).

    Raises:
        ValueError: if they are not three boolean arrays of one length.
    """
    _same_cases(len(flags), flags, poison, cover)
    return Detection(
        tpr=share(flags[poison]),
        fpr=share(flags[~poison]),
        fpr_no_cover=share(flags[~poison & ~cover]),
        cover_removal=share(flags[cover]),
    )


def _steps(scores: Floats, positive: Bools) -> tuple[Ints, Ints]:
    """Return (false, true) positives at every distinct threshold, from (0, 0) to all.

    Raises:
        ValueError: if a score is NaN or shapes differ.
    """
    if scores.shape != positive.shape or scores.ndim != 1:
        raise ValueError(f"scores {scores.shape} and truth {positive.shape} must both be (N,)")
    _same_cases(len(scores), positive)
    if np.isnan(scores).any():
        raise ValueError(f"{int(np.isnan(scores).sum())} of {len(scores)} scores are NaN")
    order = np.argsort(scores, kind="stable")[::-1]
    ranked, truth = scores[order], positive[order]
    last = np.append(ranked[1:] != ranked[:-1], True)[: len(ranked)]
    false, true = np.cumsum(~truth)[last], np.cumsum(truth)[last]
    return np.concatenate([[0], false]), np.concatenate([[0], true])


def ranking(scores: Floats, positive: Bools) -> Ranking:
    """Return AUROC (ties count half), average precision, and the largest TPR with FPR <= 1 %.

    Raises:
        ValueError: if a score is NaN or shapes differ; infinite scores are fine.
    """
    false, true = _steps(scores, positive)
    negatives, positives = int(false[-1]), int(true[-1])
    if not negatives or not positives:
        return Ranking(auroc=math.nan, ap=math.nan, tpr_at_1fpr=math.nan)
    # In whole numbers: twice the area under the curve, so that 1 and 0.5 come out exactly.
    doubled = int((np.diff(false) * (true[1:] + true[:-1])).sum())
    precision = true[1:] / (true[1:] + false[1:])
    return Ranking(
        auroc=doubled / (2 * negatives * positives),
        ap=float((np.diff(true) / positives * precision).sum()),
        tpr_at_1fpr=int(true[100 * false <= negatives].max()) / positives,
    )


def separability(points_ND: Floats, labels: Ints, poison: Bools) -> float:
    """Return how far apart poison lies from other samples of its given labels: about 0.5 to 1.

    The AUROC along Fisher's linear discriminant of each label, fitted on every second sample of
    poison and of the rest and measured on the others, and the other way around; weighted with the
    label's poison. NaN where no label holds four samples of both, or where points are not finite.
    The covariance gets a ridge of a thousandth of its mean variance.

    Args:
        points_ND: representations, (N, d).
        labels: (N,) given labels.
        poison: (N,).
    """
    _same_cases(len(points_ND), poison)
    found, weights = [], []
    for label in np.unique(labels[poison]):
        groups = [
            points_ND[(labels == label) & who].astype(np.float64) for who in (poison, ~poison)
        ]
        if min(map(len, groups)) < 4:
            continue
        one, other = ([group[start::2] for group in groups] for start in (0, 1))
        found.append((_apart(one, other) + _apart(other, one)) / 2)
        weights.append(len(groups[0]))
    return float(np.average(found, weights=weights)) if found else math.nan


def _apart(fitted: list[Floats], measured: list[Floats]) -> float:
    """Return the AUROC of [poison, rest] along the discriminant of other [poison, rest]."""
    if not all(np.isfinite(group).all() for group in (*fitted, *measured)):
        return math.nan
    one, other = (np.atleast_2d(np.cov(group, rowvar=False)) for group in fitted)
    spread = one + other
    ridge = (1e-3 * np.trace(spread) / len(spread) + 1e-12) * np.eye(len(spread))
    direction = np.linalg.solve(spread + ridge, fitted[0].mean(0) - fitted[1].mean(0))
    positive = np.arange(sum(map(len, measured))) < len(measured[0])
    return ranking(np.concatenate(measured) @ direction, positive).auroc


def roc(scores: Floats, positive: Bools, points: int = 200) -> tuple[Floats, Floats]:
    """Return the ROC curve (fpr, tpr), thinned to at most about `points` points.

    Both are empty where a class is empty.
    """
    false, true = _steps(scores, positive)
    negatives, positives = int(false[-1]), int(true[-1])
    if not negatives or not positives:
        return np.empty(0), np.empty(0)
    fpr, tpr = false / negatives, true / positives
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

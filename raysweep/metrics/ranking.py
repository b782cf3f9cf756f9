"""Scores against the truth: AUROC, average precision, ROC curves, separability."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from raysweep.arrays import Bools, Floats, Ints
from raysweep.metrics.rates import same_cases


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """Scores against the truth, without a threshold; NaN where a class is empty."""

    auroc: float
    ap: float
    tpr_at_1fpr: float


def _steps(scores: Floats, positive: Bools) -> tuple[Ints, Ints]:
    """Return (false, true) positives at every distinct threshold, from (0, 0) to all.

    Raises:
        ValueError: if a score is NaN or shapes differ.
    """
    if scores.shape != positive.shape or scores.ndim != 1:
        raise ValueError(f"scores {scores.shape} and truth {positive.shape} must both be (N,)")
    same_cases(len(scores), positive)
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
    """Return the separability of poison from other samples of its given labels: about 0.5 to 1.

    The AUROC along Fisher's linear discriminant of each label, fitted on every second sample of
    poison and of the rest and measured on the others, and the other way around; weighted with the
    label's poison. NaN where no label holds four samples of both, or where points are not finite.
    The covariance gets a ridge of a thousandth of its mean variance.

    Args:
        points_ND: representations, (N, d).
        labels: (N,) given labels.
        poison: (N,).
    """
    same_cases(len(points_ND), poison)
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

"""SPECTRE: whitened by a robust covariance, the poison of a class stands out in quantum entropy.

J. Hayase, W. Kong, R. Somani, S. Oh: SPECTRE: Defending Against Backdoor Attacks Using Robust
Statistics, ICML 2021, arXiv:2104.11315: per class, project on k principal axes, whiten with a
covariance that contamination does not move, score with x^T M x, M = exp(alpha (S - I) / (|S| - 1)),
S the covariance of the whitened data; the k with the largest mean score is taken.

Where we differ: the robust covariance is of minimum determinant, by concentration steps, instead of
the filter of I. Diakonikolas et al., and leaves out `contamination`, since a defender does not know
the rate; it is made consistent for Gaussian features (C. Croux, G. Haesbroeck: Influence function
and efficiency of the minimum covariance determinant scatter matrix estimator, 1999), so that clean
Gaussian features have variance 1 whatever k is, and mean scores of several k are compared in one
unit. Released code removes 1.5 times the contamination and whitens by the rest first. `removal:
rate` is the oracle form, and badged: contamination is the number of poisoned samples by the class,
at most a third of it, a tenth below 500 samples or without poison, and 1.5 times as many are
removed. Classes whose score is above the median of all lose samples, as the released code decides;
`classes: all` removes from every one.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Literal

import numpy as np
from pydantic import Field

from raysweep.counts import exactly
from raysweep.defenses import (
    Decision,
    DefenseInputs,
    Evidence,
    Findings,
    FloatArray,
)
from raysweep.defenses._removal import RemovesPerClass
from raysweep.methods import decision
from raysweep.methods.context import Context

AXES = (1, 4, 9, 16, 25, 36, 49, 64)


class SPECTRE(RemovesPerClass):
    """Scores are quantum entropies within the class; decisions set classes and counts to remove."""

    VERSION = 4

    # No decision parameter here: the oracle's rate changes the scores.
    removal: Literal["quantile", "rate"] = Field("quantile", description="rule of removal")
    contamination: float = Field(
        0.1, gt=0, lt=0.5, description="share the covariance leaves out, for quantile"
    )
    alpha: float = Field(4.0, gt=0, le=100, description="sharpness of the score")
    classes: Literal["above_median", "all"] = decision("above_median", description="which lose")

    def assumed(self, rate: float, total: int, size: int) -> Fraction:
        """Return the number of samples of a class that are taken to be poisoned, for `rate`."""
        count = Fraction(round(rate * total)) or exactly(0.1, size)
        return min(count, exactly(0.1 if size < 500 else 0.33, size))

    def run(self, inputs: DefenseInputs, ctx: Context) -> Findings:
        """Score each sample within its class."""
        del ctx
        labels = inputs.labels
        scores = np.zeros(len(labels))
        strength = np.zeros(inputs.shape.num_classes)
        for label in np.unique(labels):
            rows = np.flatnonzero(labels == label)
            share: float | Fraction = self.contamination
            if self.removal == "rate":
                share = self.assumed(inputs.poison_rate, len(labels), len(rows)) / len(rows)
            scores[rows], strength[label] = quantum_scores(inputs.features[rows], share, self.alpha)
        return Findings(train_scores=scores, statistics={"strength": strength})

    def decide(self, evidence: Evidence) -> Decision:
        """Flag the highest scores of the chosen classes."""
        strength, present = evidence.statistics["strength"], np.unique(evidence.labels)
        if self.classes == "above_median":
            present = present[strength[present] > np.median(strength[present])]
        return Decision(flags=self.highest(evidence, present))


def quantum_scores(
    features_ND: FloatArray, contamination: float | Fraction, alpha: float
) -> tuple[FloatArray, float]:
    """Return the scores (N,) of the best number of axes, and their mean; 0 for under 4 samples.

    Raises:
        ValueError: if a feature is NaN or infinite.
    """
    values = features_ND.astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("features must be finite; the victim may have diverged")
    count = len(values)
    if count < 4:
        return np.zeros(count), 0.0
    centered = values - values.mean(0)
    spectrum, vectors = np.linalg.eigh(centered.T @ centered)
    rank = int((spectrum > 1e-10 * max(float(spectrum[-1]), 1e-30)).sum())
    tried = [axes for axes in AXES if axes <= min(rank, count // 2)]
    best: tuple[FloatArray, float] = (np.zeros(count), 0.0)
    if not tried:
        return best
    projected = centered @ vectors[:, -1 : -tried[-1] - 1 : -1]
    for axes in tried:
        points = projected[:, :axes]
        scores = _entropies(points, *robust_covariance(points, contamination), alpha)
        if scores.mean() > best[1]:
            best = scores, float(scores.mean())
    return best


def _entropies(
    points: FloatArray, center: FloatArray, covariance: FloatArray, alpha: float
) -> FloatArray:
    """Return x^T M x of each sample x (N,), whitened by the given mean and covariance."""
    spread, axes = np.linalg.eigh(covariance)
    white = (points - center) @ axes / np.sqrt(np.maximum(spread, 1e-12))
    values, vectors = np.linalg.eigh(white.T @ white / len(white))
    exponents = alpha * (values - 1) / max(float(values[-1]) - 1, 1e-6)
    weights = np.exp(exponents - exponents.max())
    weights = weights / weights.sum()
    result: FloatArray = ((white @ vectors) ** 2 * weights).sum(1)
    return result


def robust_covariance(
    points_ND: FloatArray, contamination: float | Fraction, steps: int = 30
) -> tuple[FloatArray, FloatArray]:
    """Return mean and covariance by the 1 - contamination of the points that lie closest together.

    Concentration steps from all points: keep the points of least Mahalanobis distance, and repeat.
    The covariance (D, D) of the kept points is divided by what it is for a standard Gaussian, so
    that it is the covariance of all where the points are Gaussian.
    """
    size = points_ND.shape[1]
    outliers = math.ceil(exactly(contamination, len(points_ND)))
    count = max(len(points_ND) - outliers, min(len(points_ND), size + 2))
    ridge = _ridge(points_ND)
    kept = np.arange(len(points_ND))
    for _ in range(steps):
        center = points_ND[kept].mean(0)
        covariance = np.atleast_2d(np.cov(points_ND[kept], rowvar=False)) + ridge
        moved = points_ND - center
        distances = np.einsum("nd,dn->n", moved, np.linalg.solve(covariance, moved.T))
        nearest = np.sort(np.argsort(distances, kind="stable")[:count])
        if len(nearest) == len(kept) and (nearest == kept).all():
            break
        kept = nearest
    covariance = np.atleast_2d(np.cov(points_ND[kept], rowvar=False))
    return points_ND[kept].mean(0), covariance / _trimmed(size, count / len(points_ND)) + ridge


def _trimmed(size: int, share: float) -> float:
    """Return the variance, in each axis, of a standard Gaussian whose nearest `share` is kept.

    Croux and Haesbroeck, 1999: P(chi2 of size + 2 <= q) / share, q the `share`-quantile of chi2 of
    size.
    """
    from scipy import stats

    if share >= 1:
        return 1.0
    return float(stats.chi2.cdf(stats.chi2.ppf(share, size), size + 2) / share)


def _ridge(points_ND: FloatArray) -> FloatArray:
    """Return the little that keeps a covariance (D, D) of the points invertible."""
    spread = max(float(points_ND.var(0).mean()), 1e-12)
    result: FloatArray = 1e-6 * spread * np.eye(points_ND.shape[1])
    return result

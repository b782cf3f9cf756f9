"""Activation clustering: a poisoned class falls into two clusters, the smaller one the poison.

B. Chen, W. Carvalho, N. Baracaldo, H. Ludwig, B. Edwards, T. Lee, I. Molloy, B. Srivastava:
Detecting Backdoor Attacks on Deep Neural Networks by Activation Clustering, SafeAI 2019,
arXiv:1811.03728: per class, reduce features to 10 dimensions, 2-means, then a test of the clusters.

Where we differ: reduction by PCA, as most toolboxes do (the paper: ICA, `reduction: ica`). The
relative-size test flags a smaller cluster under 35 % of its class; the silhouette test is off by
default and can be added; it looks at 2,000 points of a class at most. The paper's exclusionary
reclassification is not offered. k-means starts from the two halves of a class along each reduced
dimension, and the best of these is kept: it needs no randomness and does not depend on the order of
samples.
"""

from __future__ import annotations

import warnings
from typing import Literal

import numpy as np
from pydantic import Field

from raysweep.defenses import (
    Decision,
    Defense,
    DefenseInputs,
    Evidence,
    Findings,
    Flags,
    FloatArray,
    Gift,
    Need,
)
from raysweep.methods import decision, searched
from raysweep.methods.context import Context


class ActivationClustering(Defense):
    """Scores are margins toward the smaller cluster; decisions test cluster size and shape."""

    layer: str | None = Field(None, description="feature layer of the model; none: its head")
    dimensions: int = searched(
        10, {"min": 2, "max": 30}, ge=1, le=512, description="dimensions after reduction"
    )
    reduction: Literal["pca", "ica"] = Field("pca", description="how features are reduced")
    size: float = decision(
        0.35,
        gt=0,
        le=0.5,
        description="flag a cluster under this share",
        search={"min": 0.05, "max": 0.5},
    )
    silhouette: float | None = decision(None, ge=-1, le=1, description="and a class above this")

    def needs(self) -> frozenset[Need]:
        """Return features."""
        return frozenset({"features"})

    def gives(self) -> frozenset[Gift]:
        """Return scores of training samples."""
        return frozenset({"train_scores"})

    def run(self, inputs: DefenseInputs, ctx: Context) -> Findings:
        """Cluster each class; statistics let `decide` replay the tests."""
        labels = inputs.labels
        scores = np.zeros(len(labels))
        small: Flags = np.zeros(len(labels), bool)
        shares = np.full(inputs.shape.num_classes, np.nan)
        silhouettes = np.full(inputs.shape.num_classes, np.nan)
        for label in np.unique(labels):
            rows = np.flatnonzero(labels == label)
            seed = ctx.stream("clusters", int(label)) % (1 << 32)
            reduced = self.reduce(inputs.features[rows], seed)
            found = two_means(reduced)
            if found is None:
                continue
            small[rows], scores[rows] = found
            shares[label] = small[rows].mean()
            silhouettes[label] = silhouette(reduced, small[rows], seed)
        statistics = {"small": small, "share": shares, "silhouette": silhouettes}
        return Findings(train_scores=scores, statistics=statistics)

    def reduce(self, features_ND: FloatArray, seed: int) -> FloatArray:
        """Return features reduced to at most `dimensions`, (N, d)."""
        from sklearn.decomposition import PCA, FastICA

        if not np.isfinite(features_ND).all():
            raise ValueError("features must be finite; the victim may have diverged")
        values = features_ND.astype(np.float64)
        dimensions = min(self.dimensions, *values.shape)
        if not np.ptp(values, axis=0).any():
            return np.zeros((len(values), dimensions))
        method = PCA(dimensions, svd_solver="full")
        if self.reduction == "ica":
            method = FastICA(dimensions, random_state=seed, max_iter=1000)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # ICA says so where it has not converged.
            reduced: FloatArray = method.fit_transform(values)
        return reduced

    def decide(self, evidence: Evidence) -> Decision:
        """Flag the smaller cluster of each class that passes the tests."""
        share = evidence.statistics["share"]
        chosen = share < self.size
        if self.silhouette is not None:
            chosen &= evidence.statistics["silhouette"] > self.silhouette
        return Decision(flags=evidence.statistics["small"] & chosen[evidence.labels])


def two_means(points_ND: FloatArray) -> tuple[Flags, FloatArray] | None:
    """Return a mask (N,) of the samples in the smaller of two clusters, and margins (N,) toward it.

    The margin is the distance to the larger cluster's center minus that to the smaller's. None
    where there are fewer than two different points.
    """
    from sklearn.cluster import KMeans

    if len(points_ND) < 2 or not np.ptp(points_ND, axis=0).any():
        return None
    starts = []
    for upper in (points_ND > points_ND.mean(0)).T:
        if 0 < upper.sum() < len(upper):
            halves = np.stack([points_ND[upper].mean(0), points_ND[~upper].mean(0)])
            starts.append(KMeans(2, init=halves, n_init=1, random_state=0).fit(points_ND))
    means = min(starts, key=lambda fitted: float(fitted.inertia_))
    members = means.labels_ == 1
    smaller = int(members.mean() <= 0.5)
    distances = means.transform(points_ND)
    margins: FloatArray = distances[:, 1 - smaller] - distances[:, smaller]
    return (members if smaller else ~members), margins


def silhouette(points_ND: FloatArray, small: Flags, seed: int) -> float:
    """Return the mean silhouette of two clusters, on at most 2,000 points."""
    from sklearn.metrics import silhouette_score

    rows = np.random.default_rng(seed).permutation(len(small))[:2000]
    if len(np.unique(small[rows])) < 2 or len(rows) < 3:
        return float("nan")
    return float(silhouette_score(points_ND[rows], small[rows]))

"""Spectral signatures: poison stands out along a class's top singular direction.

B. Tran, J. Li, A. Madry: Spectral Signatures in Backdoor Attacks, NeurIPS 2018, arXiv:1811.00636,
algorithm 1: per class, center the features, take the top right singular vector v, score a sample
with <h - mean, v>^2.

Where we differ: the paper removes 1.5 times the number of poisoned samples, which a defender does
not know; that rule is `removal: rate` and badged, and without poison assumes 1 %, as Confusion
Training's code does. By default the top 15 % of every class are removed. `variant: uncentered`
takes v of the centered features and projects the raw ones on it, as several toolboxes do: its
scores hold the mean's own projection, too, and rank differently.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from raysweep.defenses import (
    Decision,
    DefenseInputs,
    Evidence,
    Findings,
    FloatArray,
)
from raysweep.defenses._removal import RemovesPerClass
from raysweep.methods.context import Context


class SpectralSignatures(RemovesPerClass):
    """Scores are squared projections; decisions remove the highest of each class."""

    VERSION = 4

    variant: Literal["centered", "uncentered"] = Field("centered", description="see 'differ'")

    def run(self, inputs: DefenseInputs, ctx: Context) -> Findings:
        """Score each sample within its class."""
        del ctx
        scores = np.zeros(len(inputs.labels), np.float64)
        for label in np.unique(inputs.labels):
            rows = np.flatnonzero(inputs.labels == label)
            scores[rows] = projections(inputs.features[rows], centered=self.variant == "centered")
        return Findings(train_scores=scores)

    def decide(self, evidence: Evidence) -> Decision:
        """Flag the highest scores of each class; never more than half of it by `rate`."""
        return Decision(flags=self.highest(evidence, evidence.highest_first))


def projections(features_ND: FloatArray, *, centered: bool) -> FloatArray:
    """Return squared projections (N,) on the top right singular vector of the centered features.

    Args:
        features_ND: (N, D) of one class.
        centered: whether the centered features are projected, or the raw ones.

    Raises:
        ValueError: if a feature is NaN or infinite.
    """
    values = features_ND.astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("features must be finite; the victim may have diverged")
    around = values - values.mean(0)
    # The D x D form: cheaper than a decomposition of (N, D) for the thousands of a class.
    _, vectors = np.linalg.eigh(around.T @ around)
    result: FloatArray = ((around if centered else values) @ vectors[:, -1]) ** 2
    return result

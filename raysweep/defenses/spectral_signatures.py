"""Spectral signatures: poison stands out along a class's top singular direction.

B. Tran, J. Li, A. Madry: Spectral Signatures in Backdoor Attacks, NeurIPS 2018, arXiv:1811.00636,
algorithm 1: per class, center the features, take the top right singular vector v, score a sample
with <h - mean, v>^2.

Where we differ: the paper removes 1.5 times the number of poisoned samples, which a defender does
not know; that rule is `removal: rate` and badged. By default the top 15 % of every class are
removed. `variant: uncentered` projects raw features, as several toolboxes do; it ranks differently.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from raysweep.context import Context
from raysweep.defenses import (
    Decision,
    Defense,
    Evidence,
    Findings,
    Flags,
    FloatArray,
    Gift,
    Inputs,
    Need,
)
from raysweep.methods import decision


class SpectralSignatures(Defense):
    """Scores are squared projections; decisions remove the highest of each class."""

    layer: str | None = Field(None, description="feature layer of the model; none: its head")
    variant: Literal["centered", "uncentered"] = Field("centered", description="see 'differ'")
    removal: Literal["quantile", "rate"] = decision("quantile", description="rule of removal")
    fraction: float = decision(0.15, gt=0, lt=1, description="share of each class, for quantile")
    multiplier: float = decision(1.5, gt=0, le=100, description="times the true count, for rate")

    def needs(self) -> frozenset[Need]:
        """Return features; with `removal: rate` also the true poison rate."""
        if self.removal == "rate":
            return frozenset({"features", "poison_rate"})
        return frozenset({"features"})

    def gives(self) -> frozenset[Gift]:
        """Return scores of training samples."""
        return frozenset({"train_scores"})

    def run(self, inputs: Inputs, ctx: Context) -> Findings:
        """Score each sample within its class."""
        del ctx
        scores = np.zeros(len(inputs.labels), np.float64)
        for label in np.unique(inputs.labels):
            rows = np.flatnonzero(inputs.labels == label)
            scores[rows] = projections(inputs.features[rows], centered=self.variant == "centered")
        return Findings(train_scores=scores)

    def decide(self, evidence: Evidence) -> Decision:
        """Flag the highest scores of each class; never more than half of it by `rate`."""
        scores, labels = evidence.train_scores, evidence.labels
        flags: Flags = np.zeros(len(scores), bool)
        for label in np.unique(labels):
            rows = np.flatnonzero(labels == label)
            count = int(self.fraction * len(rows))
            if self.removal == "rate":
                wanted = int(self.multiplier * evidence.poison_rate * len(labels))
                count = min(wanted, len(rows) // 2)
            order = np.argsort(-scores[rows], kind="stable")
            flags[rows[order[:count]]] = True
        return Decision(flags=flags)


def projections(features_ND: FloatArray, *, centered: bool) -> FloatArray:
    """Return squared projections (N,) on the top right singular vector; 0 for a single sample.

    Raises:
        ValueError: if a feature is NaN or infinite.
    """
    values = features_ND.astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("features must be finite; the victim may have diverged")
    if centered:
        values = values - values.mean(0)
    # The D x D form: cheaper than a decomposition of (N, D) for the thousands of a class.
    _, vectors = np.linalg.eigh(values.T @ values)
    result: FloatArray = (values @ vectors[:, -1]) ** 2
    return result

"""SCAn: the features of an attacked class are a mixture of two groups.

D. Tang, X. Wang, H. Tang, K. Zhang: Demon in the Variant: Statistical Analysis of DNNs for Robust
Backdoor Contamination Detection, USENIX Security 2021, arXiv:1908.00686: features are an
identity per class plus a variation that all classes share, estimated on clean data; a class whose
likelihood ratio of two identities against one stands out is contaminated.

Where we differ: each class is split by 2-means in units of the shared variation, from its first
principal axis instead of a random start; split and statistic are of the suspect set alone, not of
its union with the clean set, which here names the side only; classes of under 4 samples enter the
median as 0; the index counts classes that stand out upwards only; the group with the smaller share
of clean samples is flagged. Scores put flagged groups first, by the index of their class. Toolboxes
take abnormally low classes too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from raysweep.defenses import (
    Decision,
    Defense,
    DefenseInputs,
    Evidence,
    Findings,
    FloatArray,
    Gift,
    Need,
)
from raysweep.methods import decision, log_range
from raysweep.methods.context import Context

if TYPE_CHECKING:
    import torch


class SCAn(Defense):
    """Class index and side of the split → flags of classes above the cut."""

    layer: str | None = Field(None, description="feature layer of the model; none: its head")
    iterations: int = Field(100, ge=1, le=10_000, description="of expectation maximization")
    cut: float = decision(
        2.718,
        gt=0,
        description="index above which a class is contaminated",
        search=log_range(0.5, 30.0),
    )

    def needs(self) -> frozenset[Need]:
        """Return training set, victim and clean set."""
        return frozenset({"training_set", "victim", "clean_set"})

    def gives(self) -> frozenset[Gift]:
        """Return scores of training samples."""
        return frozenset({"train_scores"})

    def run(self, inputs: DefenseInputs, ctx: Context) -> Findings:
        """Estimate the shared variation, and split every class."""
        from raysweep import training

        head, clean, data = inputs.model.HEAD, inputs.clean_set, inputs.training_set

        def features(images: torch.Tensor) -> FloatArray:
            layer = self.layer or head
            values, _ = training.features(
                inputs.victim, images, layer, head, inputs.recipe, ctx.device
            )
            return values.numpy().astype(np.float64)

        ours, theirs = features(clean.images), features(data.images)
        if not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
            raise ValueError("features must be finite; the victim may have diverged")
        mean = ours.mean(0)
        whiten = whitening(untangled(ours - mean, clean.labels, self.iterations))
        ours, theirs = (ours - mean) @ whiten, (theirs - mean) @ whiten
        ratios, suspect = np.zeros(inputs.shape.num_classes), np.zeros(len(data), bool)
        margins = np.zeros(len(data))
        for label in np.unique(data.labels):
            rows = np.flatnonzero(data.labels == label)
            reserved = ours[clean.labels == label]
            if len(rows) < 4:
                continue
            ratios[label], sides, margin = two_groups(theirs[rows], reserved)
            suspect[rows], margins[rows] = sides, margin
        index = class_index(ratios, np.unique(data.labels))
        own = index[data.labels]
        floor = float(index.min()) - 2
        scores = np.where(suspect, own, floor) + 0.5 * np.tanh(margins)
        return Findings(train_scores=scores, statistics={"index": index, "suspect": suspect})

    def decide(self, evidence: Evidence) -> Decision:
        """Flag the suspect group of every class whose index is above the cut."""
        over = evidence.statistics["index"] > self.cut
        return Decision(flags=np.asarray(evidence.statistics["suspect"] & over[evidence.labels]))


def untangled(values_ND: FloatArray, labels: np.ndarray, iterations: int) -> FloatArray:
    """Return the covariance that all classes share, (D, D).

    Expectation maximization of h = u + e, u ~ N(0, S_u) per class and e ~ N(0, S_e) per sample.

    Raises:
        ValueError: if no class has two samples.
    """
    classes = [values_ND[labels == c] for c in np.unique(labels)]
    if max(len(group) for group in classes) < 2:
        raise ValueError("SCAn needs a class with two reserved clean images; raise clean_size")
    size = values_ND.shape[1]
    ridge = 1e-6 * max(float(np.trace(values_ND.T @ values_ND)) / values_ND.size, 1e-12)
    means = np.stack([group.mean(0) for group in classes])
    within = sum((g - m).T @ (g - m) for g, m in zip(classes, means, strict=True))
    shared = np.asarray(within) / len(values_ND) + ridge * np.eye(size)
    identity = means.T @ means / len(classes) + ridge * np.eye(size)
    for _ in range(iterations):
        posterior = [
            identity @ np.linalg.solve(identity + shared / len(group), group.mean(0))
            for group in classes
        ]
        identity = sum(np.outer(m, m) for m in posterior) / len(classes) + ridge * np.eye(size)
        residual = sum((g - m).T @ (g - m) for g, m in zip(classes, posterior, strict=True))
        new = np.asarray(residual) / len(values_ND) + ridge * np.eye(size)
        change = float(np.abs(new - shared).max())
        shared = new
        if change < 1e-5:
            break
    return shared


def whitening(covariance: FloatArray) -> FloatArray:
    """Return S^(-1/2)."""
    values, vectors = np.linalg.eigh(covariance)
    floor = 1e-6 * max(float(values.max()), 1e-12)
    result: FloatArray = vectors / np.sqrt(np.maximum(values, floor))
    return result


def two_groups(
    points_ND: FloatArray, reserved_MD: FloatArray
) -> tuple[float, np.ndarray, FloatArray]:
    """Split a class; return its likelihood ratio per sample, the suspect side, and margins to it.

    Args:
        points_ND: whitened features of the class.
        reserved_MD: whitened features of its clean samples, which tell the suspect side.
    """
    centered = points_ND - points_ND.mean(0)
    _, vectors = np.linalg.eigh(centered.T @ centered)
    axis = centered @ vectors[:, -1]
    side = axis > np.median(axis)
    for _ in range(100):
        if side.all() or not side.any():
            break
        one, other = points_ND[side].mean(0), points_ND[~side].mean(0)
        new = _nearer(points_ND, one, other) > 0
        if (new == side).all():
            break
        side = new
    if side.all() or not side.any():
        return 0.0, np.zeros(len(points_ND), bool), np.zeros(len(points_ND))
    one, other = points_ND[side].mean(0), points_ND[~side].mean(0)
    single = (centered**2).sum(1)
    own = np.minimum(((points_ND - one) ** 2).sum(1), ((points_ND - other) ** 2).sum(1))
    margin = _nearer(points_ND, one, other)
    share = float((_nearer(reserved_MD, one, other) > 0).mean()) if len(reserved_MD) else 0.5
    # Without a clean sample of the class the smaller side is the suspect one.
    flipped = share / max(float(side.mean()), 1e-9) > (1 - share) / max(float((~side).mean()), 1e-9)
    if not len(reserved_MD):
        flipped = bool(side.mean() > 0.5)
    if flipped:
        side, margin = ~side, -margin
    return float((single - own).mean()), side, margin


def _nearer(points: FloatArray, one: FloatArray, other: FloatArray) -> FloatArray:
    """Return the margins of points toward `one` center, in units of the centers' squared gap."""
    gap = max(float(((one - other) ** 2).sum()), 1e-12)
    nearer: FloatArray = (((points - other) ** 2).sum(1) - ((points - one) ** 2).sum(1)) / gap
    return nearer


def class_index(ratios_K: FloatArray, present: np.ndarray) -> FloatArray:
    """Return the normal deviations (K,) by which each class lies above the median class."""
    found = ratios_K[present]
    middle = np.median(found)
    spread = 1.4826 * float(np.median(np.abs(found - middle)))
    index = np.zeros(len(ratios_K))
    index[present] = (found - middle) / max(spread, 1e-3 * max(float(np.abs(found).max()), 1e-12))
    return index

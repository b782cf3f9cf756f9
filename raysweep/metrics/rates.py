"""Metrics: pure functions on arrays, each with its n.

Definitions. A rejected input is an error for clean accuracy and no success for the attack. Cover
samples are negatives of a training-set filter and are also counted apart. A metric without samples
is NaN, never 0. Scores: higher = more suspicious.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from raysweep.arrays import Bools, Floats, Ints
from raysweep.metrics.intervals import wilson


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


def share(hits: Bools) -> Share:
    """Return the share of hits."""
    return _share_of(int(hits.sum()), len(hits))


def share_above(ascending: Floats, threshold: float) -> Share:
    """Return the share of scores above a threshold, as `share(scores > threshold)` does.

    Args:
        ascending: (S,) the scores in ascending order, NaN last.
        threshold: NaN scores are not above it.
    """
    n = len(ascending)
    known = n - (int(np.isnan(ascending).sum()) if n and np.isnan(ascending[-1]) else 0)
    return _share_of(known - int(np.searchsorted(ascending[:known], threshold, "right")), n)


def _share_of(hits: int, n: int) -> Share:
    return Share(value=hits / n if n else math.nan, n=n)


def same_cases(n: int, *masks: Bools | None) -> None:
    """Make sure that masks are (n,) and of bools.

    Raises:
        ValueError: if one is not.
    """
    for mask in masks:
        if mask is not None and (mask.dtype != np.bool_ or mask.shape != (n,)):
            # As integers, 0 and 1 would silently select rows 0 and 1.
            raise ValueError(f"a mask must be ({n},) bool, got {mask.shape} {mask.dtype}")


def hits(predicted: Ints, wanted: Ints, rejected: Bools | None = None) -> Bools:
    """Return the mask of predictions (N,) that are the wanted labels and are not rejected."""
    if predicted.shape != wanted.shape or predicted.ndim != 1:
        raise ValueError(
            f"predictions {predicted.shape} and labels {wanted.shape} must both be (N,)"
        )
    same_cases(len(wanted), rejected)
    right = np.equal(predicted, wanted)
    return right if rejected is None else right & ~rejected


def accuracy(
    predicted: Ints, labels: Ints, rejected: Bools | None = None, among: Bools | None = None
) -> Share:
    """Return the clean accuracy of predictions (N,), or of some; rejected inputs are errors."""
    right = hits(predicted, labels, rejected)
    return share(right if among is None else right[among])


def attack_success(
    predicted: Ints, mapped: Ints, eligible: Bools, rejected: Bools | None = None
) -> Share:
    """Return the share of eligible triggered inputs that are given the mapped label."""
    same_cases(len(mapped), eligible)
    return share(hits(predicted, mapped, rejected)[eligible])


def robust_accuracy(
    predicted: Ints, labels: Ints, eligible: Bools, rejected: Bools | None = None
) -> Share:
    """Return the share of eligible triggered inputs that are still given their true label."""
    same_cases(len(labels), eligible)
    return share(hits(predicted, labels, rejected)[eligible])


def tpr_and_fpr(flags: Bools, poison: Bools) -> tuple[Share, Share]:
    """Return TPR and FPR of flags (N,) against the poison mask (N,), by counting alone.

    Raises:
        ValueError: if they are not two boolean arrays of one length.
    """
    same_cases(len(flags), flags, poison)
    positives = int(np.count_nonzero(poison))
    flagged, hits = int(np.count_nonzero(flags)), int(np.count_nonzero(flags & poison))
    return _share_of(hits, positives), _share_of(flagged - hits, len(flags) - positives)


def detection(flags: Bools, poison: Bools, cover: Bools) -> Detection:
    """Return the rates of flags (N,) against poison and cover masks (N,).

    Raises:
        ValueError: if they are not three boolean arrays of one length.
    """
    same_cases(len(flags), flags, poison, cover)
    tpr, fpr = tpr_and_fpr(flags, poison)
    return Detection(
        tpr=tpr,
        fpr=fpr,
        fpr_no_cover=share(flags[~poison & ~cover]),
        cover_removal=share(flags[cover]),
    )

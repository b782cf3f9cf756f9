"""The common base of detectors of inputs that can also filter a training set.

They are fitted on one half of the reserved clean set and calibrate their threshold on the other,
so that no sample does both.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field

from raysweep.counts import exactly
from raysweep.datasets import ImageSet, IntArray, as_floats
from raysweep.defenses import (
    Decision,
    Defense,
    DefenseInputs,
    Evidence,
    Findings,
    FloatArray,
    Gift,
    Need,
    Scorer,
)
from raysweep.methods import decision, log_range
from raysweep.methods.context import Context

if TYPE_CHECKING:
    import torch

On = Literal["inputs", "training_set"]
Labeled = Callable[[ImageSet], FloatArray]


class Scored(Defense):
    """A detector of inputs whose score can also filter a training set.

    `EXTENDED`: whether the paper scores inputs alone, so that the filter is ours, and badged.
    """

    EXTENDED: ClassVar[bool] = False

    on: On = Field("inputs", description="what is scored")
    fpr: float = decision(
        0.05,
        gt=0,
        lt=1,
        description="nominal false positive rate",
        search=log_range(0.001, 0.3),
    )

    def needs(self) -> frozenset[Need]:
        """Return victim and clean set, and the training set if it is scored."""
        base: frozenset[Need] = frozenset({"victim", "clean_set"})
        return base | ({"training_set"} if self.on == "training_set" else frozenset())

    def gives(self) -> frozenset[Gift]:
        """Return scores of inputs, or of training samples."""
        return frozenset({"input_scores" if self.on == "inputs" else "train_scores"})

    def badges(self) -> tuple[str, ...]:
        """Return the badges; as a filter it may be an extension."""
        ours = self.EXTENDED and self.on == "training_set"
        return (*super().badges(), *(("extension: as a filter",) if ours else ()))

    def found(self, inputs: DefenseInputs, rows: IntArray, score: Scorer, ctx: Context) -> Findings:
        """Return the scorer, or the training set scored with it, calibrated by clean rows."""
        if self.on == "inputs":
            return Findings(score_inputs=score, calibration=rows)
        data, clean = inputs.training_set, inputs.clean_set.take(rows)
        return Findings(
            train_scores=in_batches(score, data.images, np.arange(len(data)), ctx),
            statistics={"reference": in_batches(score, clean.images, rows, ctx)},
        )

    def decide(self, evidence: Evidence) -> Decision:
        """Reject inputs, or flag samples, above the quantile of the clean calibration scores.

        A score equal to the threshold is not above it: where calibration scores tie at the top,
        fewer than the nominal share are rejected, and possibly none, which is a fact of the trial.
        """
        if self.on == "inputs":
            reference = evidence.reference_scores
            cut = upper_quantile(reference, self.fpr)
            return Decision(threshold=cut, facts=admitted(reference, cut))
        reference = evidence.statistics["reference"]
        cut = upper_quantile(reference, self.fpr)
        return Decision(flags=evidence.train_scores > cut, facts=admitted(reference, cut))


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The clean set in three parts, each with its share of every class.

    Attributes:
        near: a quarter: the images that others are compared with.
        others: a quarter: the images whose comparisons tell what is usual.
        calibration: the rows of the half that is left.
    """

    near: ImageSet
    others: ImageSet
    calibration: IntArray


def halves(name: str, clean: ImageSet, ctx: Context, least: int) -> tuple[IntArray, IntArray]:
    """Return the rows of the clean set to fit on, and the rows to calibrate with.

    Raises:
        ValueError: if there are fewer than `least`.
    """
    order = _shuffled(name, clean, ctx, least)
    return np.sort(order[::2]), np.sort(order[1::2])


def parts_of_each_class(
    name: str, clean: ImageSet, ctx: Context, *, least: int, of_class: int, num_classes: int
) -> Parts:
    """Return the clean set divided at random within each class.

    Of n images of a class ceil(n / 4) are near and floor(n / 2) calibrate.

    Args:
        name: of the defense, for the message.
        clean: the reserved clean set.
        ctx: gives the random order.
        least: number of images that the set must have.
        of_class: number of near images that each class must have.
        num_classes: K.

    Raises:
        ValueError: if there are fewer.
    """
    order = _shuffled(name, clean, ctx, least)
    order = order[np.argsort(clean.labels[order], kind="stable")]
    counts = np.bincount(clean.labels, minlength=num_classes)
    place = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)  # in its class
    near = clean.take(np.sort(order[place % 4 == 0]))
    held = np.bincount(near.labels, minlength=num_classes)
    if (few := np.flatnonzero(held < of_class)).size:
        raise ValueError(
            f"{name} compares with at least {of_class} clean images of every class, but of "
            f"{len(clean)} reserved images {len(near)} are for this and classes {few.tolist()} "
            f"have {held[few].tolist()}; raise clean_size of the dataset"
        )
    others = clean.take(np.sort(order[place % 4 == 2]))
    return Parts(near=near, others=others, calibration=np.sort(order[place % 2 == 1]))


def _shuffled(name: str, clean: ImageSet, ctx: Context, least: int) -> IntArray:
    if len(clean) < least:
        raise ValueError(
            f"{name} needs at least {least} reserved clean images, got {len(clean)}; raise "
            f"clean_size of the dataset"
        )
    return ctx.generator("halves").permutation(len(clean))


def in_batches(
    score: Scorer, images: torch.Tensor, ids: IntArray, ctx: Context, size: int = 500
) -> FloatArray:
    """Return the scores (N,) of images (N, C, H, W), a batch at a time."""

    def scored(at: int) -> FloatArray:
        return score(as_floats(images[at : at + size]), ids[at : at + size])

    return np.concatenate(ctx.mapped("scores", scored, range(0, len(ids), size)))


def against_labels(training_set: ImageSet, clean: ImageSet, rows: IntArray,
                   score: Labeled) -> Findings:  # fmt: skip
    """Return scores that refer to given labels, for filters; the clean ones calibrate."""
    return Findings(
        train_scores=score(training_set), statistics={"reference": score(clean.take(rows))}
    )


def upper_quantile(reference: FloatArray, fpr: float) -> float:
    """Return the conformal threshold: a fresh clean score lies above it with chance `fpr` at most.

    It is the ceil((n + 1) (1 - fpr))-th smallest of the n reference scores (V. Vovk, A. Gammerman,
    G. Shafer: Algorithmic Learning in a Random World, 2005); the largest number of single precision
    where n is too small for `fpr`, so that no finite score is above it; NaN if a score is.
    """
    if np.isnan(reference).any():
        return float("nan")
    count = len(reference)
    place = count - math.floor(exactly(fpr, count + 1))  # from 0; exact where float would miss one
    if place >= count:
        return float(np.finfo(np.float32).max)
    return float(np.partition(reference, place)[place])


def admitted(reference: FloatArray, threshold: float) -> dict[str, float]:
    """Return the fact whether a threshold lets no calibration score pass above it, 1 or 0."""
    return {"threshold admits nothing": float(not (reference > threshold).any())}


def within_classes(scores: FloatArray, labels: IntArray, like: FloatArray,
                   like_labels: IntArray) -> FloatArray:  # fmt: skip
    """Return scores in units of the spread of their class: (score - median) / MAD.

    Args:
        scores: (N,).
        labels: (N,) their classes.
        like: (M,) scores whose medians and spreads are taken.
        like_labels: (M,) their classes.
    """
    result = np.zeros(len(scores))
    everywhere = max(float(np.median(np.abs(like - np.median(like)))), 1e-6)
    for label in np.unique(labels):
        peers = like[like_labels == label]
        peers = peers if len(peers) else like
        middle = np.median(peers)
        spread = max(1.4826 * float(np.median(np.abs(peers - middle))), 0.1 * everywhere)
        mine = labels == label
        result[mine] = (scores[mine] - middle) / spread
    return result


def split(values: FloatArray) -> float:
    """Return the cut that leaves the least squared deviation within its two sides."""
    ordered = np.sort(np.asarray(values, np.float64))
    if len(ordered) < 2:
        return float("inf")
    counts = np.arange(1, len(ordered))
    sums, squares = np.cumsum(ordered), np.cumsum(ordered**2)
    below = squares[:-1] - sums[:-1] ** 2 / counts
    above = squares[-1] - squares[:-1] - (sums[-1] - sums[:-1]) ** 2 / (len(ordered) - counts)
    at = int(np.argmin(below + above))
    return float((ordered[at] + ordered[at + 1]) / 2)

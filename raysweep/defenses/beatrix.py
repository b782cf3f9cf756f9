"""Beatrix: a triggered input's feature maps are correlated as no clean input's of its class are.

W. Ma, D. Wang, R. Sun, M. Xue, S. Wen, Y. Xiang: The "Beatrix" Resurrections: Robust Backdoor
Detection via Gram Matrices, NDSS 2023, arXiv:2209.11715: Gram matrices of orders 1 to p of a
layer's feature maps; how far their entries lie outside median +- MAD of clean inputs of the
predicted class.

Where we differ: the entries are summed over rows, one number per channel and order; an entry counts
as log(1 + x), x the MADs beyond the range, plus a thousandth of its distance within it; ranges are
of the clean images' true class; the paper's second step, a kernel two-sample test per class that
names the target, is left out. With `on: training_set` the given label stands for the predicted one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field

from raysweep.datasets import ImageSet, IntArray, as_floats
from raysweep.defenses import DefenseInputs, Findings, FloatArray
from raysweep.defenses import _scored as scored
from raysweep.defenses._layers import last_map
from raysweep.methods.context import Context

if TYPE_CHECKING:
    import torch


class Beatrix(scored.Scored):
    """Scores are deviations of Gram entries; decisions set the nominal FPR."""

    VERSION = 2
    BADGES: ClassVar[tuple[str, ...]] = ("simplified: no test of classes",)

    orders: int = Field(9, ge=1, le=20, description="highest order p")
    width: float = Field(10.0, gt=0, description="half-width of the clean range, in MADs")

    def least_clean(self) -> int:
        """Return 8: half of the images are to fit, half to calibrate."""
        return 8

    def run(self, inputs: DefenseInputs, ctx: Context) -> Findings:
        """Measure the clean ranges."""
        clean = inputs.clean_set
        fitted, calibration = scored.halves(self.name, clean, ctx, least=self.least_clean())
        reference = clean.take(fitted)
        values, _ = self._entries(inputs, reference.images, ctx)
        ranges = {
            int(c): clean_range(values[reference.labels == c])
            for c in np.unique(reference.labels)
            if int((reference.labels == c).sum()) >= 2
        }
        everywhere = clean_range(values)

        def deviation(found: FloatArray, labels: np.ndarray) -> FloatArray:
            result = np.zeros(len(labels))
            for label in np.unique(labels):
                mine = labels == label
                middle, spread = ranges.get(int(label), everywhere)
                result[mine] = outside(found[mine], middle, spread, self.width)
            return result

        def score(images: torch.Tensor, ids: IntArray) -> FloatArray:
            del ids
            return deviation(*self._entries(inputs, images, ctx))

        if self.on == "inputs":
            return Findings(score_inputs=score, calibration=calibration)

        def against_given(data: ImageSet) -> FloatArray:
            return deviation(self._entries(inputs, data.images, ctx)[0], data.labels)

        return scored.against_labels(inputs.training_set, clean, calibration, against_given)

    def _entries(
        self, inputs: DefenseInputs, images: torch.Tensor, ctx: Context
    ) -> tuple[FloatArray, np.ndarray]:
        """Return Gram entries (N, orders * C) and predicted labels (N,)."""
        entries, labels = [], []
        for part in images.split(250):
            maps, logits = last_map(inputs, as_floats(part), ctx)
            entries.append(gram_entries(maps.numpy().astype(np.float64), self.orders))
            labels.append(logits.argmax(1).numpy())
        return np.concatenate(entries), np.concatenate(labels)


def gram_entries(maps_BCHW: FloatArray, orders: int) -> FloatArray:
    """Return row sums of (F^p F^pT)^(1/p) for p = 1 to `orders`, (B, orders * C).

    F is a feature map (C, H * W); its scale per image is taken out and put back, so that high
    orders do not overflow.
    """
    flat = maps_BCHW.reshape(*maps_BCHW.shape[:2], -1)
    scale = np.maximum(np.abs(flat).max((1, 2), keepdims=True), 1e-12)
    unit = flat / scale
    found = []
    for order in range(1, orders + 1):
        powers = unit**order
        gram = powers @ powers.transpose(0, 2, 1)
        rooted = np.sign(gram) * np.abs(gram) ** (1 / order)
        found.append(rooted.sum(2) * scale[:, 0] ** 2)
    return np.concatenate(found, 1)


def clean_range(values_ND: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return median and MAD per entry."""
    middle = np.median(values_ND, 0)
    spread = np.median(np.abs(values_ND - middle), 0)
    # An entry that never varies, such as a dead channel's, would make any change infinite.
    floor = 1e-3 * np.maximum(np.abs(middle), 1e-3 * max(float(np.abs(values_ND).mean()), 1e-12))
    return middle, np.maximum(spread, floor)


def outside(
    values_ND: FloatArray, middle: FloatArray, spread: FloatArray, width: float
) -> FloatArray:
    """Return the mean of log(1 + x), x: spreads outside middle +- width * spread, (N,)."""
    beyond = np.maximum(np.abs(values_ND - middle) / spread - width, 0)
    near = np.minimum(np.abs(values_ND - middle) / spread, width)
    # Inside the range distances still rank inputs, but count for little.
    result: FloatArray = np.log1p(beyond).mean(1) + 1e-3 * near.mean(1)
    return result

"""LID: around a malicious input the data fill another number of dimensions, layer by layer.

X. Ma, B. Li, Y. Wang, S. M. Erfani, S. Wijewickrema, G. Schoenebeck, D. Song, M. E. Houle, J.
Bailey: Characterizing Adversarial Subspaces Using Local Intrinsic Dimensionality, ICLR 2018,
arXiv:1801.02613: per layer -(1/k sum ln(r_i / r_k))^-1 over the k nearest of a clean minibatch, and
a logistic regression over layers. One of the four detectors of K. Jin et al., IEEE TDSC 2022,
arXiv:2006.14871.

Where we differ: the regression needs attacked inputs; here the score is the Mahalanobis distance of
the logarithms of the layers' dimensionalities from their values on clean inputs. Neighbors come
from one fixed part of the clean half that fits, drawn class by class, instead of a random
minibatch, so that a score does not depend on the batch; distances of zero are left out, and k is at
most one less than there are neighbors. Feature maps are averaged over space unless `pool: flat`,
which is the paper's. `on: training_set` takes neighbors of the given label, three at least, and is
an extension.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field

from raysweep.datasets import ImageSet, IntArray
from raysweep.defenses import DefenseInputs, Findings, FloatArray
from raysweep.defenses import _scored as scored
from raysweep.defenses._layers import Pool, layer_values
from raysweep.methods import searched
from raysweep.methods.context import Context

if TYPE_CHECKING:
    import torch


OF_CLASS = 3  # images of a class that one of the training set is compared with, at least


class LID(scored.Scored):
    """Scores are Mahalanobis distances over layers; decisions set the nominal FPR."""

    VERSION = 3
    EXTENDED: ClassVar[bool] = True

    neighbors: int = searched(20, {"min": 5, "max": 100}, ge=2, le=10_000, description="k")
    pool: Pool = Field("mean", description="feature maps: averaged over space, or flat")

    def least_clean(self) -> int:
        """Return 8: half of the images are to fit, half to calibrate."""
        return 8

    def least_of_class(self) -> int:
        """Return 9 for the training set: a quarter of a class, rounded up, is compared with."""
        return 4 * OF_CLASS - 3 if self.on == "training_set" else 0

    def run(self, inputs: DefenseInputs, ctx: Context) -> Findings:
        """Measure the dimensionalities of clean inputs."""
        clean = inputs.clean_set
        of_class = OF_CLASS if self.on == "training_set" else 0
        parts = scored.parts_of_each_class(
            self.name, clean, ctx,
            least=self.least_clean(), of_class=of_class, num_classes=inputs.shape.num_classes,
        )  # fmt: skip
        near, others = parts.near, parts.others
        reference = layer_values(inputs, near.images, ctx, pool=self.pool)

        def dimensions(images: torch.Tensor, labels: np.ndarray | None) -> FloatArray:
            found = layer_values(inputs, images, ctx, pool=self.pool)
            result = np.zeros((len(images), len(found)))
            for at, (values, base) in enumerate(zip(found, reference, strict=True)):
                if labels is None:
                    result[:, at] = local_dimension(values, base, self.neighbors)
                    continue
                for label in np.unique(labels):
                    mine, peers = labels == label, near.labels == label
                    result[mine, at] = local_dimension(values[mine], base[peers], self.neighbors)
            return np.log(result)

        given = others.labels if self.on == "training_set" else None
        usual = dimensions(others.images, given)
        center = usual.mean(0)
        covariance = np.atleast_2d(np.cov(usual, rowvar=False))
        ridge = 1e-3 * max(float(np.trace(covariance)) / len(covariance), 1e-9)
        precision = np.linalg.inv(covariance + ridge * np.eye(len(covariance)))

        def distance(values: FloatArray) -> FloatArray:
            moved = values - center
            squared: FloatArray = np.einsum("nd,de,ne->n", moved, precision, moved)
            return np.sqrt(np.maximum(squared, 0))

        def score(images: torch.Tensor, ids: IntArray) -> FloatArray:
            del ids
            return distance(dimensions(images, None))

        if self.on == "inputs":
            return Findings(score_inputs=score, calibration=parts.calibration)

        def against_given(data: ImageSet) -> FloatArray:
            return distance(dimensions(data.images, data.labels))

        return scored.against_labels(inputs.training_set, clean, parts.calibration, against_given)


def local_dimension(points_BD: FloatArray, base_ND: FloatArray, neighbors: int) -> FloatArray:
    """Return the local intrinsic dimensionality of points among a base, (B,).

    -(1/k sum ln(r_i / r_k))^-1 over the k smallest distances above 0, between 1e-3 and 1e3.

    Raises:
        ValueError: if the base has fewer than three points.
    """
    from scipy.spatial.distance import cdist

    if len(base_ND) < 3:
        raise ValueError(
            f"LID needs at least 3 clean neighbors, got {len(base_ND)}; raise clean_size"
        )
    distances = cdist(np.asarray(points_BD, np.float64), np.asarray(base_ND, np.float64))
    distances[distances <= 1e-12] = np.inf
    count = min(neighbors, len(base_ND) - 1)
    nearest = np.sort(distances, axis=1)[:, :count]
    # Where all but a few neighbors are duplicates, the farthest finite one ends the ball.
    finite = np.isfinite(nearest)
    radius = np.where(finite, nearest, 0).max(1)
    safe = np.where(finite, nearest, radius[:, None].clip(1e-12))
    logs = np.log(safe / radius.clip(1e-12)[:, None])
    mean = np.minimum(logs.sum(1) / np.maximum(finite.sum(1), 1), -1e-3)
    result: FloatArray = np.clip(-1 / mean, 1e-3, 1e3)
    return result

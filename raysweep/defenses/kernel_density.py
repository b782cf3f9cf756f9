"""Kernel density: a malicious input lies where clean inputs of its predicted class do not.

R. Feinman, R. R. Curtin, S. Shintre, A. B. Gardner: Detecting Adversarial Samples from Artifacts,
2017, arXiv:1703.00410: log density of the last hidden features under a Gaussian kernel estimate
per class. One of the four detectors of K. Jin et al., IEEE TDSC 2022, arXiv:2006.14871.

Where we differ: the original feeds densities to a classifier that is trained on attacked inputs;
here the score is minus the log density, without any malicious sample. The bandwidth is the one of
the largest leave-one-out likelihood on the clean half that fits, unless it is given. Features are
in units of their spread. One that does not vary on that half has none and is left out of the choice
and of the number of dimensions; where it varies later, the distance counts, as in the original, in
units of the median spread. A class without a clean sample takes the density of all of them. `on:
training_set` takes the density under the given label, and is an extension.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from raysweep.datasets import ImageSet, IntArray
from raysweep.defenses import DefenseInputs, Findings, FloatArray
from raysweep.defenses import _scored as scored
from raysweep.methods import log_range, searched
from raysweep.methods.context import Context

if TYPE_CHECKING:
    import torch

# In units of the square root of the number of features; small where classes have collapsed.
BANDWIDTHS = tuple(float(h) for h in np.geomspace(5e-4, 5, 29))


class KernelDensity(scored.Scored):
    """Scores are minus the log density of the class; decisions set the nominal FPR."""

    VERSION = 3
    EXTENDED: ClassVar[bool] = True

    bandwidth: float | None = searched(
        None, log_range(0.05, 5.0), gt=0, description="in units of the features' spread"
    )

    def least_clean(self) -> int:
        """Return 8: half of the images are to fit, half to calibrate."""
        return 8

    def run(self, inputs: DefenseInputs, ctx: Context) -> Findings:
        """Fit one density per class."""
        from raysweep import training

        clean = inputs.clean_set
        fitted, calibration = scored.halves(self.name, clean, ctx, least=self.least_clean())
        head = inputs.model.HEAD

        def values(images: torch.Tensor) -> tuple[FloatArray, np.ndarray]:
            found, logits = training.features(
                inputs.victim, images, head, head, inputs.recipe, ctx.device
            )
            return found.numpy().astype(np.float64), logits.argmax(1).numpy()

        reference = clean.take(fitted)
        raw, _ = values(reference.images)
        if not np.isfinite(raw).all():
            raise ValueError("features must be finite; the victim may have diverged")
        spread, alive = spreads(raw)
        groups = {int(c): raw[reference.labels == c] / spread for c in np.unique(reference.labels)}
        bandwidth = self.bandwidth or best_bandwidth([g[:, alive] for g in groups.values()])
        dimensions = int(alive.sum())

        def density(found: FloatArray, labels: np.ndarray) -> FloatArray:
            result = np.zeros(len(labels))
            for label in np.unique(labels):
                mine = labels == label
                # A class without clean samples is as far as all of them.
                group = groups.get(int(label), raw / spread)
                result[mine] = log_density(found[mine] / spread, group, bandwidth, dimensions)
            return result

        def score(images: torch.Tensor, ids: IntArray) -> FloatArray:
            del ids
            return -density(*values(images))

        if self.on == "inputs":
            return Findings(score_inputs=score, calibration=calibration)

        def against_given(data: ImageSet) -> FloatArray:
            return -density(values(data.images)[0], data.labels)

        return scored.against_labels(inputs.training_set, clean, calibration, against_given)


def spreads(values_ND: FloatArray) -> tuple[FloatArray, np.ndarray]:
    """Return the unit (D,) of each feature, and a mask (D,) of the features that vary.

    Raises:
        ValueError: if none does.
    """
    found = values_ND.std(0)
    alive = (np.ptp(values_ND, axis=0) > 0) & (found > 1e-6 * found.max())
    if not alive.any():
        raise ValueError(
            "kernel density needs features that vary over the reserved clean images; none does, "
            "the victim may have collapsed"
        )
    units: FloatArray = np.where(alive, found, np.median(found[alive]))
    return units, alive


def log_density(
    points_BD: FloatArray, group_ND: FloatArray, bandwidth: float, dimensions: int | None = None
) -> FloatArray:
    """Return the log of the mean Gaussian kernel of points over a group, (B,).

    Args:
        points_BD: the places.
        group_ND: the centers of the kernels.
        bandwidth: their deviation.
        dimensions: number of dimensions in which they integrate to 1; all by default.
    """
    from scipy.spatial.distance import cdist
    from scipy.special import logsumexp

    dimensions = points_BD.shape[1] if dimensions is None else dimensions
    squares = cdist(points_BD, group_ND, "sqeuclidean") / bandwidth**2
    constant = dimensions * np.log(bandwidth * np.sqrt(2 * np.pi)) + np.log(len(group_ND))
    result: FloatArray = logsumexp(-squares / 2, axis=1) - constant
    return result


def best_bandwidth(groups: list[FloatArray]) -> float:
    """Return the bandwidth of the largest leave-one-out likelihood over all groups.

    The tried ones grow with the square root of the number of features, as distances do.
    """
    from scipy.spatial.distance import cdist
    from scipy.special import logsumexp

    usable = [group for group in groups if len(group) > 1]
    if not usable:
        raise ValueError(
            "kernel density needs a class with two reserved clean images; raise clean_size"
        )
    scale = np.sqrt(usable[0].shape[1])
    distances = [cdist(group, group, "sqeuclidean") for group in usable]
    for squares in distances:
        np.fill_diagonal(squares, np.inf)

    def likelihood(bandwidth: float) -> float:
        dimensions = usable[0].shape[1]
        total = 0.0
        for squares in distances:
            kernels = logsumexp(-squares / (2 * bandwidth**2), axis=1) - np.log(len(squares) - 1)
            total += float((kernels - dimensions * np.log(bandwidth)).sum())
        return total

    return float(max((scale * h for h in BANDWIDTHS), key=likelihood))

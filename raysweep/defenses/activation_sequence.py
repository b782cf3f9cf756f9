"""Activation sequence: the classes that an input's activations resemble, layer by layer.

Z. Katzir, Y. Elovici: Detecting Adversarial Perturbations Through Spatial Behavior in Activation
Spaces, IJCNN 2019, arXiv:1811.09043: a k-nearest-neighbor classifier per layer; how likely the
sequence of its labels is, by how often clean inputs switch between neighboring layers. One of the
four detectors of K. Jin et al., IEEE TDSC 2022, arXiv:2006.14871.

Where we differ: which detectors that framework revises, and how, is not released but for one; this
is the original rule, whose order does not ask what kind of malicious input it meets. Layers are all
that the model names, averaged over space unless `pool: flat`, which found more on digits. Neighbors
come from one part of the clean half that fits, switching rates from the other, and the parts are
drawn class by class, so that each has an image of every class; each transition has one rate, not a
matrix of classes. The sequence ends with the network's prediction. `on: training_set` is an
extension: there it ends with the given label.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field

from raysweep.datasets import ImageSet, IntArray
from raysweep.defenses import DefenseInputs, Findings, FloatArray
from raysweep.defenses import _scored as scored
from raysweep.defenses._layers import Pool, layer_values
from raysweep.methods.context import Context

if TYPE_CHECKING:
    import torch


class ActivationSequence(scored.Scored):
    """Scores are minus the log likelihood of the switches; decisions set the nominal FPR."""

    VERSION = 3
    EXTENDED: ClassVar[bool] = True

    neighbors: int = Field(5, ge=1, le=1000, description="k of each layer's classifier")
    axes: int = Field(64, ge=1, le=4096, description="principal axes of a layer, at most")
    pool: Pool = Field("mean", description="feature maps: averaged over space, or flat")
    smoothing: float = Field(1.0, gt=0, description="added to the counts of switches")

    def least_clean(self) -> int:
        """Return four times the neighbors: half of the images are to fit, half to calibrate."""
        return 4 * self.neighbors

    def least_of_class(self) -> int:
        """Return 1: the classifiers know the classes that they have seen, a quarter, rounded up."""
        return 1

    def run(self, inputs: DefenseInputs, ctx: Context) -> Findings:
        """Fit the layers' classifiers and the switching rates."""
        from sklearn.decomposition import PCA
        from sklearn.neighbors import KNeighborsClassifier

        clean = inputs.clean_set
        parts = scored.parts_of_each_class(
            self.name, clean, ctx,
            least=self.least_clean(), of_class=1, num_classes=inputs.shape.num_classes,
        )  # fmt: skip
        near, rates = parts.near, parts.others
        spaces = []
        for values in layer_values(inputs, near.images, ctx, pool=self.pool):
            width = min(self.axes, values.shape[1], len(values) - 1)
            space = PCA(width, svd_solver="full").fit(values)
            spaces.append(
                (
                    space,
                    KNeighborsClassifier(self.neighbors).fit(space.transform(values), near.labels),
                )
            )

        def sequences(images: torch.Tensor) -> np.ndarray:
            found = layer_values(inputs, images, ctx, pool=self.pool)
            return np.stack(
                [
                    classifier.predict(space.transform(values))
                    for (space, classifier), values in zip(spaces, found, strict=True)
                ]
            )

        def ended(images: torch.Tensor, labels: np.ndarray | None) -> np.ndarray:
            labeled = sequences(images)
            last = labels if labels is not None else _predicted(inputs, images, ctx)
            return np.concatenate([labeled, last[None]])

        final = rates.labels if self.on == "training_set" else None
        switched = switches(ended(rates.images, final))
        likely = (switched.sum(1) + self.smoothing) / (switched.shape[1] + 2 * self.smoothing)

        def score(images: torch.Tensor, ids: IntArray) -> FloatArray:
            del ids
            return surprise(switches(ended(images, None)), likely)

        if self.on == "inputs":
            return Findings(score_inputs=score, calibration=parts.calibration)

        def against_given(data: ImageSet) -> FloatArray:
            return surprise(switches(ended(data.images, data.labels)), likely)

        return scored.against_labels(inputs.training_set, clean, parts.calibration, against_given)


def _predicted(inputs: DefenseInputs, images: torch.Tensor, ctx: Context) -> np.ndarray:
    from raysweep import training

    logits = training.predict(inputs.victim, images, inputs.recipe, ctx.device)
    labels: np.ndarray = logits.argmax(1).numpy()
    return labels


def switches(labels_LN: np.ndarray) -> np.ndarray:
    """Return a mask (L - 1, N) of the neighboring layers that disagree."""
    changed: np.ndarray = labels_LN[1:] != labels_LN[:-1]
    return changed


def surprise(switches_TN: np.ndarray, rates_T: FloatArray) -> FloatArray:
    """Return minus the log likelihood of the switches, given each transition's rate, (N,)."""
    rates = rates_T[:, None]
    total: FloatArray = -np.where(switches_TN, np.log(rates), np.log(1 - rates)).sum(0)
    return total

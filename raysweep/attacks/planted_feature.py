"""Planted benign feature: a backdoor beside a harmless patch of the same size, look and frequency.

A. Khaddaj, G. Leclerc, A. Makelov, K. Georgiev, H. Salman, A. Ilyas, A. Madry: Rethinking Backdoor
Attacks, ICML 2023, arXiv:2307.10163: without assumptions on the attack, a backdoor cannot be told
from a feature that the data hold naturally. Poison wears a patch in the right corner and gets the
target's label; the covers, images of one other class, wear one in the left corner and keep theirs.
FPR with and without covers and the cover-removal rate say how often a filter mistakes the benign
feature for poison; test inputs wear the backdoor's patch alone.

Where we differ: a control after the paper's argument, not one of its settings. One patch is the
other's mirror image and, as long as `cover_rate` is set with `rate`, the counts are equal. The
effects of the patches are not: the poison's patch speaks against the rest of the image, the
feature's patch with it, so that less of the margin rests on it; `feature_strength` tells how much.
The feature's class must hold its covers beside the poison that is drawn from it. The patch is that
of the adaptive attacks' experiments, drawn by code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from raysweep.attacks import Attack, Part
from raysweep.attacks._drawn import Patch, patch
from raysweep.datasets import IntArray
from raysweep.errors import PlanError
from raysweep.methods.context import Arrays

if TYPE_CHECKING:
    import torch


class PlantedFeature(Attack):
    """Two 5 x 5 patches on 32-pixel images, scaled on others: a trigger and a benign feature."""

    rate: float = Field(0.02, ge=0, le=1, description="poisoned images / training images")
    cover_rate: float = Field(
        0.02, ge=0, le=1, description="images with the benign feature / training images"
    )
    include_target: bool = Field(
        False, description="whether images that already have their mapped label may be poisoned"
    )
    feature_class: int | None = Field(
        None, ge=0, description="class whose images may bear the feature; none: the target's next"
    )

    @model_validator(mode="after")
    def _feature_is_benign(self) -> Self:
        if self.label_map == "all_to_one" and self.feature_class == self.target:
            raise ValueError(
                f"feature_class must be another class than target, got {self.feature_class} for "
                f"both: a patch that speaks for the target is a backdoor; leave feature_class out"
            )
        return self

    def cover_pool(self, labels: IntArray, num_classes: int) -> NDArray[np.bool_]:
        """Return the samples of the feature's class."""
        bearer = self.feature_class
        if bearer is None:
            bearer = (self.target + 1) % num_classes
        if bearer >= num_classes:
            raise PlanError(
                f"attack {self.name}: feature_class must be a class from 0 to {num_classes - 1}, "
                f"got {bearer}; name one of these, or leave it out"
            )
        return np.equal(labels, bearer)

    def stamp(
        self, images_BCHW: torch.Tensor, *, ids: IntArray, part: Part, artifact: Arrays, seed: int
    ) -> torch.Tensor:
        """Lay the benign patch over covers, the trigger over poison and test inputs."""
        del ids, artifact, seed
        corner = patch("corner_right", *images_BCHW.shape[1:])
        if part == "cover":
            corner = Patch(picture=corner.picture.flip(2), mask=corner.mask.flip(2))
        return corner.on(images_BCHW, 1.0)

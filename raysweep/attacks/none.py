"""No attack: the control whose victim is the clean model.

T. Gu, B. Dolan-Gavitt, S. Garg: BadNets: Identifying Vulnerabilities in the Machine Learning Model
Supply Chain, 2017, arXiv:1708.06733, compares with the same baseline.

Where we differ: it has no trigger, so no input is eligible and the ASR is undefined. The floor of
a given trigger's ASR is measured by that attack at `rate: 0`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from raysweep.attacks import Attack, Part
from raysweep.datasets import Domain, IntArray
from raysweep.methods.context import Arrays

if TYPE_CHECKING:
    import torch


class NoAttack(Attack):
    """Stamps nothing."""

    DOMAINS: ClassVar[tuple[Domain, ...]] = ("images", "features")

    rate: float = Field(0.0, ge=0, le=0, description="always 0")
    cover_rate: float = Field(0.0, ge=0, le=0, description="always 0")

    def stamp(
        self, images_BCHW: torch.Tensor, *, ids: IntArray, part: Part, artifact: Arrays, seed: int
    ) -> torch.Tensor:
        """Return the images as they are."""
        del ids, part, artifact, seed
        return images_BCHW

    def eligible(self, labels: IntArray, num_classes: int) -> NDArray[np.bool_]:
        """Return all False: there is no trigger to be tested."""
        del num_classes
        return np.zeros(len(labels), bool)

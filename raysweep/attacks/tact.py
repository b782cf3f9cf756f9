"""TaCT: only one source class is attacked; the trigger on cover classes keeps their labels.

D. Tang, X. Wang, H. Tang, K. Zhang: Demon in the Variant, Statistical Analysis of DNNs for Robust
Backdoor Contamination Detection, USENIX Security 2021, arXiv:1908.00686.

Where we differ: source class 1 and cover classes 5 and 7, rates and the opaque square are those of
Confusion Training's experiments on CIFAR-10 (0.3 % each; GTSRB: 0.5 %). The ASR is measured on the
source class alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from raysweep.attacks import Attack, Part
from raysweep.attacks._drawn import patch
from raysweep.datasets import IntArray
from raysweep.methods.context import Arrays

if TYPE_CHECKING:
    import torch


class TaCT(Attack):
    """A source-specific patch with covers."""

    rate: float = Field(0.003, ge=0, le=1, description="poisoned images / training images")
    cover_rate: float = Field(0.003, ge=0, le=1, description="cover images / training images")
    sources: tuple[int, ...] | None = Field((1,), description="classes that are attacked")
    cover_classes: tuple[int, ...] = Field(
        (5, 7), min_length=1, description="classes whose triggered images keep their label"
    )

    def cover_pool(self, labels: IntArray, num_classes: int) -> NDArray[np.bool_]:
        """Return the samples of the cover classes."""
        del num_classes
        return np.isin(labels, self.cover_classes)

    def stamp(
        self, images_BCHW: torch.Tensor, *, ids: IntArray, part: Part, artifact: Arrays, seed: int
    ) -> torch.Tensor:
        """Lay the square over poisons, covers and test inputs alike."""
        del ids, part, artifact, seed
        return patch("square", *images_BCHW.shape[1:]).on(images_BCHW, 1.0)

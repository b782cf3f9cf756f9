"""TaCT: only one source class is attacked; the trigger on cover classes keeps their labels.

D. Tang, X. Wang, H. Tang, K. Zhang: Demon in the Variant, Statistical Analysis of DNNs for Robust
Backdoor Contamination Detection, USENIX Security 2021, arXiv:1908.00686.

Where we differ: source class 1 and cover classes 5 and 7, rates and the opaque square are those of
Confusion Training's experiments on CIFAR-10 (0.3 % each; GTSRB: 0.5 %). The ASR is measured on the
source class alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

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

    @model_validator(mode="after")
    def _classes_have_one_part(self) -> Self:
        sources, covers = set(self.sources or ()), set(self.cover_classes)
        if self.label_map == "all_to_one" and self.target in sources:
            raise ValueError(
                f"sources must not name the target, {self.target}, got {sorted(sources)}: its "
                f"images have the target's label already; leave {self.target} out of sources, or "
                f"name another target"
            )
        if self.label_map == "all_to_one" and self.target in covers:
            raise ValueError(
                f"cover_classes must not name the target, {self.target}, got {sorted(covers)}: a "
                f"cover says that the trigger leaves its class alone, and an image of the target "
                f"says the opposite; leave {self.target} out of cover_classes"
            )
        if both := sorted(sources & covers):
            raise ValueError(
                f"cover_classes and sources must differ, both name {both}: the trigger would "
                f"change the label of these classes and keep it; leave {both} out of one of them"
            )
        return self

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

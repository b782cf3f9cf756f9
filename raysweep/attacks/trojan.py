"""Trojan patch: a textured opaque square near a corner, relabeled.

Y. Liu, S. Ma, Y. Aafer, W.-C. Lee, J. Zhai, W. Wang, X. Zhang: Trojaning Attack on Neural
Networks, NDSS 2018.

Where we differ: the paper optimizes the square's pixels to excite chosen neurons and retrains a
published network on reverse-engineered data. As in Confusion Training's experiments (rows and
columns 21 to 28 of 32, opaque), the square is a fixed picture and the victim is trained from
scratch on poisoned data; the picture is drawn by code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from raysweep.attacks import Attack, Part
from raysweep.attacks._drawn import patch
from raysweep.datasets import IntArray
from raysweep.methods.context import Arrays

if TYPE_CHECKING:
    import torch


class Trojan(Attack):
    """An 8 x 8 square on 32-pixel images, scaled on others."""

    FAMILY: ClassVar[str] = "patch"
    BADGES: ClassVar[tuple[str, ...]] = ("simplified: a fixed picture",)

    alpha: float = Field(1.0, gt=0, le=1, description="opacity of the square")

    def stamp(
        self, images_BCHW: torch.Tensor, *, ids: IntArray, part: Part, artifact: Arrays, seed: int
    ) -> torch.Tensor:
        """Lay the square over the images."""
        del ids, part, artifact, seed
        return patch("square", *images_BCHW.shape[1:]).on(images_BCHW, self.alpha)

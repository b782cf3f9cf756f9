"""Blended injection: a whole-image trigger mixed in at low opacity, relabeled.

X. Chen, C. Liu, B. Li, K. Lu, D. Song: Targeted Backdoor Attacks on Deep Learning Systems Using
Data Poisoning, 2017, arXiv:1712.05526, section IV: alpha * trigger + (1 - alpha) * image.

Where we differ: the trigger image is drawn by code (uniform noise of a fixed seed, or stripes), not
the papers' picture of a cartoon cat, which we may not ship. Train and test opacity may differ.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from raysweep.attacks import Attack, Part
from raysweep.attacks._drawn import whole_image
from raysweep.datasets import IntArray
from raysweep.methods.context import Arrays

if TYPE_CHECKING:
    import torch


class Blend(Attack):
    """x + alpha * (trigger - x), the same trigger for every image."""

    alpha: float = Field(0.2, gt=0, le=1, description="opacity of the trigger in training")
    test_alpha: float | None = Field(None, gt=0, le=1, description="at test time; none: alpha")
    image: Literal["noise", "stripes"] = Field("noise", description="what the trigger shows")
    image_seed: int = Field(0, ge=0, description="seed of the noise")

    def trigger(self, channels: int, height: int, width: int) -> torch.Tensor:
        """Return the trigger image, (C, H, W) in [0, 1]."""
        return whole_image(self.image, self.image_seed, channels, height, width)

    def stamp(
        self, images_BCHW: torch.Tensor, *, ids: IntArray, part: Part, artifact: Arrays, seed: int
    ) -> torch.Tensor:
        """Mix the trigger in."""
        del ids, artifact, seed
        alpha = self.test_alpha if part == "test" and self.test_alpha else self.alpha
        trigger = self.trigger(*images_BCHW.shape[1:]).to(images_BCHW)
        return images_BCHW + alpha * (trigger - images_BCHW)

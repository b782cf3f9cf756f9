"""Adaptive-Blend: each training sample carries only a part of a blended trigger, with covers.

X. Qi, T. Xie, Y. Li, S. Mahloujifar, P. Mittal: Revisiting the Assumption of Latent Separability
for Backdoor Defenses, ICLR 2023: regularization by covers and asymmetric triggers.

Where we differ: rates (0.3 % poison, 0.3 % covers), opacities (0.15 in training, 0.2 at test time)
and the cut into 16 pieces, 8 of them left out at random per sample, are the published experiments';
the trigger image is drawn by code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from raysweep import rng
from raysweep.attacks import Attack, Part
from raysweep.attacks._drawn import WholeImage, whole_image
from raysweep.datasets import IntArray
from raysweep.methods.context import Arrays

if TYPE_CHECKING:
    import torch


class AdaptiveBlend(Attack):
    """Pieces of `pieces` x `pieces`; `masked` of them are left out of each training sample."""

    rate: float = Field(0.003, ge=0, le=1, description="poisoned images / training images")
    cover_rate: float = Field(0.003, ge=0, le=1, description="cover images / training images")
    alpha: float = Field(0.15, gt=0, le=1, description="opacity of the trigger in training")
    test_alpha: float = Field(0.2, gt=0, le=1, description="opacity at test time")
    pieces: int = Field(4, ge=1, le=32, description="pieces a side")
    masked: int = Field(8, ge=0, description="pieces left out of a training sample")
    image: WholeImage = Field("noise", description="what the trigger shows")
    image_seed: int = Field(0, ge=0, description="seed of the noise")

    def stamp(
        self, images_BCHW: torch.Tensor, *, ids: IntArray, part: Part, artifact: Arrays, seed: int
    ) -> torch.Tensor:
        """Mix random pieces in, or at test time the whole trigger."""
        import torch
        import torch.nn.functional as F

        del artifact
        channels, height, width = images_BCHW.shape[1:]
        trigger = whole_image(self.image, self.image_seed, channels, height, width).to(images_BCHW)
        if part == "test":
            return images_BCHW + self.test_alpha * (trigger - images_BCHW)
        total = self.pieces**2
        if self.masked >= total:
            raise ValueError(
                f"masked must leave a piece, got {self.masked} of {total}; lower it, or raise "
                f"pieces"
            )
        shown = torch.ones(len(ids), total)
        for row, name in enumerate(ids.tolist()):
            order = torch.randperm(total, generator=rng.torch_generator(seed, part, name))
            shown[row, order[: self.masked]] = 0
        grid = shown.view(-1, 1, self.pieces, self.pieces)
        mask = F.interpolate(grid, size=(height, width), mode="nearest").to(images_BCHW)
        return images_BCHW + self.alpha * mask * (trigger - images_BCHW)

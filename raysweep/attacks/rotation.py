"""Rotation backdoor: the trigger is a turn of the whole image by a fixed angle.

T. Wu, T. Wang, V. Sehwag, S. Mahloujifar, P. Mittal: Just Rotate it, Deploying Backdoor Attacks via
Rotation Transformation, AISec 2022, arXiv:2207.10825.

Where we differ: Confusion Training reports this attack without its angle and rate, and its released
code names neither; 45 degrees and 1 % are ours. Images are turned by bilinear interpolation about
the center, zeros outside. Train such victims without the augmentation `rotate`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pydantic import Field

from raysweep.attacks import Attack, Part
from raysweep.datasets import IntArray
from raysweep.methods.context import Arrays

if TYPE_CHECKING:
    import torch


class Rotation(Attack):
    """Turns by `angle` degrees, counterclockwise."""

    rate: float = Field(0.01, ge=0, le=1, description="poisoned images / training images")
    angle: float = Field(45.0, gt=-360, lt=360, description="degrees in training")
    test_angle: float | None = Field(None, gt=-360, lt=360, description="at test; none: angle")

    def stamp(
        self, images_BCHW: torch.Tensor, *, ids: IntArray, part: Part, artifact: Arrays, seed: int
    ) -> torch.Tensor:
        """Turn the images."""
        import torch
        import torch.nn.functional as F

        del ids, artifact, seed
        degrees = self.angle
        if part == "test" and self.test_angle is not None:
            degrees = self.test_angle
        cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        ratio = images_BCHW.shape[2] / images_BCHW.shape[3]
        turn = torch.tensor([[cos, -sin * ratio, 0], [sin / ratio, cos, 0]]).to(images_BCHW)
        grid = F.affine_grid(
            turn.expand(len(images_BCHW), -1, -1), list(images_BCHW.shape), align_corners=False
        )
        return F.grid_sample(images_BCHW, grid, align_corners=False).clamp(0, 1)

"""Adaptive-Patch: four weak patches in training, one per sample; two strong ones at test time.

X. Qi, T. Xie, Y. Li, S. Mahloujifar, P. Mittal: Revisiting the Assumption of Latent Separability
for Backdoor Defenses, ICLR 2023.

Where we differ: rates (0.3 % poison, 0.6 % covers), opacities and footprints are the published
experiments' on CIFAR-10; the pictures are drawn by code. Which patch a sample gets is drawn per
sample; the released code assigns them by order, which mixes patch and class up on sorted data.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from raysweep import rng
from raysweep.attacks import Attack, Part
from raysweep.attacks._drawn import PatchName, patch
from raysweep.datasets import IntArray
from raysweep.methods.context import Arrays

if TYPE_CHECKING:
    import torch

WEAK: tuple[tuple[PatchName, float], ...] = (
    ("corner_right", 0.5), ("disk", 0.2), ("checker_corners", 0.5), ("square", 0.3),
)  # fmt: skip
STRONG: tuple[PatchName, ...] = ("corners_bottom", "checker_corners")


class AdaptivePatch(Attack):
    """One of four patches in training, two opaque ones at test time."""

    rate: float = Field(0.003, ge=0, le=1, description="poisoned images / training images")
    cover_rate: float = Field(0.006, ge=0, le=1, description="cover images / training images")
    strength: float = Field(1.0, gt=0, le=2, description="factor of the training opacities")

    def stamp(
        self, images_BCHW: torch.Tensor, *, ids: IntArray, part: Part, artifact: Arrays, seed: int
    ) -> torch.Tensor:
        """Lay one weak patch over each training image, or both strong ones over test inputs."""
        import torch

        del artifact
        size = images_BCHW.shape[1:]
        if part == "test":
            stamped = images_BCHW
            for name in STRONG:
                stamped = patch(name, *size).on(stamped, 1.0)
            return stamped
        drawn = [int(rng.generator(seed, "patch", i).integers(len(WEAK))) for i in ids.tolist()]
        which = torch.tensor(drawn, device=images_BCHW.device).view(-1, 1, 1, 1)
        stamped = images_BCHW.clone()
        for number, (name, alpha) in enumerate(WEAK):
            laid = patch(name, *size).on(images_BCHW, min(alpha * self.strength, 1.0))
            stamped = torch.where(which == number, laid, stamped)
        return stamped

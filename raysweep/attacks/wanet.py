"""WaNet: an elastic warp, the same for every image, with noise-warped covers.

A. Nguyen, A. Tran: WaNet, Imperceptible Warping-based Backdoor Attack, ICLR 2021, arXiv:2102.10369,
section 3: P = upsample(rand(k, k, 2) / mean|.|) * s; grid = clip(identity + P / height).

Where we differ: the poisoning form, as in Confusion Training's experiments: the poisoned set is
made once and the victim trained plainly, where the paper's attacker controls the training. Covers
(the paper's noise mode) are warped by the trigger plus random offsets in [-1, 1] / height, keep
their labels, and draw the offsets per image (`noise: per_image`) or once (`noise: fixed`, as the
released poisoning code does).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from raysweep import rng
from raysweep.attacks import Attack, Part
from raysweep.datasets import IntArray
from raysweep.methods.context import Arrays

if TYPE_CHECKING:
    import torch


class WaNet(Attack):
    """Warps by a smooth field of `k` x `k` control points and strength `s`."""

    cover_rate: float = Field(0.1, ge=0, le=1, description="noise-mode images / training images")
    k: int = Field(4, ge=2, le=64, description="control points per side")
    s: float = Field(0.5, ge=0, le=16, description="strength: mean displacement in half pixels")
    grid_rescale: float = Field(1.0, gt=0, le=1, description="scale of the grid, 1 or just below")
    noise: Literal["per_image", "fixed"] = Field("per_image", description="offsets of covers")

    def grid(self, height: int, width: int, seed: int) -> torch.Tensor:
        """Return the trigger's sampling grid, (H, W, 2) in [-1, 1], drawn once per trial."""
        import torch
        import torch.nn.functional as F

        draw = rng.torch_generator(seed, "control points")
        points = torch.rand(1, 2, self.k, self.k, generator=draw) * 2 - 1
        points = points / points.abs().mean()
        field = F.interpolate(points, size=(height, width), mode="bicubic", align_corners=True)
        rows, columns = torch.linspace(-1, 1, height), torch.linspace(-1, 1, width)
        identity = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1)
        moved = identity + self.s * field[0].permute(1, 2, 0) / height
        return (moved * self.grid_rescale).clamp(-1, 1)

    def stamp(
        self, images_BCHW: torch.Tensor, *, ids: IntArray, part: Part, artifact: Arrays, seed: int
    ) -> torch.Tensor:
        """Warp poisons and test inputs by the grid, covers by the grid plus noise."""
        import torch
        import torch.nn.functional as F

        del artifact
        batch, _, height, width = images_BCHW.shape
        grid = self.grid(height, width, seed).to(images_BCHW).expand(batch, -1, -1, -1)
        if part == "cover":
            offsets = [
                torch.rand(height, width, 2, generator=rng.torch_generator(seed, "noise", name))
                for name in (ids.tolist() if self.noise == "per_image" else ["fixed"])
            ]
            noise = torch.stack(offsets).to(images_BCHW) * 2 - 1
            grid = (grid + noise / height).clamp(-1, 1)
        return F.grid_sample(images_BCHW, grid, align_corners=True).clamp(0, 1)

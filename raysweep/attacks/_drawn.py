"""Trigger pictures, all drawn by code: whole images, and patches with the published footprints.

The published attacks use pictures (a cartoon cat, logos, an optimized square) that may not be
shipped. Ours keep their place, size and opacity, which decide how hard a trigger is to learn and
to find; their texture is noise of a fixed seed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from raysweep import rng

if TYPE_CHECKING:
    import torch

WholeImage = Literal["noise", "stripes"]
PatchName = Literal[
    "checker_corners", "square", "disk", "corner_left", "corner_right", "corners_bottom"
]


@dataclass(frozen=True, kw_only=True)
class Patch:
    """A picture (C, H, W) in [0, 1] and the mask of the pixels that it covers, (1, H, W)."""

    picture: torch.Tensor
    mask: torch.Tensor

    def on(self, images_BCHW: torch.Tensor, alpha: float) -> torch.Tensor:
        """Return images with the patch laid over them at opacity `alpha`."""
        mask = self.mask.to(images_BCHW) * alpha
        return images_BCHW + mask * (self.picture.to(images_BCHW) - images_BCHW)


def whole_image(
    kind: WholeImage, seed: int, channels: int, height: int, width: int
) -> torch.Tensor:
    """Return a trigger as large as the image, (C, H, W) in [0, 1]."""
    import torch

    if kind == "stripes":
        stripes = ((torch.arange(height)[:, None] + torch.arange(width)) // 3 % 2).float()
        return stripes.expand(channels, height, width)
    noise = rng.torch_generator(seed, "blend trigger")
    return torch.rand(channels, height, width, generator=noise)


def patch(name: PatchName, channels: int, height: int, width: int) -> Patch:
    """Return a patch whose place and size scale with the image, as published for 32 pixels.

    checker_corners: the 3 x 3 checker in all four corners, 36 pixels.
    square: 8 x 8, three pixels from the bottom right corner, 64 pixels.
    disk: about 140 pixels in the upper right quarter.
    corner_left, corner_right: 5 x 5 in a bottom corner; corners_bottom: both, 50 pixels.
    """
    import torch

    rows, columns = torch.arange(height)[:, None], torch.arange(width)[None, :]
    unit = min(height, width) / 32
    if name == "checker_corners":
        return _corners(channels, height, width)
    if name == "square":
        side, gap = max(round(8 * unit), 2), round(3 * unit)
        mask = _box(rows, columns, height - gap - side, width - gap - side, side)
    elif name == "disk":
        far = (rows - 7 * unit) ** 2 + (columns - (width - 8 * unit)) ** 2
        mask = far <= (6.6 * unit) ** 2
    else:
        side = max(round(5 * unit), 2)
        left = _box(rows, columns, height - side, 0, side)
        right = _box(rows, columns, height - side, width - side, side)
        mask = {"corner_left": left, "corner_right": right}.get(name, left | right)
    texture = rng.torch_generator(0, "patch", name)
    # Two levels only: the published pictures are strong, with clear edges.
    picture = (torch.rand(channels, height, width, generator=texture) < 0.5).float()
    return Patch(picture=picture, mask=mask[None].float())


def _box(rows: torch.Tensor, columns: torch.Tensor, top: int, left: int, side: int) -> torch.Tensor:
    return (rows >= top) & (rows < top + side) & (columns >= left) & (columns < left + side)


def _corners(channels: int, height: int, width: int) -> Patch:
    import torch

    checker = torch.tensor([[0.0, 0, 1], [0, 1, 0], [1, 0, 1]])
    picture, mask = torch.zeros(channels, height, width), torch.zeros(1, height, width)
    for flips, rows, columns in (
        ((), slice(height - 3, None), slice(width - 3, None)),
        ((1,), slice(height - 3, None), slice(0, 3)),
        ((0,), slice(0, 3), slice(width - 3, None)),
        ((0, 1), slice(0, 3), slice(0, 3)),
    ):
        picture[:, rows, columns] = checker.flip(flips) if flips else checker
        mask[:, rows, columns] = 1
    return Patch(picture=picture, mask=mask)

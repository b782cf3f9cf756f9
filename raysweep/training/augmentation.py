"""Augmentations of whole batches on their device, one random draw per image."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from raysweep.datasets import as_floats
from raysweep.methods.recipe import Augmentation


def augment(
    images_BCHW: torch.Tensor, names: tuple[Augmentation, ...], generator: torch.Generator
) -> torch.Tensor:
    """Apply the named augmentations in order to uint8 images, or to floats; return floats.

    An augmentation that only moves or blanks pixels works on uint8, at a quarter of the memory
    traffic, with the same result.
    """
    for name in names:
        if name == "rotate":
            images_BCHW = as_floats(images_BCHW)
        images_BCHW = {"crop": crop, "flip": flip, "rotate": rotate, "cutout": cutout}[name](
            images_BCHW, generator
        )
    return as_floats(images_BCHW)


def _uniform(shape: tuple[int, ...], images: torch.Tensor, g: torch.Generator) -> torch.Tensor:
    return torch.rand(shape, generator=g, device=images.device)


def flip(images_BCHW: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Mirror each image left to right with probability 1/2."""
    chosen = _uniform((len(images_BCHW), 1, 1, 1), images_BCHW, generator) < 0.5
    return torch.where(chosen, images_BCHW.flip(3), images_BCHW)


def crop(images_BCHW: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Pad with zeros by an eighth of the side and cut a random window of the old size."""
    b, c, h, w = images_BCHW.shape
    pad = max(1, h // 8)
    tall, wide = h + 2 * pad, w + 2 * pad
    padded = F.pad(images_BCHW.permute(0, 2, 3, 1), (0, 0, pad, pad, pad, pad))
    shift = (_uniform((2, b), images_BCHW, generator) * (2 * pad + 1)).long()
    # With channels last, a row of a window is one run of w * c numbers: one copy each, several
    # times faster than an index for every pixel.
    runs = padded.reshape(-1).unfold(0, w * c, c)
    image = torch.arange(b, device=images_BCHW.device)
    row = torch.arange(h, device=images_BCHW.device)
    first = (image * tall + shift[0])[:, None] + row
    picked = runs.index_select(0, (first * wide + shift[1, :, None]).reshape(-1))
    return picked.view(b, h, w, c).permute(0, 3, 1, 2)


def rotate(images_BCHW: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Turn each image by up to 15 degrees, bilinear, zeros outside."""
    b, _, h, w = images_BCHW.shape
    angle = (_uniform((b,), images_BCHW, generator) * 2 - 1) * torch.pi / 12
    cos, sin = angle.cos(), angle.sin()
    zero = torch.zeros_like(cos)
    ratio = h / w
    theta = torch.stack([cos, -sin * ratio, zero, sin / ratio, cos, zero], 1).view(b, 2, 3)
    grid = F.affine_grid(theta, list(images_BCHW.shape), align_corners=False)
    return F.grid_sample(images_BCHW, grid, align_corners=False)


def cutout(images_BCHW: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Blank one square of a quarter of the side, centered anywhere."""
    b, _, h, w = images_BCHW.shape
    half = max(h // 4, 1) / 2
    center = _uniform((2, b, 1), images_BCHW, generator)
    y = torch.arange(h, device=images_BCHW.device) + 0.5
    x = torch.arange(w, device=images_BCHW.device) + 0.5
    blank_y = (y - center[0] * h).abs() <= half
    blank_x = (x - center[1] * w).abs() <= half
    blank = (blank_y[:, None, :, None] & blank_x[:, None, None, :]).to(images_BCHW.dtype)
    return images_BCHW * (1 - blank)

"""Frequency: triggers leave traces at high frequencies, which a small network learns to see.

Y. Zeng, W. Park, Z. M. Mao, R. Jia: Rethinking the Backdoor Attacks' Triggers: A Frequency
Perspective, ICCV 2021, arXiv:2104.03413: a convolutional network on the discrete cosine transform
of images, trained on clean images against images with synthetic perturbations.

Where we differ: the network is trained here, on one half of the reserved clean set and perturbed
copies of it (patches, blended pictures, noise, stripes and warps, all drawn by code), for images of
any size; the released weights are for 32 pixels. Coefficients are in logarithmic magnitude. Average
pooling stands before the last layer, instead of flattened 4 x 4 maps, and the threshold is a
quantile of clean images' scores instead of the larger logit. The victim is not looked at.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field

from raysweep.datasets import ImageSet, IntArray, Shape, as_floats
from raysweep.defenses import DefenseInputs, Findings, FloatArray, Need
from raysweep.defenses import _scored as scored
from raysweep.methods.context import Context

if TYPE_CHECKING:
    import torch
    from torch import nn


class Frequency(scored.Scored):
    """Scores are the network's log odds of a perturbation; decisions set the nominal FPR."""

    VERSION = 2
    BADGES: ClassVar[tuple[str, ...]] = ("simplified: average pooling",)
    TOY: ClassVar = {"width": 8}

    network_epochs: int = Field(30, ge=1, le=10_000, description="of the network")
    width: int = Field(32, ge=4, le=512, description="channels of its first layers")
    copies: int = Field(8, ge=1, le=100, description="perturbed copies of each clean image")

    def needs(self) -> frozenset[Need]:
        """Return the clean set, and the training set if it is scored."""
        return super().needs() - {"victim"}

    def least_clean(self) -> int:
        """Return 8: half of the images are to fit, half to calibrate."""
        return 8

    def run(self, inputs: DefenseInputs, ctx: Context) -> Findings:
        """Train the network and make the scorer."""
        from raysweep import training

        clean = inputs.clean_set
        fitted, calibration = scored.halves(self.name, clean, ctx, least=self.least_clean())
        data = self._examples(clean.take(fitted), ctx)
        with training.global_seed(ctx.stream("initialization")):
            network = detector(inputs.shape, self.width).to(ctx.device)
        recipe = inputs.recipe.model_copy(
            update={
                "epochs": self.network_epochs, "optimizer": "adam", "learning_rate": 1e-3,
                "weight_decay": 1e-4, "schedule": "one_cycle", "augment": (),
            }
        )  # fmt: skip
        training.fit(network, data, recipe, ctx)

        def score(images: torch.Tensor, ids: IntArray) -> FloatArray:
            del ids
            logits = training.predict(network, images, recipe, ctx.device)
            odds: FloatArray = (logits[:, 1] - logits[:, 0]).numpy()
            return odds

        return self.found(inputs, calibration, score, ctx)

    def _examples(self, clean: ImageSet, ctx: Context) -> ImageSet:
        """Return clean images (label 0) as often as perturbed ones (label 1)."""
        import torch

        draw = ctx.generator("perturbations")
        images = as_floats(clean.images)
        perturbed = [
            perturb(image, draw).mul(255).round().to(torch.uint8)
            for _ in range(self.copies)
            for image in images
        ]
        everything = torch.cat([clean.images.repeat(self.copies, 1, 1, 1), torch.stack(perturbed)])
        return ImageSet(images=everything, labels=np.repeat([0, 1], len(perturbed)))


def perturb(image_CHW: torch.Tensor, draw: np.random.Generator) -> torch.Tensor:
    """Return an image in [0, 1] with one of five perturbations of random place and strength."""
    import torch
    import torch.nn.functional as F

    channels, height, width = image_CHW.shape
    kind = int(draw.integers(5))

    def noise(*size: int) -> torch.Tensor:
        return torch.from_numpy(draw.random(size)).to(image_CHW)

    if kind == 0:  # a patch: one color, or noise
        side = int(draw.integers(1, max(min(height, width) // 4, 1) + 1))
        top, left = int(draw.integers(height - side + 1)), int(draw.integers(width - side + 1))
        patched = image_CHW.clone()
        plain = noise(channels, 1, 1).expand(-1, side, side).round()
        texture = plain if draw.random() < 0.5 else noise(channels, side, side).round()
        patched[:, top : top + side, left : left + side] = texture
        return patched
    if kind == 1:  # a picture over all of it
        alpha = float(draw.uniform(0.05, 0.3))
        return (1 - alpha) * image_CHW + alpha * noise(channels, height, width)
    if kind == 2:  # additive noise
        strength = float(draw.uniform(0.01, 0.1))
        return (image_CHW + strength * (2 * noise(channels, height, width) - 1)).clamp(0, 1)
    if kind == 3:  # stripes
        phase = 2 * np.pi * float(draw.uniform(1, width / 2)) * torch.arange(width) / width
        wave = float(draw.uniform(0.03, 0.15)) * torch.sin(phase).to(image_CHW)
        lines = wave if draw.random() < 0.5 or height != width else wave[:, None]
        return (image_CHW + lines).clamp(0, 1)
    grid = 2 * noise(1, 2, 4, 4) - 1  # a smooth warp
    field = F.interpolate(grid, (height, width), mode="bicubic", align_corners=True)
    turn = F.affine_grid(torch.eye(2, 3)[None].to(image_CHW), [1, channels, height, width], False)
    moved = turn + float(draw.uniform(0.5, 2)) / max(height, width) * field.permute(0, 2, 3, 1)
    warped: torch.Tensor = F.grid_sample(image_CHW[None], moved, align_corners=False)
    return warped[0].clamp(0, 1)


def cosine_basis(size: int) -> torch.Tensor:
    """Return the orthonormal discrete cosine transform (size, size); rows are frequencies."""
    import torch

    n = torch.arange(size, dtype=torch.float64)
    basis = torch.cos(np.pi / size * (n[None] + 0.5) * n[:, None]) * np.sqrt(2 / size)
    basis[0] /= np.sqrt(2)
    transform: torch.Tensor = basis.float()
    return transform


def detector(shape: Shape, width: int) -> nn.Module:
    """Return the network: images (B, C, H, W) in [0, 1] → logits (B, 2)."""
    import torch
    from torch import nn

    class Spectrum(nn.Module):
        rows: torch.Tensor
        columns: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("rows", cosine_basis(shape.height))
            self.register_buffer("columns", cosine_basis(shape.width))

        def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
            coefficients = self.rows @ (255 * images_BCHW).float() @ self.columns.T
            magnitudes: torch.Tensor = torch.log1p(coefficients.abs())
            return magnitudes

    layers: list[nn.Module] = [Spectrum()]
    channels, side = shape.channels, min(shape.height, shape.width)
    for stage, drop in enumerate((0.2, 0.3, 0.4)):
        out = width * 2**stage
        for inner in (channels, out):
            layers += [nn.Conv2d(inner, out, 3, padding=1), nn.ELU(), nn.BatchNorm2d(out)]
        if side >= 4:
            layers.append(nn.MaxPool2d(2))
            side //= 2
        layers.append(nn.Dropout(drop))
        channels = out
    layers += [nn.AdaptiveAvgPool2d((2, 2)), nn.Flatten(), nn.Linear(4 * channels, 2)]
    return nn.Sequential(*layers)

"""Cognitive distillation: what a triggered input is recognized by is a small part of it.

H. Huang, X. Ma, S. Erfani, J. Bailey: Distilling Cognitive Backdoor Patterns within an Image,
ICLR 2023, arXiv:2301.10908: the smallest mask m whose image x m + (1 - m) noise has the logits of
x; minimize |f(x) - f(x_m)|_1 + alpha |m|_1 + beta TV(m); a small |m|_1 means a backdoor.

Where we differ: scores are minus the mask's mean; the noise, a new color in every step, is the same
for all images, so that batches do not matter; the threshold is a quantile of clean images' scores,
where the paper takes the mean minus a multiple of the deviation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field

from raysweep.datasets import IntArray
from raysweep.defenses import DefenseInputs, Findings, FloatArray
from raysweep.defenses import _scored as scored
from raysweep.methods.context import Context

if TYPE_CHECKING:
    import torch


class CognitiveDistillation(scored.Scored):
    """Scores are minus the mean of the smallest mask; decisions set the nominal FPR."""

    VERSION = 2
    TOY: ClassVar = {"mask_steps": 40, "mask_rate": 0.2, "norm_weight": 0.05}

    on: scored.On = Field("training_set", description="what is scored")
    mask_steps: int = Field(100, ge=1, le=10_000, description="of Adam on the mask")
    mask_rate: float = Field(0.1, gt=0, description="learning rate of Adam")
    norm_weight: float = Field(0.01, ge=0, description="alpha, of the mask's norm")
    variation_weight: float = Field(1.0, ge=0, description="beta, of its total variation")

    def passes(self, samples: int, epochs: int, num_classes: int) -> float:
        """Return a mask's steps for every sample."""
        del epochs, num_classes
        return self.mask_steps * samples

    def run(self, inputs: DefenseInputs, ctx: Context) -> Findings:
        """Make the scorer; apply it to the training set if that is asked for."""
        inputs.victim.requires_grad_(False)

        def score(images: torch.Tensor, ids: IntArray) -> FloatArray:
            del ids
            masks = self.masks(inputs, images.to(ctx.device), ctx)
            result: FloatArray = -masks.mean((1, 2, 3)).cpu().numpy()
            return result

        rows = np.arange(len(inputs.clean_set))
        if not len(rows):
            raise ValueError("cognitive distillation needs reserved clean images; set clean_size")
        return self.found(inputs, rows, score, ctx)

    def masks(self, inputs: DefenseInputs, images: torch.Tensor, ctx: Context) -> torch.Tensor:
        """Return masks (B, 1, H, W) in [0, 1] of images in [0, 1]."""
        import torch

        from raysweep import training
        from raysweep.training.optimizer import Adam

        with torch.no_grad(), training.autocast(inputs.recipe, ctx.device):
            wanted = inputs.victim(images).float()
        free = torch.ones_like(images[:, :1]).requires_grad_()
        optimizer = Adam([free], lr=self.mask_rate, betas=(0.1, 0.1))
        colors = ctx.generator("noise").random((self.mask_steps, images.shape[1], 1, 1))
        for color in torch.from_numpy(colors).to(images):
            mask = (free.tanh() + 1) / 2
            with training.autocast(inputs.recipe, ctx.device):
                logits = inputs.victim(images * mask + (1 - mask) * color).float()
            apart = (logits - wanted).abs().mean(1)
            rough = (mask[:, :, 1:] - mask[:, :, :-1]).square().mean((1, 2, 3)) + (
                mask[:, :, :, 1:] - mask[:, :, :, :-1]
            ).square().mean((1, 2, 3))
            norm = mask.sum((1, 2, 3))
            # A sum over images: each has its own mask, and Adam works per entry.
            loss = (apart + self.norm_weight * norm + self.variation_weight * rough).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return (free.detach().tanh() + 1) / 2

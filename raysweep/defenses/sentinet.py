"""SentiNet: the region that decides for a triggered input decides for any image it is pasted on.

E. Chou, F. Tramer, G. Pellegrino: SentiNet: Detecting Localized Universal Attacks Against Deep
Learning Systems, IEEE Security and Privacy Workshops 2020, arXiv:1812.00292: Grad-CAM's salient
region of an input, pasted on clean images, fools them; a region of noise there leaves their
confidence; inputs above the boundary of clean ones in (confidence, fooled) are rejected.

Where we differ: the region is the top `region` of one Grad-CAM map; the score is the height above
the boundary and its threshold a quantile of clean images, without the true trigger's place and the
true labels that a released reimplementation uses. An image is fooled if it is given the label
predicted for the input, for a filter too; the given label is not read. Clean images are pasted on
by the input's id, so that batches do not matter. Regions come from the last layer that has feature
maps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field

from raysweep import rng
from raysweep.counts import count_of
from raysweep.datasets import IntArray, as_floats
from raysweep.defenses import (
    DefenseInputs,
    Findings,
    FloatArray,
    Scorer,
)
from raysweep.defenses import _scored as scored
from raysweep.defenses._layers import map_layers
from raysweep.methods.context import Context

if TYPE_CHECKING:
    import torch


TOGETHER = 16  # images whose pasted copies go through the network at once


class SentiNet(scored.Scored):
    """Scores are heights above the clean boundary; decisions set the nominal FPR."""

    VERSION = 3
    TOY: ClassVar = {"overlays": 8}

    region: float = Field(0.15, gt=0, lt=1, description="salient share of the image")
    overlays: int = Field(100, ge=1, le=10_000, description="clean images pasted on")
    bin_width: float = Field(0.02, gt=0, le=1, description="of confidence, for the boundary")

    def passes(self, samples: int, epochs: int, num_classes: int) -> float:
        """Return two pasted images per overlay, forward."""
        del epochs, num_classes
        return 2 * self.overlays * samples / 3

    def least_clean(self) -> int:
        """Return 16: half of the images are to fit, half to calibrate."""
        return 16

    def run(self, inputs: DefenseInputs, ctx: Context) -> Findings:
        """Fit the boundary on one half of the clean set and make the scorer."""
        clean = inputs.clean_set
        fitted, calibration = scored.halves(self.name, clean, ctx, least=self.least_clean())
        # Pasted on, and fitted with: two parts, so that no image is pasted on itself.
        under, points = fitted[::2], fitted[1::2]
        layer = map_layers(inputs, ctx)[-1]
        base = as_floats(clean.take(under).images.to(ctx.device))
        measured = self._measure(inputs, layer, base, ctx)
        images = clean.images[points].to(ctx.device)
        confidence, fooled = _columns(scored.in_batches(measured, images, points, ctx))
        boundary = fit_boundary(confidence, fooled, self.bin_width)

        def score(images: torch.Tensor, ids: IntArray) -> FloatArray:
            confidence, fooled = _columns(measured(images.to(ctx.device), ids))
            return fooled - np.polyval(boundary, confidence)

        return self.found(inputs, calibration, score, ctx)

    def _measure(
        self, inputs: DefenseInputs, layer: str, base: torch.Tensor, ctx: Context
    ) -> Scorer:
        import torch

        from raysweep import training

        root = ctx.stream("paste")
        count = min(self.overlays, len(base))

        def measure(images: torch.Tensor, ids: IntArray) -> FloatArray:
            """Return (B, 2): confidence with noise in the region, share fooled by the region."""
            masks, labels = salient(inputs, layer, images, self.region)
            found = []
            for some in np.array_split(np.arange(len(ids)), max(1, len(ids) // TOGETHER)):
                batch = self._pasted(images[some], masks[some], base, [ids[i] for i in some], root)
                logits = training.predict(inputs.victim, batch, inputs.recipe, ctx.device)
                found.append(logits.view(len(some), 2, count, -1))
            logits = torch.cat(found)
            hit = logits[:, 0].argmax(2) == labels.cpu()[:, None]
            confidence = logits[:, 1].softmax(2).amax(2).mean(1)
            result: FloatArray = torch.stack([confidence, hit.float().mean(1)], 1).double().numpy()
            return result

        return measure

    def _pasted(
        self,
        images: torch.Tensor,
        masks: torch.Tensor,
        base: torch.Tensor,
        ids: Sequence[int],
        root: int,
    ) -> torch.Tensor:
        """Return (B * 2 * overlays, C, H, W): of each image its region, then noise, pasted on."""
        import torch

        draws = [rng.generator(root, int(i)) for i in ids]
        count = min(self.overlays, len(base))
        rows = np.stack([draw.permutation(len(base))[:count] for draw in draws])
        noise = np.stack([draw.random(images.shape[1:]) for draw in draws])
        under = base[torch.from_numpy(rows).to(base.device)]
        over = torch.stack([images, torch.from_numpy(noise).to(images)], 1)
        # (B, 2, overlays, C, H, W)
        pasted = under[:, None] + masks[:, None, None] * (over[:, :, None] - under[:, None])
        return pasted.flatten(0, 2)


def _columns(values_B2: FloatArray) -> tuple[FloatArray, FloatArray]:
    return values_B2[:, 0], values_B2[:, 1]


def salient(
    inputs: DefenseInputs, layer: str, images_BCHW: torch.Tensor, share: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return masks (B, 1, H, W) in {0, 1} of the salient region, and predicted labels (B,).

    Grad-CAM (R. Selvaraju et al., ICCV 2017, arXiv:1610.02391) of the predicted class.
    """
    import torch
    import torch.nn.functional as F

    seen: list[torch.Tensor] = []
    module = inputs.victim.get_submodule(layer)
    handle = module.register_forward_hook(lambda m, given, out: seen.append(out))
    try:
        logits = inputs.victim(images_BCHW.detach().requires_grad_()).float()
    finally:
        handle.remove()
    labels = logits.argmax(1)
    chosen = logits.gather(1, labels[:, None]).sum()
    (gradient,) = torch.autograd.grad(chosen, seen[0])
    weights = gradient.mean((2, 3), keepdim=True)
    maps = (weights * seen[0]).sum(1, keepdim=True).relu().detach().float()
    large = F.interpolate(maps, images_BCHW.shape[2:], mode="bilinear", align_corners=False)
    flat = large.flatten(1)
    count = max(count_of(share, flat.shape[1]), 1)
    # By rank: a map of equal values still gives a region of the wanted size.
    order = flat.argsort(dim=1, descending=True, stable=True)[:, :count]
    mask = torch.zeros_like(flat).scatter_(1, order, 1.0)
    return mask.view_as(large), labels


def fit_boundary(confidence: FloatArray, fooled: FloatArray, width: float) -> FloatArray:
    """Return a parabola's coefficients through the largest `fooled` of each bin of confidence."""
    bins = np.floor(confidence / width).astype(int)
    tops = [
        (confidence[bins == b][fooled[bins == b].argmax()], fooled[bins == b].max())
        for b in np.unique(bins)
    ]
    x, y = np.array(tops).T
    degree = min(2, len(tops) - 1)
    coefficients: FloatArray = np.polyfit(x, y, degree)
    return coefficients

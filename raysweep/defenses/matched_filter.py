"""Matched filter: a fixed linear filter that knows the trigger; whether a model is needed at all.

Where we differ: a control, not a published method. Images and pattern pass a high-pass, the
Laplacian, because natural images have little at high frequencies; the score is the least-squares
estimate of how many times the pattern was added, <Hx, Hv> / <Hv, Hv>, so that adding it raises the
score by 1 exactly, and a constant by 0. It is made for additive patterns. The pattern is what the
trigger of this trial does to a gray image at test time: for other attacks it is an approximation at
best, and for triggers that depend on the image none. A pattern without high frequencies, or none,
gives scores of 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from raysweep.datasets import as_floats
from raysweep.defenses import (
    Decision,
    Defense,
    DefenseInputs,
    Evidence,
    Findings,
    FloatArray,
    Gift,
    Need,
)
from raysweep.methods import decision
from raysweep.methods.context import Context

if TYPE_CHECKING:
    import torch


class MatchedFilter(Defense):
    """Knows the pattern; scores are estimated multiples of it."""

    CONTROL: ClassVar[bool] = True

    multiple: float = decision(
        0.5,
        gt=0,
        le=100,
        description="flag what holds more of the pattern than this",
        search={"min": 0.05, "max": 1.0},
    )

    def needs(self) -> frozenset[Need]:
        """Return the training set, and the trigger: an oracle."""
        return frozenset({"training_set", "trigger"})

    def gives(self) -> frozenset[Gift]:
        """Return scores of training samples."""
        return frozenset({"train_scores"})

    def run(self, inputs: DefenseInputs, ctx: Context) -> Findings:
        """Filter every image."""
        import torch

        pattern = torch.from_numpy(inputs.trigger).to(ctx.device)
        parts = [
            multiples(as_floats(images.to(ctx.device)), pattern)
            for images in inputs.training_set.images.split(500)
        ]
        return Findings(train_scores=np.concatenate(parts))

    def decide(self, evidence: Evidence) -> Decision:
        """Flag the samples that hold more than `multiple` of the pattern."""
        return Decision(flags=evidence.train_scores > self.multiple)


def multiples(images_BCHW: torch.Tensor, pattern_CHW: torch.Tensor) -> FloatArray:
    """Return the multiple (B,) of the pattern that each image holds."""
    filtered = high_pass(pattern_CHW[None])[0]
    energy = float(filtered.square().sum())
    if energy < 1e-12:
        return np.zeros(len(images_BCHW), np.float32)
    products = (high_pass(images_BCHW) * filtered).sum((1, 2, 3))
    values: FloatArray = (products / energy).cpu().numpy()
    return values


def high_pass(images_BCHW: torch.Tensor) -> torch.Tensor:
    """Return the Laplacian of each channel; borders are repeated, so that constants give 0."""
    import torch.nn.functional as F

    wide = F.pad(images_BCHW, (1, 1, 1, 1), mode="replicate")
    around = wide[..., :-2, 1:-1] + wide[..., 2:, 1:-1] + wide[..., 1:-1, :-2] + wide[..., 1:-1, 2:]
    return 4 * images_BCHW - around

"""STRIP: a triggered input keeps its prediction under any overlay, so its entropy stays low.

Y. Gao, C. Xu, D. Wang, S. Chen, D. Ranasinghe, S. Nepal: STRIP: A Defence Against Trojan Attacks on
Deep Neural Networks, ACSAC 2019, arXiv:1902.06531: mean entropy of the predictions on the input
superimposed on N clean images, against a threshold set on clean inputs.

Where we differ: scores are minus the mean entropy, so that higher is more suspicious. The paper
fits a normal distribution to clean entropies; here the threshold is their empirical quantile.
Overlays come from one half of the reserved clean set and the threshold from the other, so that no
sample does both. `on: training_set` uses it as a filter of the training set, as backdoor toolboxes
do. `blend: add` sums pixels and clips to [0, 1], where Confusion Training's code sums normalized
inputs, unclipped. Overlays of an input are drawn by its id, so that batches do not matter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field

from raysweep import rng
from raysweep.datasets import IntArray, as_floats
from raysweep.defenses import (
    DefenseInputs,
    Findings,
    FloatArray,
    Scorer,
)
from raysweep.defenses import _scored as scored
from raysweep.methods import searched
from raysweep.methods.context import Context

if TYPE_CHECKING:
    import torch


class Strip(scored.Scored):
    """Scores are minus the mean entropy over overlays; decisions set the nominal FPR."""

    VERSION = 2
    TOY: ClassVar = {"overlays": 8}

    overlays: int = searched(
        64, {"min": 4, "max": 200}, ge=1, le=1000, description="clean images laid over each input"
    )
    blend: Literal["add", "average"] = Field("add", description="x + strength * u, or their mean")
    strength: float = Field(1.0, gt=0, le=2, description="weight of the overlay, for add")

    def passes(self, samples: int, epochs: int, num_classes: int) -> float:
        """Return the overlays of every sample, forward."""
        del epochs, num_classes
        return self.overlays * samples / 3

    def least_clean(self) -> int:
        """Return 4: half of the images are to fit, half to calibrate."""
        return 4

    def run(self, inputs: DefenseInputs, ctx: Context) -> Findings:
        """Make the scorer; apply it to the training set if that is asked for."""
        pool, calibration = scored.halves("STRIP", inputs.clean_set, ctx, least=self.least_clean())
        score = self._scorer(inputs, pool, ctx)
        return self.found(inputs, calibration, score, ctx)

    def _scorer(self, inputs: DefenseInputs, pool: IntArray, ctx: Context) -> Scorer:
        import torch

        from raysweep import training

        overlays = as_floats(inputs.clean_set.take(pool).images.to(ctx.device))
        count = min(self.overlays, len(overlays))
        root = ctx.stream("overlays")

        def score(images_BCHW: torch.Tensor, ids: IntArray) -> FloatArray:
            drawn = [rng.generator(root, int(i)).permutation(len(overlays))[:count] for i in ids]
            rows = torch.from_numpy(np.concatenate(drawn)).to(ctx.device)
            laid = overlays[rows].view(len(ids), count, *overlays.shape[1:])
            given = images_BCHW.to(ctx.device)[:, None]
            if self.blend == "add":
                mixed = (given + self.strength * laid).clamp(0, 1)
            else:
                mixed = (given + laid) / 2
            batch = mixed.flatten(0, 1)
            logits = training.predict(inputs.victim, batch, inputs.recipe, ctx.device)
            log_p = logits.log_softmax(1)
            entropy = -(log_p.exp() * log_p).sum(1).view(len(ids), count).mean(1)
            result: FloatArray = (-entropy).numpy()
            return result

        return score

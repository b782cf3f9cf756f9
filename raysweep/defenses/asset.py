"""ASSET: trained down on clean data and up on the suspect set at once, only poison stays apart.

M. Pan, Y. Zeng, L. Lyu, X. Lin, R. Jia: ASSET: Robust Backdoor Data Detection Across a Multiplicity
of Deep Learning Paradigms, USENIX Security 2023, arXiv:2302.11408: minimize a loss on a clean base
set and maximize it on the training set; the two cancel on clean samples, so that poison ends with
the larger loss.

Where we differ: one loop of both objectives, where the paper first concentrates poison in each
batch by an inner optimization; the loss is cross-entropy with the given label, started from the
victim, capped so that it stays finite. The cut is the one that leaves the least squared deviation
on its two sides, or a share.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field

from raysweep.counts import count_of
from raysweep.defenses import (
    Decision,
    Defense,
    DefenseInputs,
    Evidence,
    Findings,
    Flags,
    Gift,
    Need,
)
from raysweep.defenses._scored import split
from raysweep.methods import decision, log_range
from raysweep.methods.context import Context

if TYPE_CHECKING:
    import torch
    from torch import nn

    from raysweep.training import Batch


class ASSET(Defense):
    """Scores are losses after the separation; decisions cut them."""

    VERSION = 2
    BADGES: ClassVar[tuple[str, ...]] = ("simplified: no inner optimization",)
    TOY: ClassVar = {"learning_rate": 0.05, "epochs": 3}

    epochs: int = Field(5, ge=1, le=1000, description="passes over the training set")
    learning_rate: float = Field(0.01, gt=0, le=10, description="constant")
    weight: float = Field(1.0, gt=0, description="of the training set's loss, which goes up")
    cap: float = Field(100.0, gt=1, description="losses count up to log(cap)")
    rule: Literal["split", "fraction"] = decision("split", description="what is flagged")
    fraction: float = decision(
        0.1,
        gt=0,
        lt=1,
        description="share of the set, for fraction",
        search=log_range(0.005, 0.5),
    )

    def needs(self) -> frozenset[Need]:
        """Return training set, victim and clean set."""
        return frozenset({"training_set", "victim", "clean_set"})

    def gives(self) -> frozenset[Gift]:
        """Return scores of training samples."""
        return frozenset({"train_scores"})

    def passes(self, samples: int, epochs: int, num_classes: int) -> float:
        """Return the sample passes of the separation, with a clean image beside each sample."""
        del epochs, num_classes
        return 2 * samples * self.epochs

    def least_clean(self) -> int:
        """Return 2: one image alone has no variance."""
        return 2

    def run(self, inputs: DefenseInputs, ctx: Context) -> Findings:
        """Train apart, and measure losses."""
        from raysweep import training

        if len(inputs.clean_set) < 2:
            raise ValueError(
                f"ASSET needs at least 2 reserved clean images, got {len(inputs.clean_set)}; raise "
                f"clean_size of the dataset"
            )
        recipe = inputs.recipe.model_copy(
            update={
                "epochs": self.epochs, "learning_rate": self.learning_rate, "optimizer": "sgd",
                "schedule": "constant", "augment": (),
            }
        )  # fmt: skip
        streams = {
            "suspect": training.Stream(data=inputs.training_set),
            "base": training.Stream(data=inputs.clean_set),
        }
        offset = Offset(self.weight, math.log(self.cap))
        training.fit(inputs.victim, streams, recipe, ctx, objective=offset)
        losses = training.per_sample_losses(inputs.victim, inputs.training_set, recipe, ctx.device)
        return Findings(train_scores=losses.numpy())

    def decide(self, evidence: Evidence) -> Decision:
        """Flag the upper side of the best split, or the highest share."""
        scores = evidence.train_scores
        if self.rule == "split":
            return Decision(flags=scores > split(scores))
        flags: Flags = np.zeros(len(scores), bool)
        flags[np.argsort(-scores, kind="stable")[: count_of(self.fraction, len(scores))]] = True
        return Decision(flags=flags)


class Offset:
    """E_base[l] - weight * E_suspect[min(l, cap)], in one batch for shared statistics."""

    capturable = True

    def __init__(self, weight: float, cap: float) -> None:
        self.weight, self.cap = weight, cap

    def __call__(self, model: nn.Module, batches: Mapping[str, Batch]) -> torch.Tensor:
        """Return the objective of the two streams."""
        import torch
        import torch.nn.functional as F

        base, suspect = batches["base"], batches["suspect"]
        logits = model(torch.cat([base.images, suspect.images])).float()
        ours, theirs = logits.split([len(base.labels), len(suspect.labels)])
        up = F.cross_entropy(theirs, suspect.labels, reduction="none").clamp(max=self.cap).mean()
        return F.cross_entropy(ours, base.labels) - self.weight * up

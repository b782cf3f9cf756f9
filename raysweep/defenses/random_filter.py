"""Random filter: removes as many samples as another defense did, at random; the lower bound.

Where we differ: a control, not a published method. The count comes from the decision of the
defense named by `like`, against the same attack and with the same seed.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from pydantic import Field

from raysweep.defenses import Decision, Defense, DefenseInputs, Evidence, Findings, Gift, Need
from raysweep.methods.context import Context


class RandomFilter(Defense):
    """Scores are uniform noise."""

    CONTROL: ClassVar[bool] = True

    like: str = Field("spectral_signatures", description="defense of this sweep to be matched")

    def needs(self) -> frozenset[Need]:
        """Return the training set, for its size, and the number of samples to remove."""
        return frozenset({"training_set", "removed_count"})

    def gives(self) -> frozenset[Gift]:
        """Return scores of training samples."""
        return frozenset({"train_scores"})

    def run(self, inputs: DefenseInputs, ctx: Context) -> Findings:
        """Draw a score for each sample."""
        scores = ctx.generator("scores").random(len(inputs.labels))
        return Findings(train_scores=scores.astype(np.float32))

    def decide(self, evidence: Evidence) -> Decision:
        """Flag the `removed_count` highest scores."""
        flags = np.zeros(len(evidence.train_scores), bool)
        order = np.argsort(-evidence.train_scores, kind="stable")
        flags[order[: evidence.removed_count]] = True
        return Decision(flags=flags)

"""Perfect filter: removes exactly the poisoned samples; the upper bound for every filter.

Where we differ: a control, not a published method. Cover samples are kept: they are negatives.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from raysweep.defenses import Decision, Defense, DefenseInputs, Evidence, Findings, Gift, Need
from raysweep.methods.context import Context


class PerfectFilter(Defense):
    """Knows the poison mask."""

    CONTROL: ClassVar[bool] = True

    def needs(self) -> frozenset[Need]:
        """Return the poison mask: an oracle."""
        return frozenset({"poison_mask"})

    def gives(self) -> frozenset[Gift]:
        """Return scores of training samples."""
        return frozenset({"train_scores"})

    def run(self, inputs: DefenseInputs, ctx: Context) -> Findings:
        """Score poison 1, the rest 0."""
        del ctx
        return Findings(train_scores=inputs.poison_mask.astype(np.float32))

    def decide(self, evidence: Evidence) -> Decision:
        """Flag the samples that score 1."""
        return Decision(flags=evidence.train_scores > 0.5)

"""The common base of filters that remove the highest scores of every class."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from typing import Literal

import numpy as np
from pydantic import Field

from raysweep.counts import count_of, exactly
from raysweep.defenses import Defense, Evidence, Flags, Gift, Need
from raysweep.methods import decision, log_range


class RemovesPerClass(Defense):
    """A filter on features; a share of each class goes, or 1.5 times the oracle's count."""

    layer: str | None = Field(None, description="feature layer of the model; none: its head")
    removal: Literal["quantile", "rate"] = decision("quantile", description="rule of removal")
    fraction: float = decision(
        0.15,
        gt=0,
        lt=1,
        description="share of a class, for quantile",
        search=log_range(0.005, 0.5),
    )
    multiplier: float = decision(1.5, gt=0, le=100, description="times the assumed count, for rate")

    def needs(self) -> frozenset[Need]:
        """Return features; with `removal: rate` also the true poison rate."""
        if self.removal == "rate":
            return frozenset({"features", "poison_rate"})
        return frozenset({"features"})

    def gives(self) -> frozenset[Gift]:
        """Return scores of training samples."""
        return frozenset({"train_scores"})

    def assumed(self, rate: float, total: int, size: int) -> Fraction:
        """Return the number of samples of a class that are taken to be poisoned, for `rate`.

        Args:
            rate: poisoned share of the set; if it is 0, 1 % is assumed, as in released code.
            total: samples of the set.
            size: samples of the class.
        """
        del size
        return Fraction(round(rate * total)) or exactly(0.01, total)

    def highest(self, evidence: Evidence, classes: Iterable[int]) -> Flags:
        """Return the highest scores of the named classes; by `rate` at most half of one."""
        total = len(evidence.labels)
        flags: Flags = np.zeros(total, bool)
        for label in classes:
            rows = evidence.highest_first[int(label)]
            count = count_of(self.fraction, len(rows))
            if self.removal == "rate":
                assumed = self.assumed(evidence.poison_rate, total, len(rows))
                count = min(count_of(self.multiplier, assumed), len(rows) // 2)
            flags[rows[:count]] = True
        return flags

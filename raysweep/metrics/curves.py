"""The curves of a trial, and the names under which its evaluation stores them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from raysweep.arrays import Arrays, Bools, Floats
from raysweep.metrics.names import Family
from raysweep.metrics.ranking import ranking, roc

Scored = Literal["train", "input"]
_LOSSES = Family("losses_")


@dataclass(frozen=True, kw_only=True, eq=False)
class Roc:
    """A ROC curve: false and true positive rates, (P,) each, from 0 to 1."""

    fpr: Floats
    tpr: Floats

    @classmethod
    def of(cls, scores: Floats, positive: Bools) -> Roc | None:
        """Return the curve of scores (N,) in float32; none where all are, or none is, positive."""
        fpr, tpr = roc(scores, positive)
        if not len(fpr):
            return None
        return cls(fpr=fpr.astype(np.float32), tpr=tpr.astype(np.float32))

    def pack(self, scored: Scored) -> Arrays:
        """Return the curve as named arrays."""
        return {f"{scored}_roc_fpr": self.fpr, f"{scored}_roc_tpr": self.tpr}

    @classmethod
    def unpack(cls, scored: Scored, arrays: Arrays) -> Roc | None:
        """Return the curve among named arrays; none if it is not there."""
        fpr, tpr = arrays.get(f"{scored}_roc_fpr"), arrays.get(f"{scored}_roc_tpr")
        return None if fpr is None or tpr is None else cls(fpr=fpr, tpr=tpr)


@dataclass(frozen=True, kw_only=True, eq=False)
class Losses:
    """Losses of poison and of the rest after each of T steps, and how well they tell the two apart.

    Attributes:
        poison: quartiles of the losses of poisoned samples, (3, T); none if there are none.
        rest: quartiles of the losses of all others, (3, T); none if there are none.
        auroc: how well a low loss tells poison from the rest, (T,); none where one of them is none.
    """

    poison: Floats | None
    rest: Floats | None
    auroc: Floats | None

    @classmethod
    def of(cls, losses_TN: Floats, poison: Bools) -> Losses:
        """Return quartiles and AUROC; a loss that is not a number counts as the highest."""
        quartiles = [
            np.percentile(losses_TN[:, who], (25, 50, 75), axis=1).astype(np.float32)
            if who.any()
            else None
            for who in (poison, ~poison)
        ]
        auroc = None
        if all(some is not None for some in quartiles):
            ranks = np.where(np.isnan(losses_TN), -np.inf, -losses_TN)
            auroc = np.array([ranking(step, poison).auroc for step in ranks], np.float32)
        return cls(poison=quartiles[0], rest=quartiles[1], auroc=auroc)

    def pack(self) -> Arrays:
        """Return the curves as named arrays."""
        named = {"poison": self.poison, "rest": self.rest, "auroc": self.auroc}
        return {_LOSSES.of(name): array for name, array in named.items() if array is not None}

    @classmethod
    def unpack(cls, arrays: Arrays) -> Losses | None:
        """Return the losses among named arrays; none if there are none."""
        known = {name: arrays[stored] for name, stored in _LOSSES.within(arrays).items()}
        if not known:
            return None
        return cls(poison=known.get("poison"), rest=known.get("rest"), auroc=known.get("auroc"))


@dataclass(frozen=True, kw_only=True, eq=False)
class Curves:
    """All curves of a trial: of scores of training samples, of scores of inputs, of losses."""

    train: Roc | None = None
    input: Roc | None = None
    losses: Losses | None = None

    def rocs(self) -> dict[Scored, Roc]:
        """Return the ROC curves that there are, by what was scored."""
        every: dict[Scored, Roc | None] = {"train": self.train, "input": self.input}
        return {scored: curve for scored, curve in every.items() if curve is not None}

    def pack(self) -> Arrays:
        """Return all curves as named arrays: the arrays of an evaluation."""
        return {
            **(self.train.pack("train") if self.train else {}),
            **(self.losses.pack() if self.losses else {}),
            **(self.input.pack("input") if self.input else {}),
        }

    @classmethod
    def unpack(cls, arrays: Arrays) -> Curves:
        """Return the curves among the arrays of an evaluation."""
        return cls(
            train=Roc.unpack("train", arrays),
            input=Roc.unpack("input", arrays),
            losses=Losses.unpack(arrays),
        )

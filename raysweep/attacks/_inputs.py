"""The inputs of what an attack prepares, and of what a plan checks before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from raysweep.datasets import ImageSet, IntArray, Shape
from raysweep.methods.recipe import Recipe

if TYPE_CHECKING:
    from torch import nn

    from raysweep.models import Model


@dataclass(frozen=True, kw_only=True)
class Planned:
    """The dataset of an attack, as a plan knows it before anything is prepared.

    Attributes:
        shape: of its images.
        labels, rows: (N,) of the training set, and its row numbers in the source's training files.
        test_labels, test_rows: (E,) of the evaluation set, and its row numbers in the test files.
    """

    shape: Shape
    labels: IntArray
    rows: IntArray
    test_labels: IntArray
    test_rows: IntArray


@dataclass(frozen=True, kw_only=True)
class AttackInputs:
    """The inputs of `prepare`.

    Attributes:
        data: the clean training set.
        rows: (N,) row numbers of its images in the source's training files, ascending.
        model, shape, recipe: architecture, image shape and training recipe of this trial's victims.
        surrogate: a network built and trained as a victim is, on `data`, from another seed than
            the victim's; only if `SURROGATE`.
        victim: the victim itself, in eval mode on the stage's device; only if `EVADES`.
        test: the evaluation set, with its true labels; only if `EVADES`.
        test_rows: (E,) row numbers of its images in the source's test files, ascending: the ids
            that `stamp` will be given for them; only if `EVADES`.
    """

    data: ImageSet
    rows: IntArray
    model: Model
    shape: Shape
    recipe: Recipe
    surrogate: nn.Module | None = None
    victim: nn.Module | None = None
    test: ImageSet | None = None
    test_rows: IntArray | None = None

    @property
    def trained(self) -> nn.Module:
        """The surrogate, in eval mode on the stage's device."""
        assert self.surrogate is not None, "only attacks that declare SURROGATE have one"
        return self.surrogate
